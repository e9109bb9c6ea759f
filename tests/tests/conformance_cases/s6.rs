//! The selective state space alone.

use semisep_core::MixerConfig;
use semisep_s6::S6Config;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let s6 = S6Config { d_state: 4, ..Default::default() };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("s6", Box::new(s6.clone()));
    add("s6 projected", Box::new(S6Config { in_proj: true, out_proj: true, dt_rank: Some(3), ..s6 }));
    cases
}
