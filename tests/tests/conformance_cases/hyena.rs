//! Hyena and StripedHyena.

use semisep_core::MixerConfig;
use semisep_hyena::{HyenaConfig, StripedHyenaConfig};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let hyena = HyenaConfig { filter_order: 8, ..HyenaConfig::new(30) };
    let striped = StripedHyenaConfig { state_size: 3, ..Default::default() };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("hyena", Box::new(hyena.clone()));
    add(
        "hyena order 3",
        Box::new(HyenaConfig { order: 3, emb_dim: 5, num_inner_mlps: 1, w: 4.0, ..hyena.clone() }),
    );
    add(
        "hyena fixed",
        Box::new(HyenaConfig {
            train_freq: false,
            num_inner_mlps: 0,
            short_filter_order: 4,
            modulate: false,
            ..hyena
        }),
    );
    add("stripedhyena", Box::new(striped.clone()));
    add(
        "stripedhyena groups",
        Box::new(StripedHyenaConfig {
            hyena_filter_groups: 4,
            column_split_hyena: true,
            num_attention_heads: 2,
            short_filter_bias: false,
            short_filter_length: 4,
            ..striped
        }),
    );
    cases
}
