//! Models of the Hugging Face Hub: `OWNER/NAME` or `OWNER/NAME@REVISION` as a folder on this machine.
//!
//! The files lie in the cache that Python's `huggingface_hub` uses, in its layout, under its locks:
//!
//! ```text
//! models--OWNER--NAME/blobs/<etag>              one copy of each content; <etag>.incomplete while it comes
//!                    /snapshots/<commit>/FILE   links to the blobs: the folder that models are loaded from
//!                    /refs/<revision>           the commit that a branch or tag was at
//! .locks/models--OWNER--NAME/<etag>.lock
//! ```
//!
//! What is asked of the server, in this order: the list of files at a revision, the size and checksum of each that is
//! needed, their contents. Nothing that the server says is trusted: names, sizes and lengths are checked before use.

mod id;

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod digest;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod refusal;
#[cfg(feature = "hub")]
mod select;
#[cfg(feature = "hub")]
mod settings;
#[cfg(feature = "hub")]
mod sha1;
#[cfg(feature = "hub")]
mod space;

use std::path::{Path, PathBuf};

#[cfg(feature = "hub")]
pub use digest::git_etag;
pub use id::ModelId;
use serde::Serialize;
#[cfg(feature = "hub")]
pub use settings::{Endpoint, Settings, Token};

#[cfg(not(feature = "hub"))]
use crate::Error;
use crate::Result;

/// How much of a model is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Parts {
    /// `config.json`, the tokenizer's files and one set of weights.
    #[default]
    Whole,
    /// The same without weights; where there is no configuration, the weights are it.
    Configuration,
}

/// What to pull, and from where.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// How much.
    pub parts: Parts,
    /// The weights' file, for repositories with several `.pth` files.
    pub file: Option<String>,
    /// Take the copy in the cache where the server cannot be reached.
    pub cached_if_unreachable: bool,
}

/// A model's folder in the cache, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// `OWNER/NAME`.
    pub model: String,
    /// Branch, tag or commit that was asked for.
    pub revision: String,
    /// The commit that it is.
    pub commit: String,
    /// Where its files are.
    pub folder: PathBuf,
    /// The files that were asked for, and what each takes.
    pub files: Vec<PulledFile>,
    /// Bytes that came over the network.
    pub downloaded: u64,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PulledFile {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
}

/// What a pull tells of its progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Before the first byte of a file: how many files and bytes there are, and how many of these are still to come.
    Planned {
        /// `OWNER/NAME`.
        model: String,
        /// The commit.
        commit: String,
        /// Files, those in the cache included.
        files: usize,
        /// Their bytes.
        total: u64,
        /// Bytes to download.
        missing: u64,
    },
    /// A file is next.
    File(String),
    /// Bytes came.
    Came(u64),
    /// Bytes that came have to come again.
    Lost(u64),
    /// Something the user should know: a retry, a wait, a copy of the cache.
    Note(String),
}

/// The model's folder, downloaded as far as it is not in the cache yet; settings are those of the environment.
///
/// # Errors
/// If there is no such model, revision or file, access is refused, the server cannot be reached, what it sends is damaged,
/// or there is not enough space.
#[cfg(feature = "hub")]
pub fn pull(id: &ModelId, options: &PullOptions, on: &mut dyn FnMut(Event)) -> Result<Pulled> {
    pull_with(&Settings::from_env()?, id, options, on)
}

#[cfg(feature = "hub")]
pub use pull::pull_with;

/// Refuses: this build has no Hub.
///
/// # Errors
/// Always.
#[cfg(not(feature = "hub"))]
pub fn pull(id: &ModelId, _: &PullOptions, _: &mut dyn FnMut(Event)) -> Result<Pulled> {
    Err(Error::new(format!("{id} is no folder here, and this build cannot download from the Hub"))
        .hint("build with the feature `hub` (it is on by default), or name a folder"))
}

/// The folder that a word on the command line means: one that exists, else that of a model of the Hub. `None` if it is
/// neither, such as a file or the name of a shipped blueprint.
///
/// # Errors
/// As for [`pull`].
pub fn folder(word: &str, parts: Parts, on: &mut dyn FnMut(Event)) -> Result<Option<PathBuf>> {
    let path = Path::new(word);
    if path.is_dir() {
        return Ok(Some(path.into()));
    }
    // A blueprint that is not there is a mistake in a path, not a model of the Hub.
    if path.exists() || word.ends_with(".toml") {
        return Ok(None);
    }
    let Some(id) = ModelId::recognise(word) else { return Ok(None) };
    let options = PullOptions { parts, cached_if_unreachable: true, file: None };
    Ok(Some(pull(&id?, &options, on)?.folder))
}
