//! Checkpoints in several files, named by an index: `{"weight_map": {tensor: file}}`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::Checkpoint;
use crate::files::{inside, read_text};
use crate::{Error, Result};

/// Most files of a checkpoint: each is mapped, and maps are a limited resource.
const MAX_FILES: usize = 10_000;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that an index names, all of them in its folder, with the tensors that it says they hold.
///
/// # Errors
/// If the index names a file elsewhere, or a tensor that its file does not hold.
pub(super) fn open(folder: &Path, index: &Path) -> Result<Checkpoint> {
    let text = read_text(index)?;
    let parsed: Index = serde_json::from_str(&text)
        .map_err(|e| Error::at(index, format!("expected {{\"weight_map\": {{tensor: file}}}}: {e}")))?;
    let names: BTreeSet<&str> = parsed.weight_map.values().map(String::as_str).collect();
    if names.is_empty() || names.len() > MAX_FILES {
        return Err(Error::at(index, format!("expected 1 to {MAX_FILES} files, found {}", names.len())));
    }
    let paths = names.iter().map(|name| inside(folder, name)).collect::<Result<Vec<_>>>();
    let checkpoint = Checkpoint::open_files(&paths.map_err(|e| e.in_file(index))?)?;
    for (tensor, file) in &parsed.weight_map {
        let found = checkpoint.get(tensor).map(|stored| checkpoint.path(stored));
        if found != Some(&folder.join(file)) {
            let found = found.map_or("in no file".to_string(), |path| format!("in {}", path.display()));
            return Err(Error::at(index, format!("{tensor} should be in {file}, found it {found}"))
                .hint("the download is incomplete, or files of two checkpoints are mixed"));
        }
    }
    Ok(checkpoint)
}
