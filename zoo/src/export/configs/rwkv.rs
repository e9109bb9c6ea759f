//! RWKV 4 to 6 as Hugging Face has them, 6 and 7 as flash-linear-attention has them.

use semisep_rwkv::{Rwkv4Config, Rwkv5Config, Rwkv6Config, Rwkv7Config, RwkvChannelMixConfig};
use serde_json::{Value, json};

use super::model::{Model, exactly};
use super::{Dialect, Keys, all};

pub(super) const RWKV4_HF: Dialect =
    Dialect::new("rwkv4-hf", Some(("rwkv", "RwkvForCausalLM")), &["rwkv4 + rwkv_channel_mix"], |model| {
        let c: Rwkv4Config = model.first("rwkv4")?;
        hugging_face(model, c.dim_att)
    });

pub(super) const RWKV5_HF: Dialect =
    Dialect::new("rwkv5-hf", Some(("rwkv5", "Rwkv5ForCausalLM")), &["rwkv5 + rwkv_channel_mix"], |model| {
        let c: Rwkv5Config = model.first("rwkv5")?;
        Ok(all([hugging_face(model, c.dim_att)?, heads(model, c.dim_att, c.head_size, c.norm_eps)]))
    });

pub(super) const RWKV6_HF: Dialect =
    Dialect::new("rwkv6-hf", Some(("rwkv6", "Rwkv6ForCausalLM")), &["rwkv6 + rwkv_channel_mix"], |model| {
        let c: Rwkv6Config = model.first("rwkv6")?;
        Ok(all([
            hugging_face(model, c.dim_att)?,
            heads(model, c.dim_att, c.head_size, c.norm_eps),
            json!({ "time_mix_extra_dim": c.d_mix_lora, "time_decay_extra_dim": c.d_decay_lora }),
        ]))
    });

fn hugging_face(model: &Model<'_>, dim_att: Option<usize>) -> Keys {
    Ok(json!({
        "attention_hidden_size": dim_att.unwrap_or(model.d_model()),
        "intermediate_size": dim_ffn(model)?,
        "layer_norm_epsilon": model.eps(),
        "rescale_every": model.architecture.model.rescale_every,
    }))
}

fn dim_ffn(model: &Model<'_>) -> Result<usize, String> {
    Ok(model.first::<RwkvChannelMixConfig>("rwkv_channel_mix")?.dim_ffn(model.d_model()))
}

/// Heads, and what their norm's input is divided by.
fn heads(model: &Model<'_>, dim_att: Option<usize>, head_size: usize, norm_eps: f64) -> Value {
    let width = dim_att.unwrap_or(model.d_model());
    json!({
        "head_size": head_size,
        "head_size_divisor": exactly((norm_eps / 1e-5).sqrt(), |by| 1e-5 * by * by, norm_eps),
        "num_attention_heads": width / head_size.max(1),
    })
}

pub(super) const RWKV6_FLA: Dialect =
    Dialect::new("rwkv6-fla", Some(("rwkv6", "RWKV6ForCausalLM")), &["rwkv6 + rwkv_channel_mix"], |model| {
        let (c, d): (Rwkv6Config, usize) = (model.first("rwkv6")?, model.d_model());
        let keys = c.dim_att.unwrap_or(d);
        let share = |width: usize| exactly(width as f64 / d as f64, |part| (d as f64 * part) as usize, width);
        Ok(all([
            fla(model)?,
            json!({
                "expand_k": share(keys),
                "expand_v": share(c.dim_value.unwrap_or(keys)),
                "num_heads": keys / c.head_size.max(1),
                "proj_low_rank_dim": c.d_mix_lora,
                "gate_low_rank_dim": c.d_decay_lora,
            }),
        ]))
    });

pub(super) const RWKV7_FLA: Dialect =
    Dialect::new("rwkv7-fla", Some(("rwkv7", "RWKV7ForCausalLM")), &["rwkv7 + rwkv_channel_mix"], |model| {
        let d = model.d_model();
        let mixers: Vec<Rwkv7Config> = model.all_of("rwkv7");
        // The first layer has no residual of values.
        let Some(c) = mixers.last() else { return Err("it has no layer of rwkv7".into()) };
        let [decay, a, value, gate] = c.ranks(d);
        Ok(all([
            fla(model)?,
            json!({
                "head_dim": c.head_size,
                "num_heads": d / c.head_size.max(1),
                "decay_low_rank_dim": decay,
                "a_low_rank_dim": a,
                "v_low_rank_dim": value,
                "gate_low_rank_dim": gate,
                "value_dim": mixers.iter().map(|c| c.dim_value.unwrap_or(d)).collect::<Vec<_>>(),
                // The kernel with the fused norm adds more under its root.
                "fuse_norm": c.kk_eps == 1e-3,
            }),
        ]))
    });

fn fla(model: &Model<'_>) -> Keys {
    Ok(json!({
        "hidden_act": "sqrelu",
        "intermediate_size": dim_ffn(model)?,
        "norm_eps": model.eps(),
        "norm_bias": true,
        "norm_first": model.architecture.model.embedding_norm,
    }))
}
