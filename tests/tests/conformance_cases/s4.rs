//! S4 and S4D.

use semisep_core::{Discretization, MixerConfig};
use semisep_s4::{DiagInit, Format, Hippo, Pointwise, S4Config, S4dConfig, Transform};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let s4d = S4dConfig { d_state: 8, dt_min: 0.02, dt_max: 0.3, ..Default::default() };
    let s4 = S4Config { d_state: 8, dt_min: 0.02, dt_max: 0.3, ..Default::default() };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("s4d", Box::new(s4d.clone()));
    add("s4d minimal", Box::new(S4dConfig { format: Format::Minimal, ..s4d.clone() }));
    add("s4d minimal with B", Box::new(S4dConfig { format: Format::MinimalB, rate: 2.0, ..s4d.clone() }));
    add(
        "s4d options",
        Box::new(S4dConfig {
            disc: Discretization::Bilinear,
            init: DiagInit::DiagLegs,
            n_ssm: Some(2),
            dt_tie: false,
            dt_transform: Transform::Softplus,
            real_transform: Transform::Softplus,
            activation: Pointwise::Silu,
            final_act: Pointwise::None,
            rate: 0.5,
            ..s4d.clone()
        }),
    );
    add(
        "s4d channels",
        Box::new(S4dConfig {
            channels: 3,
            init: DiagInit::DiagInv,
            activation: Pointwise::Glu,
            final_act: Pointwise::Id,
            real_transform: Transform::Sigmoid,
            dt_transform: Transform::Relu,
            ..s4d.clone()
        }),
    );
    add("s4d bidirectional", Box::new(S4dConfig { bidirectional: true, channels: 2, ..s4d }));
    add("s4", Box::new(s4.clone()));
    add("s4 legt", Box::new(S4Config { init: Hippo::Legt, rank: 2, n_ssm: Some(4), ..s4.clone() }));
    add("s4 fout", Box::new(S4Config { init: Hippo::Fout, rank: 3, channels: 2, rate: 0.7, ..s4.clone() }));
    add("s4 transformed", Box::new(S4Config { l_kernel: 23, ..s4.clone() }));
    add(
        "s4 transformed short",
        Box::new(S4Config { l_kernel: 12, init: Hippo::Legt, rank: 2, ..s4.clone() }),
    );
    add("s4 bidirectional", Box::new(S4Config { bidirectional: true, l_kernel: 40, ..s4 }));
    cases
}
