//! Kolmogorov-Arnold networks.

use semisep_core::{Activation, MixerConfig};
use semisep_kan::KanConfig;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("kan", Box::<KanConfig>::default());
    add(
        "kan hidden",
        Box::new(KanConfig {
            hidden: vec![20, 7],
            grid_size: 4,
            grid_range: (-2.0, 1.0),
            base_activation: Activation::Gelu,
            ..Default::default()
        }),
    );
    add("kan plain", Box::new(KanConfig { spline_order: 2, spline_scaler: false, ..Default::default() }));
    cases
}
