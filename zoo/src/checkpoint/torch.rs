//! PyTorch's file format since 1.6: a zip archive, uncompressed, of a pickle (`data.pkl`) and one entry a storage
//! (`data/KEY`). Entries are found by name inside the mapped file; nothing is unpacked.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, View};
use super::{Stored, StoredType};
use crate::{Error, Result};

const ZIP: &[u8] = b"PK\x03\x04";

/// The tensors of a file; `file` is its number in the checkpoint.
///
/// # Errors
/// If the file is no such archive, its pickle asks for anything but tensors, or a tensor lies outside its storage.
pub(super) fn tensors(bytes: &[u8], file: usize, path: &Path) -> Result<Vec<Stored>> {
    if !bytes.starts_with(ZIP) {
        let found = if bytes.first() == Some(&0x80) { "a bare pickle" } else { "another format" };
        return Err(Error::at(path, format!("expected a PyTorch zip archive, found {found}")).hint(
            "files from before PyTorch 1.6 can be converted with torch.save(torch.load(f), f); downloads may be damaged",
        ));
    }
    parse(bytes, file).map_err(|message| {
        Error::at(path, message)
            .hint("if the file is what it should be, convert it to safetensors with its own tools")
    })
}

fn parse(bytes: &[u8], file: usize) -> Result<Vec<Stored>, String> {
    let archive = Archive::open(bytes)?;
    if archive.get("byteorder").is_some_and(|range| &bytes[range] == b"big") {
        return Err("expected little-endian storages, found big-endian ones".into());
    }
    let pickle = archive.get("data.pkl").ok_or("the archive has no data.pkl")?;
    let views = pickle::state_dict(&bytes[pickle])?;
    let mut seen = HashMap::new();
    let mut tensors = Vec::with_capacity(views.len());
    for (name, view) in views {
        if seen.insert(name, ()).is_some() {
            return Err(format!("the file names {name} twice"));
        }
        let storage = archive.get(&format!("data/{}", view.storage.key));
        let storage =
            storage.ok_or_else(|| format!("{name}: its storage {:?} is missing", view.storage.key))?;
        tensors.push(stored(name, view, storage, file).map_err(|message| format!("{name}: {message}"))?);
    }
    Ok(tensors)
}

fn stored(name: &str, view: View<'_>, storage: Range<usize>, file: usize) -> Result<Stored, String> {
    let View { dtype, offset, shape, strides, .. } = view;
    let claimed = view.storage.dtype.unwrap_or(StoredType::U8).bytes(view.storage.elements);
    if claimed.is_none_or(|claimed| claimed > storage.len()) {
        return Err(format!(
            "expected {} elements in its storage, found {} bytes",
            view.storage.elements,
            storage.len()
        ));
    }
    if shape.len() != strides.len() {
        return Err(format!("shape {shape:?} and strides {strides:?} differ in length"));
    }
    let overflow = || format!("the shape {shape:?} with strides {strides:?} has no size");
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
    let last = if elements == 0 {
        0
    } else {
        let steps = shape.iter().zip(&strides).map(|(&d, &stride)| (d - 1).checked_mul(stride));
        let last = steps.into_iter().try_fold(offset, |at, step| at.checked_add(step?));
        last.and_then(|last| last.checked_add(1)).ok_or_else(overflow)?
    };
    let width = dtype.bits() / 8;
    let held = storage.len() / width;
    if last > held || elements > held {
        return Err(format!(
            "shape {shape:?} with strides {strides:?} from {offset} on exceeds the {held} elements stored"
        ));
    }
    let contiguous = is_contiguous(&shape, &strides);
    // In bounds: offset < last <= held, or nothing is read.
    let offset = storage.start + if elements == 0 { 0 } else { offset * width };
    let bytes = if elements == 0 {
        0
    } else if contiguous {
        elements * width
    } else {
        storage.end - offset
    };
    let strides = (!contiguous).then_some(strides);
    Ok(Stored {
        name: name.into(),
        dtype,
        shape,
        strides,
        file,
        offset,
        bytes,
        elements,
        ..Stored::default()
    })
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    for (&d, &stride) in shape.iter().zip(strides).rev() {
        if d == 0 {
            return true;
        }
        if d != 1 && stride != expected {
            return false;
        }
        expected = expected.saturating_mul(d);
    }
    true
}

/// Where the entries of the archive lie in the file.
struct Archive {
    prefix: String,
    entries: HashMap<String, Range<usize>>,
}

impl Archive {
    fn open(bytes: &[u8]) -> Result<Self, String> {
        let damaged = |e| format!("expected a zip archive with its directory at the end: {e}");
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
        let mut entries = HashMap::with_capacity(archive.len());
        for i in 0..archive.len() {
            let entry = archive.by_index_raw(i).map_err(damaged)?;
            let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
            if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
                return Err(format!(
                    "expected entries without compression, found {name:?} compressed or encrypted"
                ));
            }
            let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
            let size = usize::try_from(entry.compressed_size()).ok();
            let range = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
            let range = range.filter(|range| range.end <= bytes.len());
            let range = range.ok_or_else(|| format!("the entry {name:?} lies outside the file"))?;
            entries.insert(name, range);
        }
        let prefix = entries
            .keys()
            .find_map(|name| name.strip_suffix("data.pkl").filter(|p| p.matches('/').count() <= 1));
        let prefix = prefix.ok_or("the archive has no data.pkl")?.to_string();
        Ok(Self { prefix, entries })
    }

    fn get(&self, name: &str) -> Option<Range<usize>> {
        self.entries.get(&format!("{}{name}", self.prefix)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::pickle::Storage;

    fn view(offset: usize, shape: &[usize], strides: &[usize]) -> View<'static> {
        let storage = Storage { key: "0", dtype: Some(StoredType::F32), elements: 12 };
        View { storage, dtype: StoredType::F32, offset, shape: shape.into(), strides: strides.into() }
    }

    #[test]
    fn views_stay_in_their_storage() {
        let check = |view| stored("t", view, 100..148, 0);
        let whole = check(view(0, &[3, 4], &[4, 1])).unwrap();
        assert_eq!((whole.offset, whole.bytes, whole.strides), (100, 48, None));
        let transposed = check(view(0, &[4, 3], &[1, 4])).unwrap();
        assert_eq!(transposed.strides, Some(vec![1, 4]));
        let row = check(view(4, &[1, 4], &[9, 1])).unwrap();
        assert_eq!((row.offset, row.bytes, row.strides), (116, 16, None));
        for bad in [
            view(1, &[3, 4], &[4, 1]),
            view(0, &[4, 4], &[4, 1]),
            view(usize::MAX, &[1], &[1]),
            view(0, &[3, 4], &[usize::MAX, 1]),
            view(0, &[usize::MAX, usize::MAX], &[0, 0]),
            view(0, &[13], &[0]),
            view(0, &[3, 4], &[4]),
        ] {
            assert!(check(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
