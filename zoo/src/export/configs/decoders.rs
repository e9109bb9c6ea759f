//! Llama and the decoders made after it.

use semisep_attention::AttentionConfig;
use semisep_core::MlpConfig;
use semisep_deltanet::GatedDeltaNetConfig;
use semisep_short_conv::ShortConvConfig;
use serde_json::{Value, json};

use super::model::Model;
use super::parts::{attention, attention_or_none, heads, mlp, types};
use super::{Dialect, Keys, all};

const PLAIN: &[&str] = &["attention + mlp"];

pub(super) const LLAMA: Dialect =
    Dialect::new("llama", Some(("llama", "LlamaForCausalLM")), PLAIN, |model| {
        let c: MlpConfig = model.first("mlp")?;
        Ok(all([biased(model)?, json!({ "mlp_bias": c.bias })]))
    });

pub(super) const MISTRAL: Dialect = Dialect {
    nulls: &["sliding_window"],
    ..Dialect::new("mistral", Some(("mistral", "MistralForCausalLM")), PLAIN, |model| {
        let c: AttentionConfig = model.first("attention")?;
        Ok(all([decoder(model)?, json!({ "sliding_window": c.window })]))
    })
};

pub(super) const QWEN2: Dialect =
    Dialect::new("qwen2", Some(("qwen2", "Qwen2ForCausalLM")), PLAIN, |model| {
        windowed(model, decoder(model)?)
    });

pub(super) const QWEN3: Dialect =
    Dialect::new("qwen3", Some(("qwen3", "Qwen3ForCausalLM")), PLAIN, |model| {
        windowed(model, biased(model)?)
    });

pub(super) const OLMO2: Dialect = Dialect::new("olmo2", Some(("olmo2", "Olmo2ForCausalLM")), PLAIN, biased);

/// Attention, MLP and norms.
fn decoder(model: &Model<'_>) -> Keys {
    let d = model.d_model();
    Ok(all([
        heads(&attention_or_none(model), d, 1.0),
        mlp(&model.first("mlp")?, d),
        json!({ "rms_norm_eps": model.eps() }),
    ]))
}

/// As [`decoder`], with biases in attention.
fn biased(model: &Model<'_>) -> Keys {
    Ok(all([decoder(model)?, json!({ "attention_bias": attention_or_none(model).qkv_bias })]))
}

/// A decoder of which some layers may see a window alone.
fn windowed(model: &Model<'_>, decoder: Value) -> Keys {
    let windows = model.windows();
    let window = windows.iter().flatten().next();
    let kinds = windows.iter().map(|w| if w.is_some() { "sliding_attention" } else { "full_attention" });
    Ok(all([
        decoder,
        json!({
            "use_sliding_window": window.is_some(),
            "sliding_window": window,
            "max_window_layers": windows.iter().position(Option::is_some).unwrap_or(windows.len()),
            "layer_types": kinds.collect::<Vec<_>>(),
        }),
    ]))
}

pub(super) const GPT_NEOX: Dialect = Dialect::new(
    "gpt_neox",
    Some(("gpt_neox", "GPTNeoXForCausalLM")),
    &["attention + mlp", "attention | mlp"],
    |model| {
        let c: AttentionConfig = model.first("attention")?;
        // It has as many heads of keys as of queries, each as wide as the width allows.
        let mut keys = super::object(attention(&c, model.d_model(), 0.25));
        keys.retain(|key, _| !matches!(key.as_str(), "num_key_value_heads" | "head_dim"));
        for (key, name) in [("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")] {
            keys.extend(keys.get(key).cloned().map(|value| (name.to_owned(), value)));
        }
        Ok(all([
            keys.into(),
            mlp(&model.first("mlp")?, model.d_model()),
            json!({
                "layer_norm_eps": model.eps(),
                "use_parallel_residual": model.architecture.layers[0].stages.len() == 1,
            }),
        ]))
    },
);

pub(super) const LFM2: Dialect = Dialect::new(
    "lfm2",
    Some(("lfm2", "Lfm2ForCausalLM")),
    &["short_conv + mlp", "attention + mlp"],
    |model| {
        let c: MlpConfig = model.first("mlp")?;
        let width =
            json!({ "intermediate_size": c.hidden(model.d_model()), "block_auto_adjust_ff_dim": false });
        Ok(all([lfm2(model), width]))
    },
);

/// What LFM2 and LFM2-MoE have in common.
pub(super) fn lfm2(model: &Model<'_>) -> Value {
    let conv: ShortConvConfig = model.find("short_conv").unwrap_or_default();
    all([
        heads(&attention_or_none(model), model.d_model(), 1.0),
        json!({
            "conv_L_cache": conv.d_conv,
            "conv_bias": conv.bias,
            "norm_eps": model.eps(),
            "layer_types": types(model, "full_attention", "conv"),
        }),
    ])
}

pub(super) const OLMO_HYBRID: Dialect = Dialect {
    // Its default is a token of the published vocabulary.
    nulls: &["pad_token_id"],
    ..Dialect::new(
        "olmo_hybrid",
        Some(("olmo_hybrid", "OlmoHybridForCausalLM")),
        &["gated_deltanet + mlp", "attention + mlp"],
        |model| {
            let c: GatedDeltaNetConfig = model.find("gated_deltanet").unwrap_or_default();
            let positions = attention_or_none(model).rope.is_some();
            Ok(all([
                biased(model)?,
                linear(&c),
                json!({
                    "linear_allow_neg_eigval": c.allow_neg_eigval,
                    "layer_types": types(model, "full_attention", "linear_attention"),
                    "rope_parameters": (!positions).then(|| json!({ "rope_type": "default", "rope_theta": null })),
                }),
            ]))
        },
    )
};

/// Gated DeltaNet under the keys `linear_*`.
pub(super) fn linear(c: &GatedDeltaNetConfig) -> Value {
    json!({
        "linear_num_key_heads": c.num_heads,
        "linear_num_value_heads": c.value_heads(),
        "linear_key_head_dim": c.head_dim,
        "linear_value_head_dim": c.value_dim(),
        "linear_conv_kernel_dim": c.conv_size,
    })
}
