//! S5.

use semisep_core::MixerConfig;
use semisep_s5::{Activation, CInit, Discretization, Intervals, S5Config};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let s5 = S5Config { d_state: 12, dt_min: 0.05, dt_max: 0.5, ..Default::default() };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("s5", Box::new(s5.clone()));
    add(
        "s5 bilinear",
        Box::new(S5Config {
            discretization: Discretization::Bilinear,
            conj_sym: false,
            activation: Activation::FullGlu,
            prenorm: Some(true),
            ..s5.clone()
        }),
    );
    add(
        "s5 blocks",
        Box::new(S5Config {
            blocks: 2,
            c_init: CInit::LecunNormal,
            clip_eigs: true,
            step_rescale: 0.7,
            activation: Activation::HalfGlu2,
            prenorm: Some(false),
            ..s5.clone()
        }),
    );
    add("s5 gelu", Box::new(S5Config { activation: Activation::Gelu, ..s5.clone() }));
    let bare = S5Config { activation: Activation::None, ..s5 };
    add("s5 irregular", Box::new(S5Config { dt: Intervals::Projected, ..bare.clone() }));
    add(
        "s5 irregular bilinear",
        Box::new(S5Config {
            dt: Intervals::Projected,
            discretization: Discretization::Bilinear,
            ..bare.clone()
        }),
    );
    add("s5 given intervals", Box::new(S5Config { dt: Intervals::Given, ..bare.clone() }));
    add(
        "s5 given intervals bilinear",
        Box::new(S5Config {
            dt: Intervals::Given,
            discretization: Discretization::Bilinear,
            conj_sym: false,
            ..bare.clone()
        }),
    );
    add("s5 bidirectional", Box::new(S5Config { bidirectional: true, ..bare.clone() }));
    add(
        "s5 bidirectional full",
        Box::new(S5Config {
            bidirectional: true,
            conj_sym: false,
            c_init: CInit::ComplexNormal,
            dt: Intervals::Projected,
            ..bare
        }),
    );
    cases
}
