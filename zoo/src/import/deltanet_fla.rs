//! flash-linear-attention's `DeltaNetForCausalLM` and `GatedDeltaNetForCausalLM`.

use std::sync::Arc;

use semisep_deltanet::{DeltaNetConfig, GatedDeltaNetConfig, QkActivation, QkNorm};

use super::{Fields, Folder, Importer, fla, is_type};

/// `model_type` "delta_net".
pub(super) const DELTANET: Importer = Importer {
    family: "deltanet-fla",
    detects: |config| is_type(config, "delta_net", "DeltaNetForCausalLM"),
    import: |folder| fla::import(folder, DELTANET.family, 4.0, Arc::new(plain(folder))),
};

/// `model_type` "gated_deltanet".
pub(super) const GATED: Importer = Importer {
    family: "gated-deltanet-fla",
    detects: |config| is_type(config, "gated_deltanet", "GatedDeltaNetForCausalLM"),
    import: |folder| fla::import(folder, GATED.family, 4.0, Arc::new(gated(folder))),
};

fn plain(folder: &Folder<'_>) -> DeltaNetConfig {
    let config = &folder.config;
    DeltaNetConfig {
        num_heads: config.size_or("num_heads", 16),
        expand_k: config.number("expand_k").unwrap_or(1.0),
        expand_v: config.number("expand_v").unwrap_or(1.0),
        use_beta: config.flag_or("use_beta", true),
        use_gate: config.flag_or("use_gate", false),
        use_short_conv: config.flag_or("use_short_conv", true),
        conv_size: config.size_or("conv_size", 4),
        conv_bias: config.flag_or("conv_bias", false),
        allow_neg_eigval: config.flag_or("allow_neg_eigval", false),
        qk_activation: named(
            config,
            "qk_activation",
            &[
                ("silu", QkActivation::Silu),
                ("relu", QkActivation::Relu),
                ("elu", QkActivation::Elu),
                ("identity", QkActivation::Identity),
            ],
        ),
        qk_norm: named(config, "qk_norm", &[("l2", QkNorm::L2), ("sum", QkNorm::Sum)]),
        norm_eps: fla::norm_eps(config),
    }
}

fn gated(folder: &Folder<'_>) -> GatedDeltaNetConfig {
    let config = &folder.config;
    named(config, "output_gate_activation", &[("swish", ()), ("silu", ())]);
    GatedDeltaNetConfig {
        num_heads: config.size_or("num_heads", 6),
        num_v_heads: config.size_from("num_v_heads", 1),
        head_dim: config.size_or("head_dim", 256),
        expand_v: config.number("expand_v").unwrap_or(2.0),
        use_gate: config.flag_or("use_gate", true),
        use_short_conv: config.flag_or("use_short_conv", true),
        conv_size: config.size_or("conv_size", 4),
        conv_bias: config.flag_or("conv_bias", false),
        allow_neg_eigval: config.flag_or("allow_neg_eigval", false),
        norm_eps: fla::norm_eps(config),
        ..GatedDeltaNetConfig::default()
    }
}

/// The choice of this name; the first where there is none.
fn named<T: Copy>(config: &Fields, key: &str, choices: &[(&str, T)]) -> T {
    let found = config.text(key);
    let choice = choices.iter().find(|(name, _)| found.is_none_or(|found| found == *name));
    if choice.is_none() {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        config
            .problem(key, format!("expected {}, found {:?}", names.join(" or "), found.unwrap_or_default()));
    }
    choice.unwrap_or(&choices[0]).1
}
