//! Mamba and Mamba-2: state-spaces' `MambaConfig` and transformers'.

use semisep_core::{MlpConfig, NormKind};
use semisep_mamba1::Mamba1Config;
use semisep_mamba2::Mamba2Config;
use serde_json::{Map, Value, json};

use super::model::{Model, keys};
use super::parts::limits;
use super::{Dialect, Keys, all, object};

pub(super) const STATE_SPACES: Dialect = Dialect::new(
    "state-spaces",
    None,
    &["mamba1", "mamba2", "attention", "mamba1 + mlp", "mamba2 + mlp", "attention + mlp"],
    |model| {
        let whole = &model.architecture.model;
        let mlp: Option<MlpConfig> = model.find("mlp");
        Ok(json!({
            "d_model": whole.d_model,
            "d_intermediate": mlp.map_or(0, |mlp| mlp.hidden(whole.d_model)),
            "n_layer": model.n_layer(),
            "vocab_size": whole.vocab_size,
            "ssm_cfg": ssm_cfg(model)?,
            "attn_layer_idx": model.with("attention"),
            "attn_cfg": attn_cfg(model),
            "rms_norm": whole.norm.kind == NormKind::Rms,
            "residual_in_fp32": whole.residual_in_fp32,
            "fused_add_norm": true,
            "pad_vocab_size_multiple": whole.pad_vocab_size_multiple,
            "tie_embeddings": whole.tie_embeddings,
        }))
    },
);

/// The same key in both.
fn same<const N: usize>(names: [&'static str; N]) -> [(&'static str, &'static str); N] {
    names.map(|name| (name, name))
}

fn ssm_cfg(model: &Model<'_>) -> Keys {
    if let Ok(raw) = model.raw("mamba1") {
        let names = same(["d_state", "d_conv", "expand", "dt_rank", "bias", "conv_bias"]);
        return Ok(all([json!({ "layer": "Mamba1" }), keys(&raw, &names)]));
    }
    let Ok(raw) = model.raw("mamba2") else { return Ok(json!({})) };
    let names = same([
        "d_state",
        "d_conv",
        "expand",
        "d_ssm",
        "headdim",
        "ngroups",
        "chunk_size",
        "bias",
        "conv_bias",
        "rmsnorm",
        "norm_before_gate",
        "D_has_hdim",
    ]);
    let c: Mamba2Config = model.first("mamba2")?;
    Ok(all([json!({ "layer": "Mamba2", "dt_limit": limits(&c) }), keys(&raw, &names)]))
}

fn attn_cfg(model: &Model<'_>) -> Value {
    let raw = model.raw("attention").unwrap_or_default();
    let names = [
        ("n_heads", "num_heads"),
        ("n_kv_heads", "num_heads_kv"),
        ("head_dim", "head_dim"),
        ("d_conv", "d_conv"),
        ("qkv_bias", "qkv_proj_bias"),
        ("out_bias", "out_proj_bias"),
        ("scale", "softmax_scale"),
        ("causal", "causal"),
    ];
    let rope = raw.get("rope").map(|rope| {
        let head_dim = super::parts::attention_or_none(model).head_dim(model.d_model());
        let names = [
            ("dim", "rotary_emb_dim"),
            ("theta", "rotary_emb_base"),
            ("interleaved", "rotary_emb_interleaved"),
        ];
        // Without a word of it nothing turns.
        all([json!({ "rotary_emb_dim": head_dim }), keys(&object(rope.clone()), &names)])
    });
    all([keys(&raw, &names), rope.unwrap_or_default()])
}

pub(super) const MAMBA: Dialect =
    Dialect::new("mamba", Some(("mamba", "MambaForCausalLM")), &["mamba1"], mamba1);

pub(super) const FALCON_MAMBA: Dialect =
    Dialect::new("falcon_mamba", Some(("falcon_mamba", "FalconMambaForCausalLM")), &["mamba1"], |model| {
        let c: Mamba1Config = model.first("mamba1")?;
        Ok(all([mamba1(model)?, json!({ "mixer_rms_eps": c.norms.map(|norms| norms.eps) })]))
    });

fn mamba1(model: &Model<'_>) -> Keys {
    let (c, raw): (Mamba1Config, Map<String, Value>) = (model.first("mamba1")?, model.raw("mamba1")?);
    let names = [
        ("d_state", "state_size"),
        ("d_conv", "conv_kernel"),
        ("expand", "expand"),
        ("bias", "use_bias"),
        ("conv_bias", "use_conv_bias"),
    ];
    let sizes = json!({
        "intermediate_size": c.d_inner(model.d_model()),
        "time_step_rank": c.dt_rank.map_or("auto".into(), Value::from),
    });
    Ok(all([keys(&raw, &names), sizes, hugging_face(model)]))
}

pub(super) const MAMBA2: Dialect =
    Dialect::new("mamba2", Some(("mamba2", "Mamba2ForCausalLM")), &["mamba2"], |model| {
        let (c, raw): (Mamba2Config, Map<String, Value>) = (model.first("mamba2")?, model.raw("mamba2")?);
        let names = [
            ("d_state", "state_size"),
            ("d_conv", "conv_kernel"),
            ("expand", "expand"),
            ("headdim", "head_dim"),
            ("ngroups", "n_groups"),
            ("chunk_size", "chunk_size"),
            ("bias", "use_bias"),
            ("conv_bias", "use_conv_bias"),
        ];
        let sizes = json!({ "num_heads": c.n_heads(model.d_model()), "time_step_limit": limits(&c) });
        Ok(all([keys(&raw, &names), sizes, hugging_face(model)]))
    });

fn hugging_face(model: &Model<'_>) -> Value {
    json!({
        "hidden_act": "silu",
        "layer_norm_epsilon": model.eps(),
        "residual_in_fp32": model.architecture.model.residual_in_fp32,
    })
}
