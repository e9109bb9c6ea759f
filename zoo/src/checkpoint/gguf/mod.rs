//! GGUF files, as llama.cpp writes them.
//!
//! What the file calls its tensors, and how it changed them, is undone here: a tensor appears under the name and in the
//! order of elements that the family's own checkpoints have, so that their importers read GGUF files as well.

mod families;
mod reader;

use std::path::{Path, PathBuf};

pub use reader::{Metadata, Value};

use super::Checkpoint;
use crate::files::{Mapped, inside};
use crate::{Error, Result};

/// Whether a path is a GGUF file by its name.
pub(super) fn is_file(path: &Path) -> bool {
    has_name(path) && path.is_file()
}

fn has_name(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// The metadata of a GGUF file, or of the only one in a folder, and its path.
///
/// # Errors
/// If there are several, or it is damaged.
pub fn metadata(path: &Path) -> Result<Option<(PathBuf, Metadata)>> {
    let file = match path.is_dir() {
        true => in_folder(path)?,
        false => is_file(path).then(|| path.to_path_buf()),
    };
    let read = |file: PathBuf| {
        let (metadata, _) = reader::read(Mapped::open(&file)?.bytes(), 0, &file)?;
        Ok((file, metadata))
    };
    file.map(read).transpose()
}

/// The only GGUF file of a folder.
///
/// # Errors
/// If there are several, or it is a link out of the folder.
pub(super) fn in_folder(folder: &Path) -> Result<Option<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::at(folder, format!("cannot be read: {e}")))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| has_name(Path::new(name))).collect();
    names.sort();
    match &names[..] {
        [] => Ok(None),
        [name] => inside(folder, name).map(Some),
        [first, second, ..] => {
            Err(Error::at(folder, format!("expected one .gguf file, found several: {first}, {second}")).hint(
                "name the file itself; parts of a split model are put together by llama-gguf-split --merge",
            ))
        }
    }
}

/// The tensors of a file, under the names of their family.
///
/// # Errors
/// If the file is damaged, one part of several, or holds tensors of other shapes than the family has.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let mapped = Mapped::open(path)?;
    let (metadata, tensors) = reader::read(mapped.bytes(), 0, path)?;
    if let Some(Value::Number(parts)) = metadata.get("split.count")
        && *parts > 1.0
    {
        return Err(Error::at(path, format!("expected a whole model, found one of {parts} parts"))
            .hint("put them together by llama-gguf-split --merge"));
    }
    let mut checkpoint = Checkpoint::empty();
    for stored in families::translate(&metadata, tensors).map_err(|message| Error::at(path, message))? {
        let name = stored.name.clone();
        if checkpoint.tensors.insert(name.clone(), stored).is_some() {
            return Err(Error::at(path, format!("{name} is there twice, expected it once")));
        }
    }
    checkpoint.files.push(mapped.into());
    checkpoint.gguf = Some(metadata);
    Ok(checkpoint)
}
