//! Zamba and Zamba2: Mamba layers, some of which a shared transformer block speaks to.

use std::collections::BTreeSet;

use semisep_attention::AttentionConfig;
use semisep_core::MlpConfig;
use semisep_mamba1::Mamba1Config;
use semisep_mamba2::Mamba2Config;
use serde_json::{Value, json};

use super::hybrids::mamba1;
use super::model::Model;
use super::parts::{attention_or_none, limits, types};
use super::{Dialect, Keys, all};
use crate::import::activation;

pub(super) const ZAMBA: Dialect = Dialect::new(
    "zamba",
    Some(("zamba", "ZambaForCausalLM")),
    &["mamba1", "attention + mlp + linear + mamba1"],
    |model| {
        let c: Mamba1Config = model.first("mamba1")?;
        let heads = json!({ "n_mamba_heads": c.n_mamba_heads, "hidden_mamba_act": "silu" });
        Ok(all([shared(model)?, mamba1(&c, model.d_model()), heads]))
    },
);

pub(super) const ZAMBA2: Dialect = Dialect::new(
    "zamba2",
    Some(("zamba2", "Zamba2ForCausalLM")),
    &["mamba2", "attention + mlp + linear + mamba2"],
    |model| {
        let (d, c): (usize, Mamba2Config) = (model.d_model(), model.first("mamba2")?);
        let (heads, mlp): (AttentionConfig, Option<MlpConfig>) =
            (attention_or_none(model), model.find("mlp"));
        let blocks: BTreeSet<&str> = model.shares("attention").collect();
        let rank = mlp.and_then(|mlp| mlp.adapter_rank).or(heads.adapter_rank);
        Ok(all([
            shared(model)?,
            json!({
                "mamba_expand": c.d_inner(d) / d,
                "n_mamba_heads": c.n_heads(d),
                "mamba_headdim": c.headdim,
                "mamba_d_state": c.d_state,
                "mamba_d_conv": c.d_conv,
                "mamba_ngroups": c.ngroups,
                "chunk_size": c.chunk_size,
                "add_bias_linear": c.bias,
                "time_step_limit": limits(&c),
                "num_mem_blocks": blocks.len().max(1),
                "hybrid_layer_ids": model.with("attention"),
                "adapter_rank": rank,
                "use_shared_attention_adapter": heads.adapter_rank.is_some(),
                "use_mem_rope": heads.rope.is_some(),
                "rope_theta": heads.rope.map(|rope| rope.theta),
                "use_long_context": false,
            }),
        ]))
    },
);

/// The block that layers share, and which layers these are.
fn shared(model: &Model<'_>) -> Keys {
    let d = model.d_model();
    let c: Option<AttentionConfig> = model.find("attention");
    let mlp: Option<MlpConfig> = model.find("mlp");
    let heads = c.map_or(Value::Null, |c| {
        json!({
            "num_attention_heads": c.n_heads,
            "num_key_value_heads": c.n_kv_heads(),
            "attention_head_dim": c.head_dim(d),
            "attention_hidden_size": 2 * d,
        })
    });
    Ok(all([
        heads,
        json!({
            "hidden_act": mlp.as_ref().map(|mlp| activation::name(mlp.activation)),
            "intermediate_size": mlp.map(|mlp| mlp.hidden(d)),
            "layers_block_type": types(model, "hybrid", "mamba"),
            "rms_norm_eps": model.eps(),
        }),
    ]))
}
