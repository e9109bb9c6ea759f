//! Gated short convolutions.

use semisep_core::MixerConfig;
use semisep_short_conv::ShortConvConfig;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    // Longer than the check of state gradients, so that the first of its inputs are still in the last state.
    add("short_conv", Box::new(ShortConvConfig { d_conv: 6, bias: false }));
    add("short_conv bias", Box::new(ShortConvConfig { d_conv: 7, bias: true }));
    cases
}
