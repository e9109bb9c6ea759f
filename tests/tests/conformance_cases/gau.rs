//! The gated attention unit.

use semisep_core::{MixerConfig, RotaryConfig};
use semisep_gau::{GauAttention, GauConfig, GauScale};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    // So many features that some scores are positive whatever the seed: without any, all is zero.
    let gau = GauConfig { d_qk: 18, d_hidden: Some(14), ..Default::default() };
    let rope = Some(RotaryConfig { theta: 100.0, ..RotaryConfig::default() });
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    // Without biases, beside which early weights are small.
    add("gau", Box::new(GauConfig { bias: false, ..gau.clone() }));
    let constant = GauConfig { scale: GauScale::Constant, scale_value: Some(0.25), ..gau.clone() };
    add("gau constant", Box::new(GauConfig { rope, bias: false, d_hidden: None, ..constant.clone() }));
    add("gau softmax", Box::new(GauConfig { attention: GauAttention::Softmax, rope, ..gau.clone() }));
    add("gau seq_len", Box::new(GauConfig { scale: GauScale::SeqLen, ..gau }));
    add("gau bidirectional", Box::new(GauConfig { causal: false, ..constant }));
    cases
}
