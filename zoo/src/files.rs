//! Files of a model folder: bounded reads of text, and read-only maps of weights.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};

use crate::{Error, Result};

/// Largest JSON or text file that is read into memory.
pub const MAX_TEXT: u64 = 64 << 20;

/// The text of a file of at most [`MAX_TEXT`] bytes.
///
/// # Errors
/// If it cannot be read, is larger, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let file = open(path)?;
    let mut text = Vec::new();
    file.take(MAX_TEXT + 1)
        .read_to_end(&mut text)
        .map_err(|e| Error::at(path, format!("cannot be read: {e}")))?;
    if text.len() as u64 > MAX_TEXT {
        return Err(Error::at(path, format!("expected at most {MAX_TEXT} bytes of text, found more")));
    }
    String::from_utf8(text).map_err(|e| {
        Error::at(
            path,
            format!("expected UTF-8 text, found another byte at {}", e.utf8_error().valid_up_to()),
        )
    })
}

/// Opens a regular file for reading.
///
/// # Errors
/// If there is none, or it is a folder, a pipe or a device.
fn open(path: &Path) -> Result<File> {
    // Metadata first: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(|e| Error::at(path, format!("cannot be opened: {e}")))?;
    if !metadata.is_file() {
        return Err(Error::at(path, "expected a regular file"));
    }
    File::open(path).map_err(|e| Error::at(path, format!("cannot be opened: {e}")))
}

/// The path of a plain file name inside a folder.
///
/// # Errors
/// If `name` is more than a name (`..`, `/`, an absolute path), or leads out of the folder through a link (other than
/// from a snapshot in the Hugging Face cache to the blobs beside it).
pub fn inside(folder: &Path, name: &str) -> Result<PathBuf> {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    if !plain || name.contains(['\\', '\0']) {
        return Err(Error::new(format!("expected the plain name of a file in this folder, found {name:?}")));
    }
    let path = folder.join(name);
    let real = |p: &Path| p.canonicalize().map_err(|e| Error::at(p, format!("cannot be opened: {e}")));
    let (target, folder) = (real(&path)?, real(folder)?);
    let blobs =
        folder.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent).map(|p| p.join("blobs"));
    if !target.starts_with(&folder) && !blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Err(Error::at(&path, "expected a file in this folder, found a link that leads out of it"));
    }
    Ok(path)
}

/// Writes a file as a whole or not at all: under a temporary name beside it, synced, then renamed.
///
/// # Errors
/// If the folder cannot be written to.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes).map_err(|e| cannot_write(path, &e)))
}

/// As [`write()`], with what `fill` writes.
///
/// # Errors
/// If the folder cannot be written to, or `fill` fails: then there is no file.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut BufWriter<&mut File>) -> Result<()>) -> Result<()> {
    let fail = |e: std::io::Error| cannot_write(path, &e);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    // As for any new file: what the umask allows, not the temporary file's owner alone.
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(fail)?;
    let mut buffer = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    fill(&mut buffer)?;
    buffer.flush().map_err(fail)?;
    drop(buffer);
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

pub(crate) fn cannot_write(path: &Path, error: &std::io::Error) -> Error {
    Error::at(path, format!("cannot be written: {error}"))
}

/// A file mapped into memory for reading.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    /// Maps a regular file that is not empty.
    ///
    /// # Errors
    /// If it cannot be opened or mapped, or is empty.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open(path)?;
        if file.metadata().is_ok_and(|m| m.len() == 0) {
            return Err(Error::at(path, "the file is empty").hint("download or copy it again"));
        }
        // SAFETY: the map is read-only and private. As with every mapped file, another process that truncates it
        // while it is read ends this one; weights are not edited in place.
        let map =
            unsafe { Mmap::map(&file) }.map_err(|e| Error::at(path, format!("cannot be mapped: {e}")))?;
        Ok(Self { path: path.into(), map })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets go of the memory behind these bytes; they are read from the file again when touched again.
    pub fn release(&self, range: Range<usize>) {
        const PAGE: usize = 4096;
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end.min(self.map.len()) / PAGE * PAGE);
        if start < end {
            // SAFETY: the map is a read-only map of a file and is never written: dropped pages come back unchanged.
            // That the kernel may decline (larger pages) costs memory only.
            let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::fs::write(inner.join("good"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), inner.join("link")).unwrap();
        assert!(inside(&inner, "good").is_ok());
        let absolute = dir.path().join("secret").display().to_string();
        for bad in ["../secret", "/etc/passwd", "link", "..", ".", "", "a/b", "good/", "./good", &absolute] {
            let message = inside(&inner, bad).unwrap_err().to_string();
            assert!(message.contains("expected"), "{bad}: {message}");
        }
    }

    #[test]
    fn snapshots_of_the_hub_cache_link_to_its_blobs() {
        let repository = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (repository.path().join("blobs"), repository.path().join("snapshots/abc"));
        std::fs::create_dir(&blobs).unwrap();
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(blobs.join("0123"), "x").unwrap();
        std::os::unix::fs::symlink("../../blobs/0123", snapshot.join("weights")).unwrap();
        assert!(inside(&snapshot, "weights").is_ok());
    }

    #[test]
    fn folders_and_empty_files_are_no_weights() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Mapped::open(dir.path()).unwrap_err().to_string().contains("regular file"));
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        assert!(Mapped::open(&empty).unwrap_err().to_string().contains("empty"));
    }
}
