//! HGRN2 with every option. (Lower bounds are a matter of several layers: `tests/hgrn2.rs`.)

use semisep_hgrn2::Hgrn2Config;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let plain = Hgrn2Config { expand_ratio: 8, ..Default::default() };
    let options = Hgrn2Config {
        expand_ratio: 4,
        use_lower_bound: false,
        use_short_conv: true,
        conv_size: 3,
        conv_bias: true,
        elementwise_affine: false,
        ..plain.clone()
    };
    vec![("hgrn2", Box::new(plain)), ("hgrn2 conv, without norm weight", Box::new(options))]
}
