//! Griffin's recurrent block.

use semisep_core::{Activation, MixerConfig};
use semisep_griffin::RgLruConfig;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let rg_lru = RgLruConfig { num_blocks: 4, ..Default::default() };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("rg_lru", Box::new(rg_lru.clone()));
    add(
        "rg_lru wide",
        Box::new(RgLruConfig {
            lru_width: Some(24),
            num_blocks: 3,
            conv1d_width: 2,
            c: 4.0,
            activation: Activation::Silu,
            ..rg_lru
        }),
    );
    cases
}
