//! Weights as one file, or as several with an index.

use std::path::Path;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use crate::checkpoint::TensorEntry as Entry;
use crate::checkpoint::write_tensors;
use crate::{Error, Result, files};

/// Most bytes of a file, unless one tensor alone has more: as in transformers.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Writes the tensors that `get` gives by their place in `entries`.
///
/// # Errors
/// If a tensor cannot be had or a file not written.
pub(super) fn write(
    folder: &Path,
    entries: &[Entry],
    get: &mut dyn FnMut(usize) -> Result<Tensor>,
    max_bytes: u64,
) -> Result<()> {
    let shards = cut(entries, max_bytes);
    let metadata = [("format", "pt")];
    if let [all] = &shards[..] {
        return write_tensors(&folder.join("model.safetensors"), &metadata, &entries[all.clone()], get);
    }
    let mut places = Map::new();
    for (i, range) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let mut get = |at: usize| get(range.start + at);
        write_tensors(&folder.join(&name), &metadata, &entries[range.clone()], &mut get)?;
        places.extend(entries[range.clone()].iter().map(|e| (e.name.clone(), Value::from(name.clone()))));
    }
    let total: u64 = entries.iter().map(Entry::bytes).sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
    files::write(&folder.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())
}

/// Runs of tensors of at most `max_bytes`, at least one tensor each.
fn cut(entries: &[Entry], max_bytes: u64) -> Vec<std::ops::Range<usize>> {
    let mut shards = Vec::new();
    let (mut start, mut size) = (0, 0u64);
    for (i, entry) in entries.iter().enumerate() {
        if i > start && size + entry.bytes() > max_bytes {
            shards.push(start..i);
            (start, size) = (i, 0);
        }
        size += entry.bytes();
    }
    shards.push(start..entries.len());
    shards
}

/// `5GB`, `500MB`, `1000000`: bytes.
///
/// # Errors
/// If it is something else, or 0.
pub fn parse_size(text: &str) -> Result<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => 0,
    };
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).filter(|&n| n > 0);
    bytes.ok_or_else(|| Error::new(format!("expected a size such as 5GB or 500MB, found {text}")))
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn shards_hold_what_fits() {
        let entry = |n: usize| Entry { name: n.to_string(), dtype: DType::F32, shape: vec![n] };
        let entries: Vec<Entry> = [1, 2, 30, 1, 1, 1].map(entry).into();
        assert_eq!(cut(&entries, 12), [0..2, 2..3, 3..6]);
        assert_eq!(cut(&entries, 1), (0..6).map(|i| i..i + 1).collect::<Vec<_>>());
        for (entries, all) in [(&entries[..], 0..6), (&[], 0..0)] {
            assert_eq!(cut(entries, u64::MAX), std::slice::from_ref(&all));
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("5GB", 5_000_000_000), ("12 mb", 12_000_000), ("7", 7), ("3KB", 3000)] {
            assert_eq!(parse_size(text).unwrap(), bytes);
        }
        for bad in ["", "0", "GB", "5TB", "-1", "99999999999GB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
