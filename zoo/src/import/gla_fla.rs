//! flash-linear-attention's `GLAForCausalLM`.

use std::sync::Arc;

use semisep_core::Activation;
use semisep_gla::GlaConfig;

use super::activation::activation;
use super::{Folder, Importer, fla, is_type};

/// `model_type` "gla".
pub(super) const GLA: Importer = Importer {
    family: "gla-fla",
    detects: |config| is_type(config, "gla", "GLAForCausalLM"),
    import: |folder| {
        let mixer = mixer(folder);
        let gated = mixer.use_output_gate && mixer.gate_fn == Activation::Silu;
        let mut import = fla::import(folder, GLA.family, 4.0, Arc::new(mixer))?;
        if gated {
            import.names = fla::swish_gate(&folder.config, import.names);
        }
        Ok(import)
    },
};

fn mixer(folder: &Folder<'_>) -> GlaConfig {
    let config = &folder.config;
    let default = GlaConfig::default();
    if !config.flag_or("use_gk", true) {
        config.problem("use_gk", "expected true (attention without decays is another layer), found false");
    }
    if config.flag_or("use_gv", false) {
        config.problem("use_gv", "expected false (decays of values are not supported), found true");
    }
    GlaConfig {
        num_heads: config.size_or("num_heads", default.num_heads),
        num_kv_heads: config.size_from("num_kv_heads", 1),
        expand_k: config.number("expand_k").unwrap_or(default.expand_k),
        expand_v: config.number("expand_v").unwrap_or(default.expand_v),
        feature_map: config
            .text("feature_map")
            .is_some()
            .then(|| activation(config, "feature_map", Activation::Silu)),
        use_short_conv: config.flag_or("use_short_conv", false),
        conv_size: config.size_or("conv_size", default.conv_size),
        conv_bias: config.flag_or("conv_bias", false),
        use_output_gate: config.flag_or("use_output_gate", true),
        gate_fn: activation(config, "hidden_act", Activation::Silu),
        elementwise_affine: config.flag_or("elementwise_affine", true),
        norm_eps: fla::norm_eps(config),
        gate_logit_normalizer: config
            .number("gate_logit_normalizer")
            .unwrap_or(default.gate_logit_normalizer),
        gate_low_rank_dim: config.size_or("gate_low_rank_dim", default.gate_low_rank_dim),
        clamp_min: config.number("clamp_min"),
    }
}
