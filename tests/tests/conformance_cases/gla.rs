//! Linear attention, plain and gated, with every option.

use semisep_core::{Activation, MixerConfig};
use semisep_gla::{FeatureMap, GlaConfig, LinearAttentionConfig, OutputNorm};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    let gla = GlaConfig { num_heads: 2, gate_low_rank_dim: 3, ..Default::default() };
    add("gla", Box::new(gla.clone()));
    let options = GlaConfig {
        num_heads: 4,
        num_kv_heads: Some(2),
        expand_k: 1.0,
        use_short_conv: true,
        conv_bias: true,
        gate_fn: Activation::Gelu,
        gate_logit_normalizer: 1.0,
        ..gla.clone()
    };
    add("gla conv, shared keys, steep", Box::new(options));
    let plain = GlaConfig {
        feature_map: Some(Activation::Silu),
        use_output_gate: false,
        elementwise_affine: false,
        gate_logit_normalizer: 1.0,
        clamp_min: Some(-0.69),
        ..gla
    };
    add("gla clamped, without gate", Box::new(plain));

    let linear = LinearAttentionConfig { num_heads: 2, ..Default::default() };
    add("linear_attention", Box::new(linear.clone()));
    let plain = LinearAttentionConfig {
        feature_map: FeatureMap::Identity,
        do_feature_map_norm: false,
        elementwise_affine: false,
        num_kv_heads: Some(1),
        ..linear.clone()
    };
    add("linear_attention identity, one key", Box::new(plain));
    let sums = LinearAttentionConfig {
        feature_map: FeatureMap::Elu,
        do_feature_map_norm: false,
        norm_q: true,
        norm_k: true,
        output_norm: OutputNorm::Identity,
        ..linear.clone()
    };
    add("linear_attention normed features", Box::new(sums));
    for (name, feature_map, tied) in [
        ("linear_attention relu", FeatureMap::Relu, false),
        ("linear_attention softmax", FeatureMap::Softmax, false),
        ("linear_attention product", FeatureMap::ElementwiseProduct, true),
        ("linear_attention t2r", FeatureMap::T2r, false),
        ("linear_attention hedgehog", FeatureMap::Hedgehog, true),
    ] {
        // Products of both signs, and sums of few rectified ones, come near zero: no divisors.
        let do_feature_map_norm = matches!(feature_map, FeatureMap::Softmax | FeatureMap::Hedgehog);
        let config = LinearAttentionConfig {
            feature_map,
            tie_feature_map_qk: tied,
            do_feature_map_norm,
            ..linear.clone()
        };
        add(name, Box::new(config));
    }
    cases
}
