//! Decoders without state spaces.

use serde_json::{Map, Value as Json, json};

use super::Facts;
use super::rope::scaling;

/// What decoders with rotary attention and a gated MLP have in common.
fn transformer(facts: &Facts<'_>, model_type: &str) -> Map<String, Json> {
    let head_dim = match facts.number("attention.key_length") {
        Json::Null => facts.quotient("embedding_length", "attention.head_count"),
        length => length,
    };
    let turned = facts.number("rope.dimension_count");
    let part = turned.as_f64().zip(head_dim.as_f64()).map(|(turned, whole)| turned / whole);
    let config = json!({
        "model_type": model_type,
        "hidden_size": facts.number("embedding_length"),
        "intermediate_size": facts.number("feed_forward_length"),
        "num_hidden_layers": facts.layers(),
        "num_attention_heads": facts.number("attention.head_count"),
        "num_key_value_heads": facts.number("attention.head_count_kv"),
        "partial_rotary_factor": part.filter(|part| *part != 1.0),
        "head_dim": head_dim,
        "vocab_size": facts.rows("model.embed_tokens.weight"),
        "max_position_embeddings": facts.number("context_length"),
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": facts.metadata.number("rope.freq_base").unwrap_or(10_000.0),
        "rope_scaling": scaling(facts),
        "hidden_act": "silu",
        "attention_bias": facts.any("model.layers.*.self_attn.q_proj.bias"),
        "mlp_bias": facts.has("model.layers.0.mlp.gate_proj.bias"),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
    });
    match config {
        Json::Object(config) => config,
        _ => Map::new(),
    }
}

/// The keys of both; those of the second count.
fn with(mut config: Map<String, Json>, more: Json) -> Json {
    if let Json::Object(more) = more {
        config.extend(more);
    }
    Json::Object(config)
}

pub(super) fn llama(facts: &Facts<'_>) -> Json {
    Json::Object(transformer(facts, "llama"))
}

pub(super) fn qwen2(facts: &Facts<'_>) -> Json {
    Json::Object(transformer(facts, "qwen2"))
}

pub(super) fn qwen3(facts: &Facts<'_>) -> Json {
    Json::Object(transformer(facts, "qwen3"))
}

pub(super) fn olmo2(facts: &Facts<'_>) -> Json {
    Json::Object(transformer(facts, "olmo2"))
}

/// What experts have in common; the weights of those that are chosen sum to one.
fn experts(facts: &Facts<'_>) -> Json {
    json!({
        "moe_intermediate_size": facts.number("expert_feed_forward_length"),
        "num_experts": facts.number("expert_count"),
        "num_experts_per_tok": facts.number("expert_used_count"),
        "norm_topk_prob": true,
    })
}

pub(super) fn qwen3_moe(facts: &Facts<'_>) -> Json {
    with(transformer(facts, "qwen3_moe"), experts(facts))
}

pub(super) fn qwen3_next(facts: &Facts<'_>) -> Json {
    let config = match with(transformer(facts, "qwen3_next"), experts(facts)) {
        Json::Object(config) => config,
        other => return other,
    };
    let attends = [("model.layers.*.self_attn.q_proj.weight", "full_attention")];
    with(
        config,
        json!({
            "linear_num_key_heads": facts.number("ssm.group_count"),
            "linear_num_value_heads": facts.number("ssm.time_step_rank"),
            "linear_key_head_dim": facts.number("ssm.state_size"),
            "linear_value_head_dim": facts.quotient("ssm.inner_size", "ssm.time_step_rank"),
            "linear_conv_kernel_dim": facts.number("ssm.conv_kernel"),
            "layer_types": facts.kinds(&attends, "linear_attention"),
            "shared_expert_intermediate_size": facts.number("expert_shared_feed_forward_length"),
        }),
    )
}

pub(super) fn gpt_neox(facts: &Facts<'_>) -> Json {
    let (heads, width) =
        (facts.metadata.number("attention.head_count"), facts.metadata.number("embedding_length"));
    let turned = facts.metadata.number("rope.dimension_count");
    let part = heads.zip(width).zip(turned).map(|((heads, width), turned)| turned * heads / width);
    json!({
        "model_type": "gpt_neox",
        "hidden_size": facts.number("embedding_length"),
        "intermediate_size": facts.number("feed_forward_length"),
        "num_hidden_layers": facts.layers(),
        "num_attention_heads": facts.number("attention.head_count"),
        "vocab_size": facts.rows("gpt_neox.embed_in.weight"),
        "max_position_embeddings": facts.number("context_length"),
        "layer_norm_eps": facts.number("attention.layer_norm_epsilon"),
        "rotary_emb_base": facts.metadata.number("rope.freq_base").unwrap_or(10_000.0),
        "rotary_pct": part,
        "hidden_act": "gelu",
        "use_parallel_residual": facts.flag("use_parallel_residual"),
        "attention_bias": facts.has("gpt_neox.layers.0.attention.query_key_value.bias"),
        "tie_word_embeddings": !facts.has("embed_out.weight"),
    })
}
