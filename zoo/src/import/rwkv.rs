//! RWKV 4 to 7 in every layout: what the layouts share.
//!
//! Widths, heads and ranks come from the tensors: `.pth` files have no configuration, and those beside other layouts are
//! known to say something else. Without weights the configuration's word is taken.

mod fla;
mod hf;
mod pth;

use std::sync::Arc;

pub(super) use fla::{RWKV6_FLA, RWKV7_FLA};
pub(super) use hf::{RWKV4_HF, RWKV5_HF, RWKV6_HF};
pub(super) use pth::RWKV_PTH;
use semisep_core::{MixerConfig, NormConfig, NormKind};
use semisep_models::normal::{Architecture, Layer, ModelConfig};
use semisep_rwkv::RwkvChannelMixConfig;

use super::{Folder, layer, residual};

/// Everything but the layers.
fn model(d_model: usize, vocab_size: usize, eps: f64) -> ModelConfig {
    ModelConfig {
        pad_vocab_size_multiple: 1,
        tie_embeddings: false,
        norm: NormConfig { kind: NormKind::Layer, eps },
        embedding_norm: true,
        ..ModelConfig::new(d_model, vocab_size)
    }
}

/// A layer: time mix, then channel mix.
fn block(name: &str, time: Arc<dyn MixerConfig>, channel: &RwkvChannelMixConfig) -> Layer {
    layer(name, vec![residual(time, "mixer", "norm"), residual(Arc::new(channel.clone()), "mlp", "norm2")])
}

/// The whole, with every problem of the layers recorded.
fn architecture(folder: &Folder<'_>, model: ModelConfig, layers: Vec<Layer>) -> Architecture {
    if folder.config.ok() {
        for branch in layers.iter().flat_map(|l| &l.stages).flat_map(|s| &s.branches) {
            folder.config.issues(branch.mixer.check(model.d_model));
        }
    }
    Architecture { name: folder.name(), model, layers }
}

/// The size of a tensor along an axis; a problem if there is no such tensor or axis, or its size is 0.
fn size(folder: &Folder<'_>, tensor: &str, axis: usize) -> usize {
    let stored = folder.checkpoint.get(tensor);
    match stored.and_then(|t| t.shape.get(axis)) {
        Some(&size) if size > 0 => size,
        _ => {
            let found = stored.map_or("no such tensor".into(), |t| format!("shape {:?}", t.shape));
            folder.config.problem(tensor, format!("expected a size along axis {axis}, found {found}"));
            1
        }
    }
}

/// As [`size`]; without any weights what the configuration says, or this.
fn size_or(folder: &Folder<'_>, tensor: &str, axis: usize, (key, default): (&str, usize)) -> usize {
    if folder.checkpoint.is_empty() {
        folder.config.size_or(key, default)
    } else {
        size(folder, tensor, axis)
    }
}

/// As [`width`]; without any weights what the configuration says, or this.
fn width_or(folder: &Folder<'_>, tensor: &str, (key, default): (&str, usize)) -> usize {
    if folder.checkpoint.is_empty() { folder.config.size_or(key, default) } else { width(folder, tensor) }
}

/// The last axis of a tensor.
fn width(folder: &Folder<'_>, tensor: &str) -> usize {
    let rank = folder.checkpoint.get(tensor).map_or(1, |t| t.shape.len());
    size(folder, tensor, rank.max(1) - 1)
}
