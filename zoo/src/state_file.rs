//! What a model remembers of sequences, as a file: a long text is read once.
//!
//! A safetensors file: `N.name` is tensor `name` of mixer N's state, `tokens` (Σ lengths) u32 and `lengths` (b) i64 are
//! the sequences, of which the last token is not yet read. Its metadata hold the hash of the architecture: a state is of
//! use to the same architecture alone (and, which nothing checks, to the same weights).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use semisep_models::normal::Architecture;
use semisep_models::{LanguageModel, Session};

use crate::checkpoint::{Checkpoint, write_safetensors};
use crate::{Error, Result};

const FORMAT: (&str, &str) = ("format", "semisep-state-1");
const HASH: &str = "architecture";

/// Writes a session.
///
/// # Errors
/// If a sequence ended before others of its batch, or the file cannot be written.
pub fn save(path: &Path, session: &Session, architecture: &Architecture) -> Result<()> {
    let (state, read) = session.state()?;
    if let Some(row) = (0..read.len()).find(|&row| read[row] + 1 != session.tokens()[row].len()) {
        return Err(Error::new(format!("sequence {row} has more than one token that is not yet read")));
    }
    let lengths: Vec<i64> = session.tokens().iter().map(|row| row.len() as i64).collect();
    let mut tensors: Vec<(String, Tensor)> = state.tensors()?.into_iter().collect();
    tensors.push(("lengths".into(), Tensor::new(lengths, &Device::Cpu)?));
    tensors.push(("tokens".into(), Tensor::new(session.tokens().concat(), &Device::Cpu)?));
    write_safetensors(path, &[FORMAT, (HASH, &architecture.hash())], &tensors)
}

/// Reads a session of this model.
///
/// # Errors
/// If the file is damaged, no state file, or the state of another architecture.
pub fn load(path: &Path, model: &LanguageModel, architecture: &Architecture) -> Result<Session> {
    let file = Checkpoint::open_files(&[path.into()])?;
    let metadata = file.metadata()?;
    let found = metadata.get(FORMAT.0).map(String::as_str);
    if found != Some(FORMAT.1) {
        return Err(Error::at(path, format!("expected a state file ({}), found {found:?}", FORMAT.1))
            .hint("make one with semisep generate --save-state"));
    }
    let hash = architecture.hash();
    if metadata.get(HASH) != Some(&hash) {
        let found = metadata.get(HASH).map_or("none", String::as_str);
        let message = format!("expected the state of architecture {hash}, found that of {found}");
        return Err(Error::at(path, message).hint("load it with the model that it was saved with"));
    }
    read(&file, model).map_err(|e| e.in_file(path))
}

fn read(file: &Checkpoint, model: &LanguageModel) -> Result<Session> {
    let mut tensors = BTreeMap::new();
    for stored in file.tensors() {
        let dtype = if stored.dtype.float() == Some(DType::F32) { DType::F32 } else { DType::F64 };
        let read = file.read(&stored.name, &stored.shape, dtype, &Device::Cpu)?;
        if read.non_finite > 0 {
            let message = format!("{} has {} values that are not finite", stored.name, read.non_finite);
            return Err(Error::new(message));
        }
        tensors.insert(stored.name.clone(), read.tensor);
    }
    let mut numbers = |name: &str| -> Result<Vec<f64>> {
        let tensor = tensors.remove(name).ok_or_else(|| Error::new(format!("no tensor named {name}")))?;
        Ok(tensor.flatten_all()?.to_vec1::<f64>()?)
    };
    let (lengths, ids) = (numbers("lengths")?, numbers("tokens")?);
    let rows = split(&lengths, &ids, model.config().padded_vocab())?;
    // What the file does not hold is not made room for.
    let width = if model.dtype() == DType::F64 { 8 } else { 4 };
    let (one, held) =
        (model.new_state(1)?.size_bytes(0) / width, tensors.values().map(Tensor::elem_count).sum::<usize>());
    if one.saturating_mul(rows.len() as u64) > held as u64 {
        let message = format!("expected the states of {} sequences, found less", rows.len());
        return Err(Error::new(message));
    }
    let mut state = model.new_state(rows.len())?;
    state.load(tensors)?;
    Ok(Session::resume(state, rows)?)
}

/// The tokens of each sequence.
fn split(lengths: &[f64], ids: &[f64], vocab: usize) -> Result<Vec<Vec<u32>>> {
    let whole =
        |n: f64, most: usize| (n >= 0.0 && n.fract() == 0.0 && n <= most as f64).then_some(n as usize);
    let mut rest = ids;
    let mut rows = Vec::new();
    for &length in lengths {
        let length = whole(length, rest.len()).filter(|&n| n > 0).ok_or_else(|| {
            Error::new(format!(
                "expected the length of a sequence of at most {} tokens, found {length}",
                rest.len()
            ))
        })?;
        let (row, later) = rest.split_at(length);
        rest = later;
        let id = |&id: &f64| {
            let id = whole(id, vocab.saturating_sub(1)).and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| Error::new(format!("a token is outside the vocabulary of {vocab}")))
        };
        rows.push(row.iter().map(id).collect::<Result<Vec<u32>>>()?);
    }
    if !rest.is_empty() || rows.is_empty() {
        return Err(Error::new(format!("{} tokens belong to no sequence", rest.len())));
    }
    Ok(rows)
}
