//! transformers' `ZambaForCausalLM` and `Zamba2ForCausalLM`: Mamba layers, some of which see, added to their input, what a
//! transformer block makes of the stream and the embedding. That block is one for all of them, or a few in turn.
//!
//! ```text
//! y = linear( mlp( norm( attention( norm [x | embedding] ))))         no residuals; linear is the layer's own
//! x ← x + mamba( norm (x + y) )
//! ```
//! Files hold a shared block below the first layer that uses it (or another in each layer, where transformers was told not to
//! tie weights), Zamba2's adapters of all layers with it, and in Zamba the
//! rows of Mamba's input map alternate: a channel's x, its z.

mod names;

use std::sync::Arc;

use semisep_attention::{AttentionConfig, ConcatEmbedding};
use semisep_core::{Activation, LinearMapConfig, MixerConfig, MlpConfig, NormConfig, NormKind, RotaryConfig};
use semisep_mamba1::Mamba1Config;
use semisep_mamba2::Mamba2Config;
use semisep_models::normal::{Architecture, Branch, Input, Layer, Merge, ModelConfig, Output, Stage};

use super::{Fields, Folder, Import, Importer, MAX_LAYERS, is_type, layout, residual};
use crate::Result;

/// `model_type` "zamba".
pub(super) const ZAMBA: Importer = Importer {
    family: "zamba",
    detects: |config| is_type(config, "zamba", "ZambaForCausalLM"),
    import: |folder| import(folder, Family::Zamba),
};

/// `model_type` "zamba2".
pub(super) const ZAMBA2: Importer = Importer {
    family: "zamba2",
    detects: |config| is_type(config, "zamba2", "Zamba2ForCausalLM"),
    import: |folder| import(folder, Family::Zamba2),
};

const EMBEDDING: &str = "model.embed_tokens.weight";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Zamba,
    Zamba2,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mamba,
    Hybrid,
}

/// The mixers of a model.
struct Parts {
    mamba: Arc<dyn MixerConfig>,
    attention: Arc<dyn MixerConfig>,
    mlp: Arc<dyn MixerConfig>,
    linear: Arc<dyn MixerConfig>,
}

fn import(folder: &Folder<'_>, family: Family) -> Result<Import> {
    let config = &folder.config;
    let mut notes = Vec::new();
    let (d_model, n_layer) = (config.size("hidden_size"), config.size_up_to("num_hidden_layers", MAX_LAYERS));
    let kinds = kinds(config, family, n_layer, &mut notes);
    let hidden = config.size_or("intermediate_size", 4 * d_model);
    let (heads, kv_heads, head_dim) = heads(config, family, d_model);
    let parts = Parts {
        mamba: match family {
            Family::Zamba => mamba1(config),
            Family::Zamba2 => mamba2(config, d_model),
        },
        attention: attention(config, family, d_model),
        mlp: mlp(config, family, hidden),
        linear: Arc::new(LinearMapConfig::default()),
    };
    if config.ok() {
        for mixer in [&parts.mamba, &parts.attention, &parts.mlp] {
            config.issues(mixer.check(d_model));
        }
    }
    let blocks = if family == Family::Zamba2 { config.size_or("num_mem_blocks", 1) } else { 1 };
    let hybrid: Vec<usize> = (0..n_layer).filter(|&i| kinds.get(i) == Some(&Kind::Hybrid)).collect();
    // The reference ties blocks by the switch that ties the embedding; a file tells what was done.
    let apart = match folder.checkpoint.is_empty() {
        true => config.flag("tie_word_embeddings") == Some(false),
        false => names::apart(folder.checkpoint, family == Family::Zamba2, &hybrid, blocks),
    };
    if apart {
        notes.push("the layers' transformer blocks are not shared: each has its own".into());
    }
    let blocks = if apart { hybrid.len() } else { blocks };
    let (tie_embeddings, note) = folder.tied(config.flag("tie_word_embeddings"), true, EMBEDDING);
    notes.extend(note);
    let model = ModelConfig {
        tie_embeddings,
        pad_vocab_size_multiple: 1,
        norm: NormConfig { kind: NormKind::Rms, eps: config.number("rms_norm_eps").unwrap_or(1e-5) },
        ..ModelConfig::new(d_model, config.size("vocab_size"))
    };
    folder.check_embedding(EMBEDDING, model.vocab_size, ("hidden_size", d_model));
    let layers = kinds.iter().enumerate().map(|(i, _)| {
        let block = hybrid.iter().position(|&h| h == i).map(|k| k % blocks);
        layer(&parts, block)
    });
    let sizes = names::Sizes {
        hidden,
        inner: inner(config, d_model),
        mamba_heads: config.size_or("n_mamba_heads", 2),
        attention: (heads.saturating_mul(head_dim), kv_heads.saturating_mul(head_dim)),
    };
    let names = match family {
        Family::Zamba => names::zamba(folder.checkpoint, &hybrid, blocks, &sizes),
        Family::Zamba2 => names::zamba2(folder.checkpoint, &hybrid, blocks, &sizes),
    };
    Ok(Import {
        family: if family == Family::Zamba { ZAMBA.family } else { ZAMBA2.family },
        architecture: Architecture { name: folder.name(), model, layers: layers.collect() },
        names: if tie_embeddings { names.tie("lm_head.weight", "backbone.embedding.weight") } else { names },
        notes,
    })
}

/// A Mamba layer, with the shared block of this number before it.
fn layer(parts: &Parts, block: Option<usize>) -> Layer {
    let mamba = residual(parts.mamba.clone(), "mixer", "norm");
    let Some(block) = block else {
        return Layer { block: "mamba".into(), stages: vec![mamba], share: None };
    };
    let aside = |mixer: &Arc<dyn MixerConfig>, path: &str, input| Branch {
        input,
        output: Output::Aside,
        ..Branch::new(mixer.clone(), path)
    };
    let attention =
        Branch { share: Some(format!("attn{block}")), ..aside(&parts.attention, "attn", Input::Stream) };
    let mlp = Branch {
        share: Some(format!("mlp{block}")),
        pre_norm: Some("norm_mlp".into()),
        ..aside(&parts.mlp, "mlp", Input::Aside)
    };
    let linear = aside(&parts.linear, "linear", Input::Aside);
    let before = [attention, mlp, linear].map(|b| Stage { branches: vec![b], merge: Merge::Sum });
    let branches = mamba.branches.into_iter().map(|b| Branch { input: Input::Both, ..b }).collect();
    let stages = before.into_iter().chain([Stage { branches, merge: Merge::Sum }]).collect();
    Layer { block: format!("hybrid{block}"), stages, share: None }
}

fn kinds(config: &Fields, family: Family, n_layer: usize, notes: &mut Vec<String>) -> Vec<Kind> {
    const KINDS: [(&str, Kind); 4] = [
        ("mamba", Kind::Mamba),
        ("linear_attention", Kind::Mamba),
        ("hybrid", Kind::Hybrid),
        ("attention+mamba", Kind::Hybrid),
    ];
    let key = config.first_of(&["layers_block_type", "layer_types"]);
    let mut kinds = layout::types(config, key, n_layer, &KINDS, notes)
        .unwrap_or_else(|| usual(config, family, n_layer, notes));
    // A list that is wrong has been reported.
    kinds.resize(n_layer, Kind::Mamba);
    if config.get("hybrid_layer_ids").is_some() {
        let said = layout::indices(config, "hybrid_layer_ids", n_layer, notes);
        let found = kinds.iter().enumerate().filter(|(_, k)| **k == Kind::Hybrid).map(|(i, _)| i);
        if config.ok() && !found.eq(said.iter().copied()) {
            notes.push("hybrid_layer_ids differs from layers_block_type, and has no effect".into());
        }
    }
    kinds
}

/// The layers of a configuration that does not list them.
fn usual(config: &Fields, family: Family, n_layer: usize, notes: &mut Vec<String>) -> Vec<Kind> {
    match family {
        Family::Zamba => {
            let rest = n_layer.saturating_sub(3);
            let keys = ("attn_layer_period", "attn_layer_offset");
            let chosen = layout::periodic(config, keys, (6, 4), rest, notes);
            let hybrid = |i: usize| i == 2 || (i > 2 && chosen.contains(&(i - 3)));
            (0..n_layer).map(|i| if hybrid(i) { Kind::Hybrid } else { Kind::Mamba }).collect()
        }
        Family::Zamba2 => {
            // That of Zamba2-2.7B.
            let hybrid = [6, 12, 18, 24, 30, 36, 42, 47, 51];
            if n_layer != 54 {
                let message =
                    "expected a kind for each layer (only models of 54 layers do without), found nothing";
                config.problem("layers_block_type", message);
            }
            (0..n_layer).map(|i| if hybrid.contains(&i) { Kind::Hybrid } else { Kind::Mamba }).collect()
        }
    }
}

fn inner(config: &Fields, d_model: usize) -> usize {
    config.size_or("mamba_expand", 2).saturating_mul(d_model)
}

fn mamba1(config: &Fields) -> Arc<dyn MixerConfig> {
    if let Some(other) = config.text("hidden_mamba_act").filter(|act| !matches!(*act, "silu" | "swish")) {
        config.problem("hidden_mamba_act", format!("expected \"silu\", found {other:?}"));
    }
    let auto = config.get("mamba_dt_rank").is_some_and(|rank| rank.as_str() == Some("auto"));
    Arc::new(Mamba1Config {
        d_state: config.size_or("mamba_d_state", 16),
        d_conv: config.size_or("mamba_d_conv", 4),
        expand: config.size_or("mamba_expand", 2),
        dt_rank: if auto { None } else { config.size_from("mamba_dt_rank", 1) },
        n_mamba_heads: config.size_or("n_mamba_heads", 2),
        bias: config.flag_or("mamba_proj_bias", false),
        conv_bias: config.flag_or("mamba_conv_bias", true),
        ..Mamba1Config::default()
    })
}

fn mamba2(config: &Fields, d_model: usize) -> Arc<dyn MixerConfig> {
    let (heads, width) = (config.size_or("n_mamba_heads", 8), inner(config, d_model));
    let headdim = (width / heads).max(1);
    if config.ok() && !width.is_multiple_of(heads) {
        let message = format!("{heads} does not divide mamba_expand x hidden_size = {width}");
        config.problem("n_mamba_heads", message);
    }
    if let Some(said) = config.size_from("mamba_headdim", 1).filter(|&said| config.ok() && said != headdim) {
        let message =
            format!("expected mamba_expand x hidden_size / n_mamba_heads = {headdim}, found {said}");
        config.problem("mamba_headdim", message);
    }
    Arc::new(Mamba2Config {
        d_state: config.size_or("mamba_d_state", 64),
        d_conv: config.size_or("mamba_d_conv", 4),
        expand: config.size_or("mamba_expand", 2),
        headdim,
        ngroups: config.size_or("mamba_ngroups", 1),
        chunk_size: config.size_or("chunk_size", 256),
        bias: config.flag_or("add_bias_linear", false),
        dt_limit: config.limits("time_step_limit"),
        ..Mamba2Config::default()
    })
}

/// Heads of queries, heads of keys, and the features of each.
fn heads(config: &Fields, family: Family, d_model: usize) -> (usize, usize, usize) {
    let heads = config.size_or("num_attention_heads", if family == Family::Zamba { 16 } else { 32 });
    let head_dim = config.size_or("attention_head_dim", (2 * d_model / heads).max(1));
    (heads, config.size_or("num_key_value_heads", heads), head_dim)
}

/// Over twice the width; scores are scaled as if heads were half as wide as they are.
fn attention(config: &Fields, family: Family, d_model: usize) -> Arc<dyn MixerConfig> {
    let (heads, kv_heads, head_dim) = heads(config, family, d_model);
    let width = 2 * d_model;
    if config.ok() && config.size_or("attention_hidden_size", width) != width {
        let found = config.size_or("attention_hidden_size", width);
        config.problem("attention_hidden_size", format!("expected 2 x hidden_size = {width}, found {found}"));
    }
    let zamba2 = family == Family::Zamba2;
    let adapters = zamba2 && config.flag_or("use_shared_attention_adapter", false);
    let rope = (zamba2 && config.flag_or("use_mem_rope", false)).then(|| {
        let theta = super::rope::rope(config, head_dim, 10_000.0, 1.0).theta;
        // Longer contexts turn more slowly: so says transformers 4, which has the base at the top; 5 does not, and reads it
        // as it is.
        let old = config.get("rope_parameters").is_none();
        let long = old && config.flag_or("use_long_context", false) && head_dim > 2;
        let factor = if long { 8f64.powf(head_dim as f64 / (head_dim as f64 - 2.0)) } else { 1.0 };
        RotaryConfig { dim: None, theta: theta * factor, interleaved: false, scaling: None }
    });
    Arc::new(AttentionConfig {
        n_kv_heads: Some(kv_heads),
        head_dim: Some(head_dim),
        scale: Some((head_dim as f64 / 2.0).powf(-0.5)),
        rope,
        concat_embedding: Some(ConcatEmbedding { norm_eps: config.number("rms_norm_eps").unwrap_or(1e-5) }),
        adapter_rank: adapters.then(|| config.size_or("adapter_rank", 128)),
        ..AttentionConfig::new(heads)
    })
}

fn mlp(config: &Fields, family: Family, hidden: usize) -> Arc<dyn MixerConfig> {
    let activation = match config.text("hidden_act").unwrap_or("gelu") {
        "gelu" => Activation::Gelu,
        "gelu_pytorch_tanh" | "gelu_new" => Activation::GeluTanh,
        "silu" | "swish" => Activation::Silu,
        "relu" => Activation::Relu,
        other => {
            config.problem("hidden_act", format!("expected \"gelu\", \"silu\" or \"relu\", found {other:?}"));
            Activation::Gelu
        }
    };
    let mlp = MlpConfig { d_intermediate: Some(hidden), activation, ..MlpConfig::default() };
    Arc::new(match family {
        Family::Zamba => MlpConfig { fused: false, ..mlp },
        Family::Zamba2 => MlpConfig {
            bias: config.flag_or("add_bias_linear", false),
            adapter_rank: Some(config.size_or("adapter_rank", 128)),
            ..mlp
        },
    })
}
