//! Mamba-3.

use semisep_core::MixerConfig;
use semisep_mamba3::Mamba3Config;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mamba3 = Mamba3Config { d_state: 8, headdim: 8, dt_max: 0.5, ..Default::default() };
    let mimo = Mamba3Config { is_mimo: true, mimo_rank: 2, ..mamba3.clone() };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("mamba3", Box::new(mamba3.clone()));
    add(
        "mamba3 groups",
        Box::new(Mamba3Config { ngroups: 2, rope_fraction: 1.0, is_outproj_norm: true, ..mamba3.clone() }),
    );
    add("mamba3 floor", Box::new(Mamba3Config { a_floor: 0.6, d_state: 10, ..mamba3 }));
    add("mamba3 mimo", Box::new(mimo.clone()));
    add(
        "mamba3 mimo norm",
        Box::new(Mamba3Config { mimo_rank: 3, rope_fraction: 1.0, is_outproj_norm: true, ..mimo }),
    );
    cases
}
