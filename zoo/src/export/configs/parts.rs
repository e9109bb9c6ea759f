//! What the configurations of several families say alike: heads, rotary positions, perceptrons, Mamba-2.

use semisep_attention::AttentionConfig;
use semisep_core::{MlpConfig, RotaryConfig, RotaryScaling};
use semisep_mamba2::Mamba2Config;
use serde_json::{Value, json};

use super::all;
use super::model::{Model, exactly};
use crate::import::activation;

/// Heads and positions of attention; `partial` is the part of a head that turns where a configuration says nothing of it.
pub(super) fn heads(c: &AttentionConfig, d_model: usize, partial: f64) -> Value {
    let heads = json!({
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads(),
        "head_dim": c.head_dim,
    });
    let rope = c.rope.map_or(Value::Null, |r| rope(&r, c.head_dim(d_model), partial));
    all([heads, rope])
}

/// As [`heads`], with biases.
pub(super) fn attention(c: &AttentionConfig, d_model: usize, partial: f64) -> Value {
    all([heads(c, d_model, partial), json!({ "attention_bias": c.qkv_bias })])
}

/// The attention of a model, or of one that has none what its configuration names all the same.
pub(super) fn attention_or_none(model: &Model<'_>) -> AttentionConfig {
    model.find("attention").unwrap_or(AttentionConfig::new(1))
}

/// Rotary positions under the keys that both generations of transformers read.
pub(super) fn rope(c: &RotaryConfig, head_dim: usize, partial: f64) -> Value {
    let part =
        |dim: usize| exactly(dim as f64 / head_dim as f64, |part| (head_dim as f64 * part) as usize, dim);
    let part = c.dim.map_or(1.0, part);
    json!({
        "rope_theta": c.theta,
        "rope_scaling": c.scaling.as_ref().map(scaling),
        "partial_rotary_factor": (part != partial).then_some(part),
    })
}

fn scaling(scaling: &RotaryScaling) -> Value {
    match *scaling {
        RotaryScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RotaryScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RotaryScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => Value::Object(super::object(json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original_max_position_embeddings,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "attention_factor": attention_factor,
            "truncate": truncate,
        }))),
    }
}

/// Llama's MLP.
pub(super) fn mlp(c: &MlpConfig, d_model: usize) -> Value {
    json!({ "intermediate_size": c.hidden(d_model), "hidden_act": activation::name(c.activation) })
}

/// Mamba-2 under the keys `mamba_*`.
pub(super) fn mamba2(model: &Model<'_>) -> Value {
    let d = model.d_model();
    let c = model.find("mamba2").unwrap_or(Mamba2Config { headdim: 2 * d, ..Mamba2Config::default() });
    let inner = c.d_inner(d);
    let expand = if inner.is_multiple_of(d) {
        json!(inner / d)
    } else {
        json!(exactly(inner as f64 / d as f64, |expand| (expand * d as f64) as usize, inner))
    };
    json!({
        "mamba_expand": expand,
        "mamba_n_heads": c.n_heads(d),
        "mamba_d_head": c.headdim,
        "mamba_d_state": c.d_state,
        "mamba_d_conv": c.d_conv,
        "mamba_n_groups": c.ngroups,
        "mamba_chunk_size": c.chunk_size,
        "mamba_proj_bias": c.bias,
        "mamba_conv_bias": c.conv_bias,
        "time_step_limit": limits(&c),
    })
}

/// The limits of a step, if there are any; an infinite one in the form that transformers writes.
pub(super) fn limits(c: &Mamba2Config) -> Option<Value> {
    let (low, high) = c.dt_limit?;
    Some(json!([low, high.map_or_else(|| json!({ "__float__": "Infinity" }), Value::from)]))
}

/// A name a layer: by whether it attends.
pub(super) fn types<'a>(model: &Model<'_>, attends: &'a str, other: &'a str) -> Vec<&'a str> {
    model.each("attention", [attends, other])
}
