//! Multilayer perceptrons and the linear map.

use semisep_core::{Activation, LinearMapConfig, MixerConfig, MlpConfig};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("mlp", Box::new(MlpConfig { d_intermediate: Some(20), ..Default::default() }));
    add("mlp plain", Box::new(MlpConfig { gated: false, bias: true, ..Default::default() }));
    add("mlp unfused", Box::new(MlpConfig { fused: false, ..Default::default() }));
    let adapter = MlpConfig { adapter_rank: Some(3), activation: Activation::Gelu, ..Default::default() };
    add("mlp adapter", Box::new(adapter));
    add("linear", Box::new(LinearMapConfig { bias: true }));
    add("mlp scaled", Box::new(MlpConfig { gate_multiplier: 0.6, ..Default::default() }));
    cases
}
