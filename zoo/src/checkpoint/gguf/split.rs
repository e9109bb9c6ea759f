//! Models in several files, as llama-gguf-split writes them: `name-00001-of-00003.gguf` and so on. What a model says of
//! itself is in the first; each says which part it is.

use std::path::{Path, PathBuf};

use super::{Metadata, Value};
use crate::files::inside;
use crate::{Error, Result};

/// Most parts of a model: each is mapped, and maps are a limited resource.
const MAX_PARTS: usize = 10_000;

/// A name of this kind: what comes before the numbers, the number of the part, and of how many.
pub(super) fn parse(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, _) = name.rsplit_once('.')?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| {
        (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse::<usize>().ok())?
    };
    let (number, count) = (digits(number)?, digits(count)?);
    (1..=count).contains(&number).then_some((stem, number, count))
}

/// The paths of all parts, in order, of the model of which `path` is one by its metadata; itself, if it is whole.
///
/// # Errors
/// If its name does not say which part of how many it is, or a part is missing or lies outside of the folder.
pub(super) fn paths(path: &Path, metadata: &Metadata) -> Result<Vec<PathBuf>> {
    let count = number(metadata, "split.count").unwrap_or(1.0);
    if count <= 1.0 {
        return Ok(vec![path.into()]);
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (stem, _, said) = parse(name).filter(|(_, _, said)| *said as f64 == count).ok_or_else(|| {
        Error::at(path, format!("expected the name of one of {count} parts, found {name:?}"))
            .hint("name them as they were written, such as model-00001-of-00003.gguf")
    })?;
    if said > MAX_PARTS {
        return Err(Error::at(path, format!("expected at most {MAX_PARTS} parts, found {said}")));
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let ending = &name[name.rfind('.').unwrap_or(name.len())..];
    let part = |i: usize| {
        let name = format!("{stem}-{i:05}-of-{said:05}{ending}");
        inside(folder, &name).map_err(|e| {
            Error::at(path, format!("part {i} of {said} of this model, {name}, cannot be had: {e}"))
                .hint("put all parts into one folder")
        })
    };
    (1..=said).map(part).collect()
}

/// # Errors
/// If the file says that it is another part than its name, or of another number of them.
pub(super) fn check(path: &Path, metadata: &Metadata, (i, of): (usize, usize)) -> Result<()> {
    let (number, count) = (number(metadata, "split.no"), number(metadata, "split.count"));
    if (number, count) == (Some(i as f64), Some(of as f64)) {
        return Ok(());
    }
    let said = |n: Option<f64>| n.map_or_else(|| "nothing".to_string(), |n| n.to_string());
    let found = format!("split.no {} and split.count {}", said(number), said(count));
    Err(Error::at(path, format!("expected split.no {i} and split.count {of}, found {found}"))
        .hint("parts of different models are mixed, or one was renamed"))
}

/// How many tensors all parts have together, if it is said.
pub(super) fn tensors(metadata: &Metadata) -> Option<f64> {
    number(metadata, "split.tensors.count")
}

fn number(metadata: &Metadata, key: &str) -> Option<f64> {
    match metadata.get(key) {
        Some(Value::Number(number)) => Some(*number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        assert_eq!(parse("a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
        assert_eq!(parse("-00001-of-00001.GGUF"), Some(("", 1, 1)));
        for name in [
            "a.gguf",
            "a-1-of-3.gguf",
            "a-00004-of-00003.gguf",
            "a-00000-of-00003.gguf",
            "a-+0001-of-00003.gguf",
            "a-00001-of-00003",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
