//! Recurrent networks.

use semisep_core::MixerConfig;
use semisep_rnn::{Candidate, GruConfig, LstmConfig, MinGruConfig, MinLstmConfig, Nonlinearity, RnnConfig};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("lstm", Box::<LstmConfig>::default());
    add("lstm deep", Box::new(LstmConfig { hidden_size: Some(12), num_layers: 2, bias: false }));
    add("gru", Box::<GruConfig>::default());
    add("gru deep", Box::new(GruConfig { hidden_size: Some(12), num_layers: 2, bias: false }));
    add("rnn", Box::<RnnConfig>::default());
    add(
        "rnn deep",
        Box::new(RnnConfig {
            hidden_size: Some(12),
            num_layers: 2,
            nonlinearity: Nonlinearity::Relu,
            ..Default::default()
        }),
    );
    add("min_gru", Box::<MinGruConfig>::default());
    add(
        "min_gru wide",
        Box::new(MinGruConfig { hidden_size: Some(24), bias: false, candidate: Candidate::Positive }),
    );
    add("min_lstm", Box::<MinLstmConfig>::default());
    add(
        "min_lstm wide",
        Box::new(MinLstmConfig { hidden_size: Some(24), bias: false, candidate: Candidate::Positive }),
    );
    cases
}
