//! Retention, in both conventions and with every option.

use semisep_core::{Activation, MixerConfig};
use semisep_retnet::{RetNetConfig, Rotation};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let fla = RetNetConfig { num_heads: 2, ..Default::default() };
    let torchscale = RetNetConfig {
        num_heads: 2,
        expand_v: 1.5,
        rotation: Rotation::Interleaved,
        decay_norm: true,
        elementwise_affine: false,
        norm_eps: 1e-6,
        ..Default::default()
    };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("retnet", Box::new(fla.clone()));
    add("retnet torchscale", Box::new(torchscale));
    let options = RetNetConfig {
        num_heads: 4,
        num_kv_heads: Some(2),
        expand_k: 0.5,
        expand_v: 1.0,
        use_short_conv: true,
        conv_bias: true,
        gate_fn: Activation::Gelu,
        ..fla.clone()
    };
    add("retnet conv, shared keys, gelu gate", Box::new(options));
    let plain = RetNetConfig {
        rotation: Rotation::None,
        feature_map: Some(Activation::Silu),
        use_output_gate: false,
        ..fla
    };
    add("retnet plain", Box::new(plain));
    cases
}
