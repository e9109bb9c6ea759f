//! transformers' `xLSTMForCausalLM` (NX-AI/xLSTM-7b): mLSTM layers, each with a gated MLP.
//!
//! Kernels, chunk sizes and modes of the reference compute the same function; they have no effect here.

use std::sync::Arc;

use semisep_core::{MixerConfig, MlpConfig, NormConfig, NormKind};
use semisep_models::normal::{Architecture, ModelConfig};
use semisep_xlstm::MlstmConfig;

use super::{Fields, Folder, Import, Importer, MAX_LAYERS, Names, Piece, is_type, layer, residual};
use crate::Result;

/// `model_type` "xlstm".
pub(super) const XLSTM: Importer =
    Importer { family: "xlstm", detects: |config| is_type(config, "xlstm", "xLSTMForCausalLM"), import };

const EMBEDDING: &str = "backbone.embeddings.weight";

fn import(folder: &Folder<'_>) -> Result<Import> {
    let config = &folder.config;
    let d_model = one_of(config, "hidden_size", "embedding_dim", semisep_core::MAX_WIDTH);
    let n_layer = one_of(config, "num_hidden_layers", "num_blocks", MAX_LAYERS);
    for (key, expected, why) in [
        ("use_bias", false, "biases of the residual stream's norms are not supported"),
        ("add_out_norm", true, "models without a final norm are not supported"),
    ] {
        if config.flag_or(key, expected) != expected {
            config.problem(key, format!("expected {expected} ({why}), found {}", !expected));
        }
    }
    let (mixer, mlp) = (mixer(config), mlp(config, d_model));
    if config.ok() {
        config.issues(mixer.check(d_model));
        config.issues(mlp.check(d_model));
    }
    let (tie_embeddings, note) = folder.tied(config.flag("tie_word_embeddings"), false, EMBEDDING);
    let model = ModelConfig {
        tie_embeddings,
        pad_vocab_size_multiple: 1,
        norm: NormConfig { kind: NormKind::Rms, eps: config.number("norm_eps").unwrap_or(1e-6) },
        logits_soft_cap: soft_cap(config, "output_logit_soft_cap", 30.0),
        ..ModelConfig::new(d_model, config.size("vocab_size"))
    };
    folder.check_embedding(EMBEDDING, model.vocab_size, ("hidden_size", d_model));
    let names = names(config, &mixer, d_model, mlp.hidden(d_model));
    let (mixer, mlp): (Arc<dyn MixerConfig>, Arc<dyn MixerConfig>) = (Arc::new(mixer), Arc::new(mlp));
    let stages = || vec![residual(mixer.clone(), "mixer", "norm"), residual(mlp.clone(), "mlp", "norm2")];
    let layers = (0..n_layer).map(|_| layer("mlstm", stages())).collect();
    Ok(Import {
        family: XLSTM.family,
        architecture: Architecture { name: folder.name(), model, layers },
        names: if tie_embeddings { names.tie("lm_head.weight", "backbone.embedding.weight") } else { names },
        notes: note.into_iter().collect(),
    })
}

/// A size that goes by two names.
fn one_of(config: &Fields, key: &str, other: &str, max: usize) -> usize {
    if config.get(key).is_none() && config.get(other).is_some() {
        return config.size_up_to(other, max);
    }
    let size = config.size_up_to(key, max);
    if config.get(other).is_some() && config.ok() {
        let found = config.size_up_to(other, max);
        if found != size {
            config.problem(other, format!("expected {size} as in {key}, found {found}"));
        }
    }
    size
}

/// A cap; `null` says that there is none.
fn soft_cap(config: &Fields, key: &str, default: f64) -> Option<f64> {
    let cap = if config.is_null(key) { None } else { Some(config.number(key).unwrap_or(default)) };
    if let Some(found) = cap.filter(|cap| *cap <= 0.0) {
        config.problem(key, format!("expected a number > 0, or null, found {found}"));
    }
    cap
}

fn mixer(config: &Fields) -> MlstmConfig {
    let default = MlstmConfig::default();
    let number = |key, default| config.number(key).unwrap_or(default);
    MlstmConfig {
        num_heads: config.size_or("num_heads", default.num_heads),
        qk_dim_factor: number("qk_dim_factor", default.qk_dim_factor),
        v_dim_factor: number("v_dim_factor", default.v_dim_factor),
        gate_soft_cap: soft_cap(config, "gate_soft_cap", 15.0),
        input_gate_bias_init: number("input_gate_bias_init", default.input_gate_bias_init),
        norm_eps: number("norm_eps", default.norm_eps),
        eps: number("eps", default.eps),
        ..default
    }
}

/// `down(silu(gate x) ⊙ up x)`, some factor times d wide, rounded up.
fn mlp(config: &Fields, d_model: usize) -> MlpConfig {
    let (factor, multiple) = (
        config.number("ffn_proj_factor").unwrap_or(2.667),
        config.size_or("ffn_round_up_to_multiple_of", 64),
    );
    if factor <= 0.0 {
        config.problem("ffn_proj_factor", format!("expected a number > 0, found {factor}"));
    }
    let blocks = ((d_model as f64 * factor + (multiple - 1) as f64) / multiple as f64).floor();
    let hidden = (blocks as usize).saturating_mul(multiple);
    MlpConfig { d_intermediate: Some(hidden), fused: false, ..MlpConfig::default() }
}

fn names(config: &Fields, mixer: &MlstmConfig, d_model: usize, hidden: usize) -> Names {
    let mut names = Names::new()
        .rename("backbone.embeddings", "backbone.embedding")
        .rename("backbone.out_norm", "backbone.norm_f")
        .rename("backbone.blocks.*.norm_mlstm", "backbone.layers.*.norm")
        .rename("backbone.blocks.*.norm_ffn", "backbone.layers.*.norm2")
        .rename("backbone.blocks.*.mlstm_layer.q", "backbone.layers.*.mixer.q")
        .rename("backbone.blocks.*.mlstm_layer.k", "backbone.layers.*.mixer.k")
        .rename("backbone.blocks.*.mlstm_layer.v", "backbone.layers.*.mixer.v")
        .rename("backbone.blocks.*.mlstm_layer.query", "backbone.layers.*.mixer.q")
        .rename("backbone.blocks.*.mlstm_layer.key", "backbone.layers.*.mixer.k")
        .rename("backbone.blocks.*.mlstm_layer.value", "backbone.layers.*.mixer.v")
        .rename("backbone.blocks.*.mlstm_layer", "backbone.layers.*.mixer")
        .rename("backbone.blocks.*.ffn.proj_up", "backbone.layers.*.mlp.up_proj")
        .rename("backbone.blocks.*.ffn.proj_up_gate", "backbone.layers.*.mlp.gate_proj")
        .rename("backbone.blocks.*.ffn.proj_down", "backbone.layers.*.mlp.down_proj");
    match config.text("weight_mode").unwrap_or("single") {
        "single" => {}
        "fused" => {
            let ((n, p), h) = (mixer.head_dims(d_model), mixer.num_heads);
            let (keys, values) = (n.saturating_mul(h), p.saturating_mul(h));
            let parts = [
                ("mixer.q", "mlstm_layer.qkv_opreact", 0, keys),
                ("mixer.k", "mlstm_layer.qkv_opreact", keys, keys),
                ("mixer.v", "mlstm_layer.qkv_opreact", 2 * keys, values),
                ("mixer.ogate_preact", "mlstm_layer.qkv_opreact", 2 * keys + values, values),
                ("mixer.igate_preact", "mlstm_layer.ifgate_preact", 0, h),
                ("mixer.fgate_preact", "mlstm_layer.ifgate_preact", h, h),
                ("mlp.gate_proj", "ffn.proj_up_gate_z", 0, hidden),
                ("mlp.up_proj", "ffn.proj_up_gate_z", hidden, hidden),
            ];
            for (native, foreign, start, len) in parts {
                let piece = Piece::of(format!("backbone.blocks.*.{foreign}")).take(0, start, len);
                names = names.join(format!("backbone.layers.*.{native}"), [piece]);
            }
        }
        other => {
            config.problem("weight_mode", format!("expected \"single\" or \"fused\", found {other:?}"));
        }
    }
    names
}
