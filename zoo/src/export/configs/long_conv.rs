//! Long convolutions: HyenaDNA in both layouts, StripedHyena.

use semisep_attention::AttentionConfig;
use semisep_core::MlpConfig;
use semisep_hyena::{HyenaConfig, StripedHyenaConfig};
use serde_json::{Value, json};

use super::model::Model;
use super::{Dialect, all};
use crate::import::activation;

pub(super) const HYENADNA: Dialect = Dialect::new("hyenadna", None, &["hyena + mlp"], |model| {
    let c: HyenaConfig = model.first("hyena")?;
    Ok(all([
        sizes(model),
        json!({
            "tie_embeddings": model.architecture.model.tie_embeddings,
            "layer": {
                "_name_": "hyena",
                "l_max": c.l_max,
                "order": c.order,
                "filter_order": c.filter_order,
                "emb_dim": c.emb_dim,
                "num_inner_mlps": c.num_inner_mlps,
                "w": c.w,
                "train_freq": c.train_freq,
                "short_filter_order": c.short_filter_order,
                "modulate": c.modulate,
                "shift": c.shift,
                "fast_decay_pct": c.fast_decay_pct,
                "slow_decay_pct": c.slow_decay_pct,
                "target": c.target,
            },
        }),
    ]))
});

pub(super) const HYENADNA_HF: Dialect =
    Dialect::new("hyenadna-hf", Some(("hyenadna", "HyenaDNAForCausalLM")), &["hyena + mlp"], |model| {
        let c: HyenaConfig = model.first("hyena")?;
        Ok(all([
            sizes(model),
            json!({
                "max_seq_len": c.l_max,
                "hyena_order": c.order,
                "filter_order": c.filter_order,
                "emb_dim": c.emb_dim,
                "num_inner_mlps": c.num_inner_mlps,
                "activation_freq": c.w,
                "train_freq": c.train_freq,
                "short_filter_order": c.short_filter_order,
                "use_bias": true,
            }),
        ]))
    });

/// What both layouts name alike.
fn sizes(model: &Model<'_>) -> Value {
    let whole = &model.architecture.model;
    let mlp: Option<MlpConfig> = model.find("mlp");
    json!({
        "d_model": whole.d_model,
        "n_layer": model.n_layer(),
        "d_inner": mlp.map(|mlp| mlp.hidden(whole.d_model)),
        "vocab_size": whole.vocab_size,
        "pad_vocab_size_multiple": whole.pad_vocab_size_multiple,
        "layer_norm_epsilon": whole.norm.eps,
        "residual_in_fp32": whole.residual_in_fp32,
    })
}

pub(super) const STRIPED_HYENA: Dialect = Dialect::new(
    "stripedhyena",
    Some(("stripedhyena", "StripedHyenaModelForCausalLM")),
    &["stripedhyena + mlp", "attention + mlp"],
    |model| {
        let whole = &model.architecture.model;
        let mlp: MlpConfig = model.first("mlp")?;
        let (heads, c): (Option<AttentionConfig>, Option<StripedHyenaConfig>) =
            (model.find("attention"), model.find("stripedhyena"));
        let filters = c.unwrap_or_default();
        let number = heads.as_ref().map_or(filters.num_attention_heads, |heads| heads.n_heads);
        let groups = heads.as_ref().map_or(1, |heads| heads.n_heads / heads.n_kv_heads().max(1));
        let theta = heads.as_ref().and_then(|heads| Some(heads.rope?.theta));
        Ok(json!({
            "num_layers": model.n_layer(),
            "attn_layer_idxs": model.with("attention"),
            "hyena_layer_idxs": model.with("stripedhyena"),
            "num_attention_heads": number,
            "proj_groups": groups,
            "rotary_emb_base": theta,
            "qkv_proj_bias": heads.as_ref().map(|heads| heads.qkv_bias),
            "mha_out_proj_bias": heads.as_ref().map(|heads| heads.out_bias),
            "state_size": filters.state_size,
            "hyena_filter_groups": filters.hyena_filter_groups,
            "short_filter_length": filters.short_filter_length,
            "short_filter_bias": filters.short_filter_bias,
            "column_split_hyena": filters.column_split_hyena,
            "inner_mlp_size": mlp.hidden(whole.d_model),
            "mlp_activation": activation::name(mlp.activation),
            "eps": whole.norm.eps,
            "tie_embeddings": whole.tie_embeddings,
            "final_norm": true,
        }))
    },
);
