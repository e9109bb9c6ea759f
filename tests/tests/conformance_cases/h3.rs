//! H3.

use semisep_core::{Discretization, MixerConfig};
use semisep_h3::{H3Config, H3Init};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let h3 = H3Config { d_state: 8, dt_min: 0.02, dt_max: 0.3, ..Default::default() };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("h3", Box::new(h3.clone()));
    add("h3 heads", Box::new(H3Config { head_dim: 4, n_ssm: Some(2), ..h3.clone() }));
    let inv = H3Init::DiagInv;
    add("h3 zoh", Box::new(H3Config { head_dim: 2, disc: Discretization::Zoh, init: inv, d_state: 6, ..h3 }));
    cases
}
