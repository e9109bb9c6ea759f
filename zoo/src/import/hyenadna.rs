//! HyenaDNA, in its own layout (`layer = {"_name_": "hyena", ...}`) and transformers' (`HyenaDNAForCausalLM`).
//!
//! The two differ in the names of the options and in the prefix of the tensors. The reference's `local_order` and
//! `use_bias` have no effect there, and none here; its dropouts and learning rates concern training alone.

use std::sync::Arc;

use semisep_core::{Activation, MixerConfig, MlpConfig, NormConfig, NormKind};
use semisep_hyena::HyenaConfig;
use semisep_models::normal::{Architecture, ModelConfig};

use super::{Fields, Folder, Import, Importer, MAX_LAYERS, Names, is_type, layer, residual};
use crate::Result;

/// The original layout.
pub(super) const ORIGINAL: Importer = Importer {
    family: "hyenadna",
    detects: |config| {
        let layer = config.get("layer").and_then(|layer| layer.as_object());
        config.get("model_type").is_none()
            && layer.is_some_and(|layer| layer.get("_name_").is_some_and(|name| name == "hyena"))
    },
    import: |folder| {
        let config = &folder.config;
        if !config.indices("attn_layer_idx", MAX_LAYERS).is_empty() {
            config.problem("attn_layer_idx", "expected no attention layers (not supported here), found some");
        }
        let mixer = original(folder, &config.section("layer"));
        import(folder, ORIGINAL.family, mixer, config.flag_or("tie_embeddings", true))
    },
};

/// `model_type` "hyenadna".
pub(super) const HF: Importer = Importer {
    family: "hyenadna-hf",
    detects: |config| is_type(config, "hyenadna", "HyenaDNAForCausalLM"),
    import: |folder| {
        let mixer = hf(folder);
        import(folder, HF.family, mixer, folder.config.flag_or("tie_word_embeddings", false))
    },
};

/// What precedes `backbone` in the names of a checkpoint; Lightning's files have `model`.
const PREFIXES: [&str; 3] = ["", "model.", "hyena."];

fn import(folder: &Folder<'_>, family: &'static str, mixer: HyenaConfig, tie: bool) -> Result<Import> {
    let config = &folder.config;
    let (d_model, n_layer) = (config.size("d_model"), config.size_up_to("n_layer", MAX_LAYERS));
    let mlp = MlpConfig {
        d_intermediate: config.size_from("d_inner", 1),
        gated: false,
        activation: Activation::GeluTanh,
        bias: true,
        ..MlpConfig::default()
    };
    if config.ok() {
        config.issues(mixer.check(d_model));
    }
    let embedding = format!("{}backbone.embeddings.word_embeddings.weight", prefix(folder));
    let (tie_embeddings, note) = folder.tied(Some(tie), tie, &embedding);
    let vocab_size = config.size("vocab_size");
    let model = ModelConfig {
        pad_vocab_size_multiple: config.size_or("pad_vocab_size_multiple", 8),
        tie_embeddings,
        norm: NormConfig { kind: NormKind::Layer, eps: config.number("layer_norm_epsilon").unwrap_or(1e-5) },
        residual_in_fp32: config.flag_or("residual_in_fp32", true),
        ..ModelConfig::new(d_model, vocab_size)
    };
    folder.check_embedding(&embedding, model.padded_vocab(), ("d_model", d_model));
    let names = names(mixer.modulate, if family == HF.family { "hyena." } else { "" });
    let (mixer, mlp): (Arc<dyn MixerConfig>, Arc<dyn MixerConfig>) = (Arc::new(mixer), Arc::new(mlp));
    let stages = || vec![residual(mixer.clone(), "mixer", "norm1"), residual(mlp.clone(), "mlp", "norm2")];
    let layers = (0..n_layer).map(|_| layer("hyena", stages())).collect();
    Ok(Import {
        family,
        architecture: Architecture { name: folder.name(), model, layers },
        names: if tie_embeddings { names.tie("lm_head.weight", "backbone.embedding.weight") } else { names },
        notes: note.into_iter().collect(),
    })
}

fn prefix(folder: &Folder<'_>) -> &'static str {
    let stored =
        |p: &&str| folder.checkpoint.get(&format!("{p}backbone.embeddings.word_embeddings.weight")).is_some();
    PREFIXES.into_iter().find(stored).unwrap_or_default()
}

/// Positions that the filters were stored for.
fn positions(folder: &Folder<'_>) -> Option<usize> {
    let layer = |inner: &str| {
        let name = format!("{}backbone.layers.0.mixer.{inner}filter_fn.pos_emb.z", prefix(folder));
        folder.checkpoint.get(&name)
    };
    layer("").or_else(|| layer("layer."))?.shape.get(1).copied()
}

/// The longest sequence: that of the stored positions, of which the configuration may say otherwise (fine-tuned models
/// keep the configuration they came from).
fn l_max(folder: &Folder<'_>, said: usize) -> usize {
    positions(folder).filter(|&stored| stored > 0).unwrap_or(said)
}

fn original(folder: &Folder<'_>, layer: &Fields) -> HyenaConfig {
    let default = HyenaConfig::new(l_max(folder, layer.size("l_max")));
    layer.ignore(&[
        "_name_",
        "local_order",
        "lr",
        "wd",
        "lr_pos_emb",
        "dropout",
        "filter_dropout",
        "modulation_lr",
        "bias",
        "normalized",
        "fused_fft_conv",
    ]);
    if layer.flag_or("normalized", false) {
        layer.problem("normalized", "expected false (normalised filters are not supported), found true");
    }
    let mixer = HyenaConfig {
        order: layer.size_or("order", default.order),
        filter_order: layer.size_or("filter_order", default.filter_order),
        emb_dim: layer.size_or("emb_dim", default.emb_dim),
        num_inner_mlps: layer.size_from("num_inner_mlps", 0).unwrap_or(default.num_inner_mlps),
        w: layer.number("w").unwrap_or(default.w),
        train_freq: layer.flag_or("train_freq", default.train_freq),
        short_filter_order: layer.size_or("short_filter_order", default.short_filter_order),
        modulate: layer.flag_or("modulate", default.modulate),
        shift: layer.number("shift").unwrap_or(default.shift),
        fast_decay_pct: layer.number("fast_decay_pct").unwrap_or(default.fast_decay_pct),
        slow_decay_pct: layer.number("slow_decay_pct").unwrap_or(default.slow_decay_pct),
        target: layer.number("target").unwrap_or(default.target),
        ..default
    };
    layer.refuse_others();
    mixer
}

fn hf(folder: &Folder<'_>) -> HyenaConfig {
    let config = &folder.config;
    let default = HyenaConfig::new(l_max(folder, config.size("max_seq_len")));
    HyenaConfig {
        order: config.size_or("hyena_order", default.order),
        filter_order: config.size_or("filter_order", default.filter_order),
        emb_dim: config.size_or("emb_dim", default.emb_dim),
        num_inner_mlps: config.size_from("num_inner_mlps", 0).unwrap_or(default.num_inner_mlps),
        w: config.number("activation_freq").unwrap_or(default.w),
        train_freq: config.flag_or("train_freq", default.train_freq),
        short_filter_order: config.size_or("short_filter_order", default.short_filter_order),
        ..default
    }
}

/// All sines share the frequency that is stored first: the names of the other copies.
macro_rules! copies {
    ($($stem:literal),*) => {
        [$(
            concat!($stem, ".filter_fn.implicit_filter.3.freq"),
            concat!($stem, ".filter_fn.implicit_filter.5.freq"),
            concat!($stem, ".filter_fn.implicit_filter.7.freq"),
            concat!($stem, ".filter_fn.implicit_filter.9.freq"),
            concat!($stem, ".filter_fn.implicit_filter.11.freq"),
            concat!($stem, ".filter_fn.implicit_filter.13.freq"),
        )*]
    };
}

/// Models trained with activation checkpointing have a further `layer` in their names.
fn names(modulate: bool, first: &str) -> Names {
    let copies = copies![
        "*.layers.*.mixer",
        "*.*.layers.*.mixer",
        "*.layers.*.mixer.layer",
        "*.*.layers.*.mixer.layer"
    ];
    let window = [
        "*.layers.*.mixer.filter_fn.pos_emb.t",
        "*.layers.*.mixer.filter_fn.modulation.deltas",
        "*.*.layers.*.mixer.filter_fn.pos_emb.t",
        "*.*.layers.*.mixer.filter_fn.modulation.deltas",
    ];
    let names = copies.into_iter().fold(prefixed(first), Names::ignore);
    if modulate { names } else { window.into_iter().fold(names, Names::ignore) }
}

/// The prefix and the place of the parts that the family writes come first.
fn prefixed(first: &str) -> Names {
    let mut names = Names::new();
    let others = PREFIXES.into_iter().filter(|prefix| *prefix != first);
    for prefix in [first].into_iter().chain(others) {
        let backbone = format!("{prefix}backbone");
        for part in ["mixer", "mlp"] {
            let (from, to) = (format!("{backbone}.layers.*.{part}"), format!("backbone.layers.*.{part}"));
            for map in PARTS {
                names = names.rename(format!("{from}.{map}"), format!("{to}.{map}"));
            }
            names = names.rename(format!("{from}.layer"), to);
        }
        names = names
            .rename(format!("{backbone}.embeddings.word_embeddings"), "backbone.embedding")
            .rename(format!("{backbone}.ln_f"), "backbone.norm_f")
            .rename(backbone, "backbone");
    }
    names.rename("lm_head", "lm_head").rename("model.lm_head", "lm_head")
}

/// What is in mixers and MLPs.
const PARTS: [&str; 6] = ["in_proj", "out_proj", "short_filter", "filter_fn", "fc1", "fc2"];
