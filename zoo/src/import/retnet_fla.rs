//! flash-linear-attention's `RetNetForCausalLM`.

use std::sync::Arc;

use semisep_core::Activation;
use semisep_retnet::RetNetConfig;

use super::activation::activation;
use super::{Folder, Importer, fla, is_type};

/// `model_type` "retnet".
pub(super) const RETNET: Importer = Importer {
    family: "retnet-fla",
    detects: |config| is_type(config, "retnet", "RetNetForCausalLM"),
    import: |folder| {
        let mixer = mixer(folder);
        let gated = mixer.use_output_gate && mixer.gate_fn == Activation::Silu;
        let mut import = fla::import(folder, RETNET.family, 2.0, Arc::new(mixer))?;
        if gated {
            import.names = fla::swish_gate(&folder.config, import.names);
        }
        Ok(import)
    },
};

fn mixer(folder: &Folder<'_>) -> RetNetConfig {
    let config = &folder.config;
    let default = RetNetConfig::default();
    RetNetConfig {
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
        ..default
    }
}
