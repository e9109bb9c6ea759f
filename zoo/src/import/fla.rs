//! What the models of flash-linear-attention have in common: embedding, two norms a layer, a gated MLP, a head.

use std::sync::Arc;

use semisep_core::{Activation, MixerConfig, MlpConfig, NormConfig, NormKind};
use semisep_models::normal::{Architecture, ModelConfig};

use super::activation::activation;
use super::{Fields, Folder, Import, MAX_LAYERS, Names, layer, residual};
use crate::Result;

const EMBEDDING: &str = "model.embeddings.weight";

/// A model of this mixer in every layer; its tensors below `attn` are called as the mixer calls them.
pub(super) fn import(
    folder: &Folder<'_>,
    family: &'static str,
    hidden_ratio: f64,
    mixer: Arc<dyn MixerConfig>,
) -> Result<Import> {
    let config = &folder.config;
    let (d_model, n_layer) = (config.size("hidden_size"), config.size_up_to("num_hidden_layers", MAX_LAYERS));
    if config.get("attn").is_some() {
        config.problem("attn", "expected no attention layers among the others (not supported), found some");
    }
    if config.get("attnres_block_size").is_some() {
        config.problem(
            "attnres_block_size",
            "expected null (attention over layers is not supported), found one",
        );
    }
    let mlp: Arc<dyn MixerConfig> = Arc::new(mlp(config, d_model, hidden_ratio));
    if config.ok() {
        config.issues(mixer.check(d_model));
        config.issues(mlp.check(d_model));
    }
    let (tie_embeddings, note) = folder.tied(config.flag("tie_word_embeddings"), false, EMBEDDING);
    let model = ModelConfig {
        d_model,
        vocab_size: config.size("vocab_size"),
        pad_vocab_size_multiple: 1,
        tie_embeddings,
        norm: NormConfig { kind: NormKind::Rms, eps: norm_eps(config) },
        residual_in_fp32: true,
        ..ModelConfig::new(d_model, 1)
    };
    folder.check_embedding(EMBEDDING, model.vocab_size, ("hidden_size", d_model));
    let stages = || vec![residual(mixer.clone(), "mixer", "norm"), residual(mlp.clone(), "mlp", "norm2")];
    let layers = (0..n_layer).map(|_| layer("fla", stages())).collect();
    let names = names();
    Ok(Import {
        family,
        architecture: Architecture { name: folder.name(), model, layers },
        names: if tie_embeddings { names.tie("lm_head.weight", "backbone.embedding.weight") } else { names },
        notes: note.into_iter().collect(),
    })
}

/// With a SiLU gate, the norm of the heads by the name of the kernel that computes both at once, whatever kernel the
/// checkpoint was written for; `fuse_norm` says by which name it is written.
pub(super) fn swish_gate(config: &Fields, names: Names) -> Names {
    const OURS: &str = "backbone.layers.*.mixer.g_norm_swish_gate";
    let (fused, apart) = ("model.layers.*.attn.g_norm_swish_gate", "model.layers.*.attn.g_norm");
    if config.flag_or("fuse_norm", true) {
        names.first(apart, OURS).first(fused, OURS)
    } else {
        names.first(apart, OURS)
    }
}

fn names() -> Names {
    Names::new()
        .rename("model.embeddings", "backbone.embedding")
        .rename("model.layers.*.attn_norm", "backbone.layers.*.norm")
        .rename("model.layers.*.mlp_norm", "backbone.layers.*.norm2")
        .rename("model.layers.*.attn", "backbone.layers.*.mixer")
        .rename("model.layers.*.mlp", "backbone.layers.*.mlp")
        .rename("model.norm", "backbone.norm_f")
}

/// Added under the roots of all norms.
pub(super) fn norm_eps(config: &Fields) -> f64 {
    config.number("norm_eps").unwrap_or(1e-6)
}

/// `intermediate_size`, or two thirds of `hidden_ratio` times the width, rounded up to a multiple of 256.
fn mlp(config: &Fields, d_model: usize, hidden_ratio: f64) -> MlpConfig {
    let ratio = config.number("hidden_ratio").unwrap_or(hidden_ratio);
    let default = ((d_model as f64 * ratio * 2.0 / 3.0) as usize).next_multiple_of(256);
    MlpConfig {
        d_intermediate: Some(config.size_or("intermediate_size", default)),
        fused: false,
        activation: activation(config, "hidden_act", Activation::Silu),
        ..MlpConfig::default()
    }
}
