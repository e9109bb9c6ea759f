//! GGUF files, as llama.cpp writes them.
//!
//! What the file calls its tensors, and how it changed them, is undone here: a tensor appears under the name and in the
//! order of elements that the family's own checkpoints have, so that their importers read GGUF files as well.

mod families;
mod reader;
mod split;
mod types;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use families::is_bamba;
pub use reader::{Metadata, Value};

use super::{Checkpoint, Stored};
use crate::files::{Mapped, inside};
use crate::{Error, Result};

/// Whether a path is a GGUF file by its name.
pub(super) fn is_file(path: &Path) -> bool {
    has_name(path) && path.is_file()
}

fn has_name(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// The metadata of a GGUF file, or of the only model in a folder, and its path; of a model in parts, those of the first.
///
/// # Errors
/// If there are several, or it is damaged, or the first part is missing.
pub fn metadata(path: &Path) -> Result<Option<(PathBuf, Metadata)>> {
    let file = match path.is_dir() {
        true => in_folder(path)?,
        false => is_file(path).then(|| path.to_path_buf()),
    };
    let Some(file) = file else { return Ok(None) };
    let (metadata, _) = reader::read(Mapped::open(&file)?.bytes(), 0, &file)?;
    let parts = split::paths(&file, &metadata)?;
    match parts.into_iter().next() {
        Some(first) if first != file => {
            let (metadata, _) = reader::read(Mapped::open(&first)?.bytes(), 0, &first)?;
            Ok(Some((first, metadata)))
        }
        _ => Ok(Some((file, metadata))),
    }
}

/// The only GGUF file of a folder, or the first of the parts of the only model.
///
/// # Errors
/// If there are several, or it is a link out of the folder.
pub(super) fn in_folder(folder: &Path) -> Result<Option<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::at(folder, format!("cannot be read: {e}")))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| has_name(Path::new(name))).collect();
    names.sort();
    let model = |name: &String| split::parse(name).map(|(stem, _, count)| (stem.to_string(), count));
    let first = names.first().and_then(model);
    if first.is_some() && names.iter().all(|name| model(name) == first) {
        names.truncate(1);
    }
    match &names[..] {
        [] => Ok(None),
        [name] => inside(folder, name).map(Some),
        [first, second, ..] => {
            Err(Error::at(folder, format!("expected one .gguf file, found several: {first}, {second}"))
                .hint("name the file itself"))
        }
    }
}

/// The tensors of a file, or of all parts of a model of which it is one, under the names of their family.
///
/// # Errors
/// If a file is damaged or a part missing, or one holds tensors of other shapes than the family has.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let mapped = Mapped::open(path)?;
    let (metadata, tensors) = reader::read(mapped.bytes(), 0, path)?;
    let parts = split::paths(path, &metadata)?;
    let (files, metadata, tensors) = match parts.len() {
        1 => (vec![Arc::new(mapped)], metadata, tensors),
        _ => read_parts(&parts)?,
    };
    let mut checkpoint = Checkpoint { files, ..Checkpoint::empty() };
    for stored in families::translate(&metadata, tensors).map_err(|message| Error::at(path, message))? {
        let name = stored.name.clone();
        if checkpoint.tensors.insert(name.clone(), stored).is_some() {
            return Err(Error::at(path, format!("{name} is there twice, expected it once")));
        }
    }
    checkpoint.gguf = Some(metadata);
    Ok(checkpoint)
}

/// The files of all parts, the metadata of the first, and all tensors.
fn read_parts(parts: &[PathBuf]) -> Result<(Vec<Arc<Mapped>>, Metadata, Vec<Stored>)> {
    let (mut files, mut first, mut tensors) = (Vec::with_capacity(parts.len()), None, Vec::new());
    for (i, path) in parts.iter().enumerate() {
        let mapped = Mapped::open(path)?;
        let (metadata, own) = reader::read(mapped.bytes(), i, path)?;
        split::check(path, &metadata, (i, parts.len()))?;
        tensors.extend(own);
        files.push(Arc::new(mapped));
        first.get_or_insert(metadata);
    }
    let metadata = first.unwrap_or_default();
    if let Some(said) = split::tensors(&metadata)
        && said != tensors.len() as f64
    {
        let message =
            format!("expected {said} tensors in all {} parts, found {}", parts.len(), tensors.len());
        return Err(Error::at(&parts[0], message).hint("parts of different models are mixed"));
    }
    Ok((files, metadata, tensors))
}
