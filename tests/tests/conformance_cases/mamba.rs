//! Mamba and Mamba-2.

use semisep_core::MixerConfig;
use semisep_mamba1::{Mamba1Config, ParameterNorms};
use semisep_mamba2::Mamba2Config;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mamba1 = Mamba1Config { d_state: 4, ..Default::default() };
    let mamba2 = Mamba2Config { d_state: 8, headdim: 8, chunk_size: 8, dt_max: 0.5, ..Default::default() };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("mamba1", Box::new(mamba1.clone()));
    let norms = |weighted| Some(ParameterNorms { eps: 1e-6, weighted });
    add("mamba1 jamba", Box::new(Mamba1Config { norms: norms(true), bias: true, ..mamba1.clone() }));
    let falcon = Mamba1Config { norms: norms(false), conv_bias: false, ..mamba1.clone() };
    add("mamba1 falcon", Box::new(falcon));
    add("mamba1 heads", Box::new(Mamba1Config { n_mamba_heads: 4, norms: norms(true), ..mamba1 }));
    add("mamba2", Box::new(mamba2.clone()));
    add("mamba2 groups", Box::new(Mamba2Config { ngroups: 2, d_has_hdim: true, ..mamba2.clone() }));
    add("mamba2 norm first", Box::new(Mamba2Config { norm_before_gate: true, bias: true, ..mamba2.clone() }));
    add("mamba2 d_ssm", Box::new(Mamba2Config { d_ssm: Some(24), rmsnorm: false, ..mamba2.clone() }));
    add(
        "mamba2 multipliers",
        Box::new(Mamba2Config {
            ngroups: 2,
            out_bias: Some(true),
            ssm_multipliers: Some([0.4, 1.5, 0.7, 1.2, 0.8]),
            ..mamba2.clone()
        }),
    );
    add("mamba2 limit", Box::new(Mamba2Config { dt_limit: Some((0.01, Some(0.2))), d_conv: 2, ..mamba2 }));
    cases
}
