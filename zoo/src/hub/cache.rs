//! The cache on disk: hf-hub knows where things lie, here is how they come to lie there whole.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::{Event, ModelId, PulledFile};
use crate::{Error, Result, files};

/// Longest name of a file, etag or commit.
const MAX_NAME: usize = 200;

/// One model's part of the cache.
pub(super) struct ModelCache {
    repo: Repo,
    paths: CacheRepo,
    root: PathBuf,
}

impl ModelCache {
    pub(super) fn new(cache: &Path, id: &ModelId) -> Self {
        let repo = Repo::with_revision(id.repo().into(), RepoType::Model, id.revision().into());
        Self { paths: Cache::new(cache.into()).repo(repo.clone()), repo, root: cache.into() }
    }

    /// The path of the list of files, after the endpoint.
    pub(super) fn api_path(&self) -> String {
        format!("/api/{}", self.repo.api_url())
    }

    /// The path of a file at a commit, after the endpoint.
    pub(super) fn file_path(&self, commit: &str, file: &str) -> String {
        format!("/{}/resolve/{commit}/{}", self.repo.url(), escaped(file))
    }

    /// Where the content of this etag is or will be.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.paths.blob_path(etag)
    }

    /// Where a content grows, as `huggingface_hub` calls it.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.paths.blob_path(&format!("{etag}.incomplete"))
    }

    /// The folder of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.paths.pointer_path(commit)
    }

    /// Whether a file is there at a commit: its link leads to a content.
    pub(super) fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// The files of a commit in the cache.
    pub(super) fn names(&self, commit: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.snapshot(commit)).into_iter().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.retain(|name| self.has(commit, name));
        names.sort();
        names
    }

    /// Names and sizes of these files.
    pub(super) fn sizes(&self, commit: &str, names: &[String]) -> Vec<PulledFile> {
        let folder = self.snapshot(commit);
        let size = |name: &String| std::fs::metadata(folder.join(name)).map_or(0, |m| m.len());
        names.iter().map(|name| PulledFile { name: name.clone(), bytes: size(name) }).collect()
    }

    /// The commit that the revision was at when it was last seen.
    pub(super) fn commit(&self) -> Option<String> {
        let revision = self.repo.revision();
        if self.snapshot(revision).is_dir() && is_plain(revision) {
            return Some(revision.into());
        }
        let text = files::read_text(&self.reference()).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_plain(commit))
    }

    fn reference(&self) -> PathBuf {
        self.folder().join("refs").join(self.repo.revision())
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.root.join(self.repo.folder_name())
    }

    /// Notes the commit that the revision is at.
    pub(super) fn set_commit(&self, commit: &str) -> Result<()> {
        if commit == self.repo.revision() || self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference();
        make_folder(path.parent())?;
        files::write(&path, commit.as_bytes())
    }

    /// Makes a file of a commit lead to a content. A link that leads elsewhere is replaced as a whole.
    #[cfg(unix)]
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let (folder, target) = (self.snapshot(commit), Path::new("../../blobs").join(etag));
        make_folder(Some(&folder))?;
        let path = folder.join(file);
        if std::fs::read_link(&path).is_ok_and(|there| there == target) {
            return Ok(());
        }
        let fail = |e: std::io::Error| Error::at(&path, format!("cannot be linked: {e}"));
        let made = tempfile::Builder::new()
            .prefix(".link-")
            .make_in(self.folder(), |new| std::os::unix::fs::symlink(&target, new))
            .map_err(fail)?;
        made.into_temp_path().persist(&path).map_err(|e| fail(e.error))
    }

    /// Copies a content into a commit's folder, where links are not to be had.
    #[cfg(not(unix))]
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let folder = self.snapshot(commit);
        make_folder(Some(&folder))?;
        let path = folder.join(file);
        let fail = |e: std::io::Error| Error::at(&path, format!("cannot be copied: {e}"));
        let new = tempfile::NamedTempFile::new_in(self.folder()).map_err(fail)?;
        std::fs::copy(self.blob(etag), new.path()).map_err(fail)?;
        new.persist(&path).map_err(|e| fail(e.error)).map(|_| ())
    }

    /// Waits until no other process downloads this content. The lock ends with the file that is given back.
    pub(super) fn lock(&self, etag: &str, file: &str, on: &mut dyn FnMut(Event)) -> Result<File> {
        let folder = self.root.join(".locks").join(self.repo.folder_name());
        make_folder(Some(&folder))?;
        make_folder(self.blob(etag).parent())?;
        let path = folder.join(format!("{etag}.lock"));
        let fail = |e: std::io::Error| Error::at(&path, format!("cannot be locked: {e}"));
        let lock = File::options().create(true).append(true).open(&path).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                on(Event::Note(format!("waiting for another process that downloads {file}")));
                lock.lock().map_err(fail)?;
            }
            Err(TryLockError::Error(e)) => return Err(fail(e)),
        }
        Ok(lock)
    }
}

fn make_folder(path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::create_dir_all(path).map_err(|e| {
        Error::at(path, format!("cannot be made: {e}")).hint("set HF_HOME to a folder that may be written to")
    })
}

/// Whether a word may be the name of a file of ours: letters, digits, `-`, `_`, `.`, and not hidden.
pub(super) fn is_plain(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !name.starts_with('.')
}

/// Whether a word may be the name of an etag's content: no content may pass for a lock or a part of another.
pub(super) fn is_etag(name: &str) -> bool {
    is_plain(name) && !name.ends_with(".incomplete") && !name.ends_with(".lock")
}

/// Whether a word of the server may be a file in a folder of ours: one part of a path, visible.
pub(super) fn is_file_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && !name.contains(['/', '\\'])
        && !name.chars().any(char::is_control)
        && !name.starts_with('.')
}

fn escaped(file: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    file.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(dir: &Path, word: &str) -> ModelCache {
        ModelCache::new(dir, &ModelId::recognise(word).unwrap().unwrap())
    }

    #[test]
    fn paths_are_those_of_huggingface_hub() {
        let cache = cache(Path::new("/c"), "o/n@refs/pr/1");
        assert_eq!(cache.api_path(), "/api/models/o/n/revision/refs%2Fpr%2F1");
        assert_eq!(cache.file_path("abc", "a b.json"), "/o/n/resolve/abc/a%20b.json");
        assert_eq!(cache.blob("e1"), Path::new("/c/models--o--n/blobs/e1"));
        assert_eq!(cache.incomplete("e1"), Path::new("/c/models--o--n/blobs/e1.incomplete"));
        assert_eq!(cache.snapshot("abc"), Path::new("/c/models--o--n/snapshots/abc"));
        assert_eq!(cache.reference(), Path::new("/c/models--o--n/refs/refs/pr/1"));
    }

    #[test]
    fn links_and_references_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), "o/n");
        std::fs::create_dir_all(dir.path().join("models--o--n/blobs")).unwrap();
        for etag in ["one", "two", "two"] {
            std::fs::write(cache.blob(etag), etag).unwrap();
            cache.link("abc", "config.json", etag).unwrap();
            assert_eq!(std::fs::read_to_string(cache.snapshot("abc").join("config.json")).unwrap(), etag);
            cache.set_commit(etag).unwrap();
            assert_eq!(cache.commit().as_deref(), Some(etag));
        }
        assert_eq!(cache.names("abc"), ["config.json"]);
        std::fs::remove_file(cache.blob("two")).unwrap();
        assert!(cache.names("abc").is_empty(), "a link to nothing is no file");
        let left = std::fs::read_dir(dir.path().join("models--o--n")).unwrap().count();
        assert_eq!(left, 3, "blobs, refs and snapshots, nothing temporary");
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), "o/n");
        let mut silent = |event| panic!("{event:?}");
        let held = cache.lock("e", "f", &mut silent).unwrap();
        let waits = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let mut on = |_| waits.store(true, std::sync::atomic::Ordering::SeqCst);
                cache.lock("e", "f", &mut on).map(|_| ())
            });
            while !waits.load(std::sync::atomic::Ordering::SeqCst) {
                std::thread::yield_now();
            }
            assert!(!other.is_finished());
            drop(held);
            other.join().unwrap().unwrap();
        });
        assert!(dir.path().join(".locks/models--o--n/e.lock").is_file());
    }

    #[test]
    fn names_of_a_server_are_checked() {
        for bad in ["", ".", "..", "a/b", "a\\b", ".hidden", "a\nb", "/etc/passwd", &"x".repeat(201)] {
            assert!(!is_file_name(bad) && !is_plain(bad) && !is_etag(bad), "{bad:?}");
        }
        assert!(is_file_name("RWKV x070 (v2).pth") && !is_plain("a b"));
        assert!(is_plain("abc.incomplete") && !is_etag("abc.incomplete") && !is_etag("a.lock"));
    }
}
