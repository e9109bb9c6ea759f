//! The layout of flash-linear-attention: RWKV-6 and RWKV-7 (fla-hub, RWKV/RWKV7-Goose-*).

use std::sync::Arc;

use semisep_rwkv::{Layout, Rwkv6Config, Rwkv7Config, RwkvChannelMixConfig};

use super::{architecture, block, model, size};
use crate::Result;
use crate::import::{Folder, Import, Importer, MAX_LAYERS, Names, is_type, number};

/// RWKV-6.
pub(in crate::import) const RWKV6_FLA: Importer = Importer {
    family: "rwkv6-fla",
    detects: |config| {
        is_type(config, "rwkv6", "RWKV6ForCausalLM") && config.get("proj_low_rank_dim").is_some()
    },
    import: rwkv6,
};

/// RWKV-7.
pub(in crate::import) const RWKV7_FLA: Importer = Importer {
    family: "rwkv7-fla",
    detects: |config| is_type(config, "rwkv7", "RWKV7ForCausalLM"),
    import: rwkv7,
};

const EMBEDDING: &str = "model.embeddings.weight";

/// What both versions say of the model.
struct Common {
    d_model: usize,
    n_layer: usize,
    eps: f64,
    channel: RwkvChannelMixConfig,
}

fn common(folder: &Folder<'_>, version: usize, hidden_ratio: f64) -> Common {
    let config = &folder.config;
    let (d_model, n_layer) = (config.size("hidden_size"), config.size_up_to("num_hidden_layers", MAX_LAYERS));
    if let Some(other) = config.text("hidden_act").filter(|act| *act != "sqrelu") {
        config.problem("hidden_act", format!("expected \"sqrelu\", found {other:?}"));
    }
    if !config.flag_or("norm_bias", true) {
        config.problem("norm_bias", "expected true: layer norms without a bias are not supported");
    }
    if config.get("attn").is_some() {
        config.problem("attn", "expected null: attention layers among RWKV layers are not supported");
    }
    let ratio = config.number("hidden_ratio").unwrap_or(hidden_ratio);
    let suggested = ((d_model as f64 * ratio) as usize).next_multiple_of(32);
    let dim_ffn = Some(config.size_or("intermediate_size", suggested));
    let eps = config.number("norm_eps").unwrap_or(1e-5);
    Common {
        d_model,
        n_layer,
        eps,
        channel: RwkvChannelMixConfig { dim_ffn, ..RwkvChannelMixConfig::new(version) },
    }
}

fn finish(
    folder: &Folder<'_>,
    family: &'static str,
    common: &Common,
    layers: Vec<semisep_models::normal::Layer>,
    names: Names,
) -> Import {
    let config = &folder.config;
    let vocab_size = config.size("vocab_size");
    folder.check_embedding(EMBEDDING, vocab_size, ("hidden_size", common.d_model));
    let (tied, note) = folder.tied(config.flag("tie_word_embeddings"), false, EMBEDDING);
    let mut model = model(common.d_model, vocab_size, common.eps);
    model.embedding_norm = config.flag_or("norm_first", true);
    model.tie_embeddings = tied;
    Import {
        family,
        architecture: architecture(folder, model, layers),
        names: if tied { names.tie("lm_head.weight", "backbone.embedding.weight") } else { names },
        notes: note.into_iter().collect(),
    }
}

fn rwkv6(folder: &Folder<'_>) -> Result<Import> {
    let config = &folder.config;
    let common = common(folder, 6, 3.5);
    let share = |key, default| (common.d_model as f64 * config.number(key).unwrap_or(default)) as usize;
    let (dim_att, heads) = (share("expand_k", 0.5), config.size_or("num_heads", 4));
    if config.ok() && !dim_att.is_multiple_of(heads) {
        config.problem(
            "num_heads",
            format!("expected a divisor of the width of keys {dim_att}, found {heads}"),
        );
    }
    let mixer = Arc::new(Rwkv6Config {
        head_size: dim_att / heads,
        dim_att: Some(dim_att),
        dim_value: Some(share("expand_v", 1.0)),
        d_mix_lora: config.size_or("proj_low_rank_dim", 32),
        // fla calls the rank of the decay that of the gate, which has none.
        d_decay_lora: config.size_or("gate_low_rank_dim", 64),
        norm_eps: common.eps,
        layout: Layout::Fla,
        ..Rwkv6Config::default()
    });
    let layers = (0..common.n_layer).map(|_| block("rwkv6", mixer.clone(), &common.channel)).collect();
    let names = shared_names()
        .rename("model.layers.*.attn.x_proj.0.mu", "backbone.layers.*.mixer.time_maa_x")
        .rename("model.layers.*.attn.w_proj.linear.lora.2.bias", "backbone.layers.*.mixer.time_decay")
        .rename("model.layers.*.attn.bonus", "backbone.layers.*.mixer.time_faaaa")
        .rename("model.layers.*.attn.r_proj.linear", "backbone.layers.*.mixer.receptance")
        .rename("model.layers.*.attn.k_proj.linear", "backbone.layers.*.mixer.key")
        .rename("model.layers.*.attn.v_proj.linear", "backbone.layers.*.mixer.value")
        .rename("model.layers.*.attn.g_proj.linear", "backbone.layers.*.mixer.gate")
        .rename("model.layers.*.ffn.key.mu", "backbone.layers.*.mlp.time_maa_k")
        .rename("model.layers.*.ffn.receptance.mu", "backbone.layers.*.mlp.time_maa_r")
        .rename("model.layers.*.ffn.key.linear", "backbone.layers.*.mlp.key")
        .rename("model.layers.*.ffn.receptance.linear", "backbone.layers.*.mlp.receptance");
    Ok(finish(folder, RWKV6_FLA.family, &common, layers, rest(names)))
}

fn rwkv7(folder: &Folder<'_>) -> Result<Import> {
    let config = &folder.config;
    let common = common(folder, 7, 4.0);
    let head_size = match config.size_from("head_dim", 1) {
        Some(size) => size,
        None => (common.d_model / config.size_or("num_heads", common.d_model.div_ceil(64))).max(1),
    };
    // Ranks of null are worked out by fla, in ways that have changed: the tensors know.
    let rank = |layer: usize, name: &str, key: &str| match folder.checkpoint.is_empty() {
        true => config.size_from(key, 1),
        false => Some(size(folder, &format!("model.layers.{layer}.attn.{name}.lora.0.weight"), 0)),
    };
    let values = config.get("value_dim");
    let dim_value = |layer: usize| {
        let value = values
            .map(|v| v.as_array().map_or(v, |list| list.get(layer).unwrap_or(&serde_json::Value::Null)));
        let width = value.map(|v| number(v).filter(|n| n.fract() == 0.0 && (1.0..=1e7).contains(n)));
        match width {
            Some(None) => {
                let message = "expected a whole number, or one a layer, found something else";
                config.problem("value_dim", message);
                None
            }
            width => width.flatten().map(|n| n as usize),
        }
    };
    let ranks = [
        rank(0, "w_lora", "decay_low_rank_dim"),
        rank(0, "a_lora", "a_low_rank_dim"),
        rank(0, "g_lora", "gate_low_rank_dim"),
    ];
    let d_mv_lora = if common.n_layer > 1 { rank(1, "v_lora", "v_low_rank_dim") } else { None };
    let layers = (0..common.n_layer).map(|i| {
        let mixer = Rwkv7Config {
            head_size,
            dim_value: dim_value(i),
            d_decay_lora: ranks[0],
            d_aaa_lora: ranks[1],
            d_mv_lora,
            d_gate_lora: ranks[2],
            value_residual: i > 0,
            norm_eps: head_size as f64 * common.eps,
            // fla's fused l2_norm adds 1e-6 under the root; torch's normalize divides by 1e-12 at least.
            kk_eps: if config.flag_or("fuse_norm", true) { 1e-3 } else { 1e-12 },
            layout: Layout::Fla,
            ..Rwkv7Config::default()
        };
        block(if i == 0 { "rwkv7_first" } else { "rwkv7" }, Arc::new(mixer), &common.channel)
    });
    let layers = layers.collect();
    let mixes = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"];
    let names =
        mixes.iter().fold(shared_names(), |names, x| names.ones(format!("model.layers.*.attn.{x}"), 2));
    let names = names
        .rename("model.layers.*.attn.w_lora.lora.2.bias", "backbone.layers.*.mixer.w0")
        .rename("model.layers.*.attn.a_lora.lora.2.bias", "backbone.layers.*.mixer.a0")
        .rename("model.layers.*.attn.v_lora.lora.2.bias", "backbone.layers.*.mixer.v0")
        .rename("model.layers.*.attn.r_proj", "backbone.layers.*.mixer.receptance")
        .rename("model.layers.*.attn.k_proj", "backbone.layers.*.mixer.key")
        .rename("model.layers.*.attn.v_proj", "backbone.layers.*.mixer.value");
    Ok(finish(folder, RWKV7_FLA.family, &common, layers, rest(names)))
}

/// Rules of both versions that come first.
fn shared_names() -> Names {
    Names::new()
        .rename("model.embeddings", "backbone.embedding")
        .rename("model.norm", "backbone.norm_f")
        .rename("model.layers.0.pre_norm", "backbone.embedding_norm")
        .rename("model.layers.*.attn_norm", "backbone.layers.*.norm")
        .rename("model.layers.*.ffn_norm", "backbone.layers.*.norm2")
        .rename("model.layers.*.attn.o_proj", "backbone.layers.*.mixer.output")
        .rename("model.layers.*.attn.g_norm", "backbone.layers.*.mixer.ln_x")
}

/// Rules of both versions for what is left.
fn rest(names: Names) -> Names {
    names
        .rename("model.layers.*.attn", "backbone.layers.*.mixer")
        .rename("model.layers.*.ffn", "backbone.layers.*.mlp")
}
