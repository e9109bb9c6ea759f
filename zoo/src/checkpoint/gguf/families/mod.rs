//! Tensors of GGUF files as their families' own checkpoints have them.
//!
//! Source: llama.cpp's `conversion/*.py` and `gguf-py/gguf/tensor_mapping.py`, read for what they do to each tensor.

mod change;
mod decoder;
mod hybrid;
mod join;
mod rwkv;
mod state_space;

use change::Change;

use super::{Metadata, Value};
use crate::checkpoint::Stored;

/// A tensor's name in the file, with `*` for the layer, its own name, and what was done to it.
type Rule = (&'static str, &'static str, Change);

fn rules(metadata: &Metadata) -> &'static [Rule] {
    match metadata.architecture() {
        "mamba" => state_space::MAMBA,
        "mamba2" => state_space::MAMBA2,
        "rwkv6" => rwkv::RWKV6,
        "rwkv7" => rwkv::RWKV7,
        "llama" => decoder::LLAMA,
        "qwen2" | "qwen3" | "qwen3moe" => decoder::QWEN3,
        "olmo2" => decoder::OLMO2,
        "gptneox" => decoder::GPT_NEOX,
        "jamba" => hybrid::JAMBA,
        "lfm2" | "lfm2moe" => hybrid::LFM2,
        "falcon-h1" => hybrid::FALCON_H1,
        "granitehybrid" if is_bamba(metadata) => hybrid::BAMBA,
        "granite" | "granitehybrid" => hybrid::GRANITE,
        "nemotron_h" | "nemotron_h_moe" => hybrid::NEMOTRON_H,
        "qwen3next" => hybrid::QWEN3_NEXT,
        _ => &[],
    }
}

/// Bamba's files say that they are Granite's; only Bamba's attention has positions.
pub(crate) fn is_bamba(metadata: &Metadata) -> bool {
    metadata.architecture() == "granitehybrid"
        && metadata.own("rope.scaling.finetuned") == Some(&Value::Flag(true))
}

/// What the metadata say of the layer that a tensor is in.
struct Facts<'a> {
    metadata: &'a Metadata,
    layer: Option<usize>,
}

impl Facts<'_> {
    /// A size of this architecture, or of this layer where each has its own.
    fn size(&self, key: &str) -> Option<usize> {
        let number = match self.metadata.own(key)? {
            Value::Number(number) => *number,
            Value::Numbers(numbers) => *numbers.get(self.layer?)?,
            _ => return None,
        };
        (number >= 1.0 && number.fract() == 0.0 && number < 1e6).then_some(number as usize)
    }

    /// A number of heads; files without one of keys have as many as of queries.
    fn heads(&self, key: &str) -> Option<usize> {
        self.size(key).or_else(|| self.size("attention.head_count"))
    }
}

/// The tensors under their families' names; those that the family does not have keep theirs.
///
/// # Errors
/// If a tensor has a shape that the family does not give it, or a part is missing.
pub(super) fn translate(metadata: &Metadata, tensors: Vec<Stored>) -> Result<Vec<Stored>, String> {
    let rules = rules(metadata);
    let mut undone = Vec::with_capacity(tensors.len());
    for mut stored in tensors {
        let layer = stored.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        if layer.is_some_and(|layer| predicts_ahead(metadata, layer)) {
            stored.name = format!("mtp.{}", stored.name);
        }
        let rule = rules
            .iter()
            .find_map(|(foreign, own, change)| Some((renamed(&stored.name, foreign, own)?, *change)));
        let (name, change) = rule.unwrap_or_else(|| (stored.name.clone(), Change::Nothing));
        let (foreign, shape) = (std::mem::replace(&mut stored.name, name), stored.shape.clone());
        let tensors = change::undo(&Facts { metadata, layer }, stored, change);
        undone.extend(tensors.ok_or_else(|| {
            format!(
                "{foreign}: expected the shape that {} gives it, found {shape:?}",
                metadata.architecture()
            )
        })?);
    }
    join::join(undone)
}

/// Whether a layer is one of those after the last that predict several tokens at once.
fn predicts_ahead(metadata: &Metadata, layer: usize) -> bool {
    let ahead = metadata.number("nextn_predict_layers").unwrap_or(0.0);
    ahead > 0.0 && metadata.number("block_count").is_some_and(|layers| layer as f64 >= layers - ahead)
}

/// The name with its beginning in the stead of the pattern's; at a dot, or whole.
fn renamed(name: &str, foreign: &str, own: &str) -> Option<String> {
    let (rest, layer) = match foreign.split_once('*') {
        None => (name.strip_prefix(foreign)?, None),
        Some((before, after)) => {
            let (layer, rest) = name.strip_prefix(before)?.split_once('.')?;
            (rest.strip_prefix(after.strip_prefix('.')?)?, Some(layer))
        }
    };
    if !rest.is_empty() && !rest.starts_with('.') {
        return None;
    }
    // Vectors without a matrix have no `.weight` to their name in their own files; in these some do.
    Some(layer.map_or_else(|| own.to_string(), |layer| own.replacen('*', layer, 1)) + rest)
}
