//! Decoders with mixtures of experts: Qwen3-MoE, Qwen3-Next, LFM2-MoE.

use semisep_core::MlpConfig;
use semisep_deltanet::GatedDeltaNetConfig;
use semisep_moe::MoeConfig;
use serde_json::{Value, json};

use super::decoders::{lfm2, linear};
use super::model::Model;
use super::parts::{attention, attention_or_none, types};
use super::{Dialect, Keys, all};
use crate::import::activation;

pub(super) const QWEN3_MOE: Dialect = Dialect::new(
    "qwen3_moe",
    Some(("qwen3_moe", "Qwen3MoeForCausalLM")),
    &["attention + moe", "attention + mlp"],
    |model| {
        let window = model.windows().into_iter().flatten().next();
        let windows = json!({ "use_sliding_window": window.is_some(), "sliding_window": window });
        Ok(all([qwen(model, 1.0)?, windows]))
    },
);

pub(super) const QWEN3_NEXT: Dialect = Dialect::new(
    "qwen3_next",
    Some(("qwen3_next", "Qwen3NextForCausalLM")),
    &["gated_deltanet + moe", "gated_deltanet + mlp", "attention + moe", "attention + mlp"],
    |model| {
        let c: GatedDeltaNetConfig = model.find("gated_deltanet").unwrap_or_default();
        let experts: MoeConfig = model.find("moe").unwrap_or_default();
        Ok(all([
            qwen(model, 0.25)?,
            linear(&c),
            json!({
                "shared_expert_intermediate_size": experts.shared_d_intermediate,
                "layer_types": types(model, "full_attention", "linear_attention"),
            }),
        ]))
    },
);

fn qwen(model: &Model<'_>, partial: f64) -> Keys {
    let experts: MoeConfig = model.find("moe").unwrap_or_default();
    let mlp: Option<MlpConfig> = model.find("mlp");
    let act = mlp.as_ref().map_or(experts.activation, |mlp| mlp.activation);
    let width = mlp.map_or(experts.d_intermediate, |mlp| mlp.hidden(model.d_model()));
    Ok(all([
        attention(&attention_or_none(model), model.d_model(), partial),
        chosen(&experts),
        json!({
            "hidden_act": activation::name(act),
            "intermediate_size": width,
            "decoder_sparse_step": 1,
            "mlp_only_layers": model.with("mlp"),
            "rms_norm_eps": model.eps(),
        }),
    ]))
}

/// The experts of a layer and those of a token.
fn chosen(c: &MoeConfig) -> Value {
    json!({
        "num_experts": c.num_experts,
        "num_experts_per_tok": c.num_experts_per_tok,
        "moe_intermediate_size": c.d_intermediate,
        "norm_topk_prob": c.norm_topk_prob,
    })
}

pub(super) const LFM2_MOE: Dialect = Dialect::new(
    "lfm2_moe",
    Some(("lfm2_moe", "Lfm2MoeForCausalLM")),
    &["short_conv + mlp", "attention + mlp", "short_conv + moe", "attention + moe"],
    |model| {
        let experts: MoeConfig = model.find("moe").unwrap_or_default();
        let mlp: Option<MlpConfig> = model.find("mlp");
        Ok(all([
            lfm2(model),
            chosen(&experts),
            json!({
                "intermediate_size": mlp.map(|mlp| mlp.hidden(model.d_model())),
                // The MLPs come first.
                "num_dense_layers": model.with("mlp").len(),
                "use_expert_bias": experts.expert_bias,
                "routed_scaling_factor": experts.routed_scaling_factor,
            }),
        ]))
    },
);
