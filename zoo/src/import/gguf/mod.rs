//! GGUF files: the metadata as the configuration that the family's own checkpoints have.
//!
//! The tensors have been given their own names already ([`crate::checkpoint`]). Source: llama.cpp's `conversion/*.py`.

mod decoder;
mod facts;
mod hybrid;
mod rope;
mod state_space;

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use facts::Facts;

use super::{BARE, Fields, Folder, Import, understand};
use crate::checkpoint::{Checkpoint, Metadata, Value};
use crate::{Error, Result};

/// Makes a configuration of metadata.
type Configure = fn(&Facts<'_>) -> Json;

/// Architectures that are understood, and what makes a configuration of their metadata; RWKV's files say it all in names
/// and shapes.
const FAMILIES: [(&str, Configure); 19] = [
    ("falcon-h1", hybrid::falcon_h1),
    ("gptneox", decoder::gpt_neox),
    ("granite", hybrid::granite),
    ("granitehybrid", hybrid::granite),
    ("jamba", hybrid::jamba),
    ("lfm2", hybrid::lfm2),
    ("lfm2moe", hybrid::lfm2),
    ("llama", decoder::llama),
    ("mamba", state_space::mamba),
    ("mamba2", state_space::mamba2),
    ("nemotron_h", hybrid::nemotron_h),
    ("nemotron_h_moe", hybrid::nemotron_h),
    ("olmo2", decoder::olmo2),
    ("qwen2", decoder::qwen2),
    ("qwen3", decoder::qwen3),
    ("qwen3moe", decoder::qwen3_moe),
    ("qwen3next", decoder::qwen3_next),
    ("rwkv6", |_| json!({})),
    ("rwkv7", |_| json!({})),
];

/// Understands a GGUF file.
///
/// # Errors
/// If its architecture is unknown, or the metadata do not fit the tensors.
pub(super) fn import(path: &Path, checkpoint: &Checkpoint, metadata: &Metadata) -> Result<Import> {
    let architecture = metadata.architecture();
    let Some((_, configuration)) = FAMILIES.iter().find(|(name, _)| *name == architecture) else {
        let known: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        let message = format!("expected a GGUF architecture of the zoo, found {architecture:?}");
        return Err(Error::at(path, message).hint(format!("known architectures: {}", known.join(", "))));
    };
    if let Some(refusal) = refusal(metadata) {
        return Err(Error::at(path, refusal));
    }
    let object: Map<String, Json> = match configuration(&Facts { metadata, checkpoint }) {
        // What the file does not say is absent, not null.
        Json::Object(object) => object.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    };
    let bare = BARE.iter().find(|bare| object.is_empty() && (bare.detects)(checkpoint));
    let import = match bare {
        None => understand((path, path), checkpoint, Fields::new(path, object))?,
        Some(bare) => {
            let folder = Folder { path, config: Fields::new(path, object), checkpoint };
            let import = (bare.import)(&folder);
            folder.config.finish()?;
            import?
        }
    };
    Ok(rescaled(import, metadata))
}

/// What the metadata ask for that no model of these families here computes.
fn refusal(metadata: &Metadata) -> Option<String> {
    let architecture = metadata.architecture();
    if metadata.own("attention.causal") == Some(&Value::Flag(false)) {
        return Some(format!("{architecture}.attention.causal: expected true (not supported), found false"));
    }
    let window = metadata.number("attention.sliding_window").filter(|window| *window > 0.0)?;
    Some(format!("{architecture}.attention.sliding_window: expected none (not supported), found {window}"))
}

/// RWKV-6: what each layer adds was divided by two once for every so many layers before it, when the file was written.
fn rescaled(mut import: Import, metadata: &Metadata) -> Import {
    let every = metadata.number("rescale_every_n_layers").filter(|n| *n >= 1.0 && n.fract() == 0.0);
    let Some(every) = every.map(|n| n as usize) else { return import };
    import.architecture.model.rescale_every = every;
    for (i, layer) in import.architecture.layers.iter_mut().enumerate() {
        let factor = 2f64.powi(i32::try_from(i / every).unwrap_or(i32::MAX));
        for branch in layer.stages.iter_mut().flat_map(|stage| &mut stage.branches) {
            branch.output_multiplier *= factor;
        }
    }
    import
}
