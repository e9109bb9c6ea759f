//! Names of models on the Hub.

use std::fmt;

use crate::{Error, Result};

/// Longest owner, name or part of a revision.
const MAX_PART: usize = 96;
/// Longest revision.
const MAX_REVISION: usize = 200;

/// A model of the Hub at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    /// `OWNER/NAME`.
    repo: String,
    /// Branch, tag or commit.
    revision: String,
}

impl ModelId {
    /// The model of `OWNER/NAME`, on `main` if no revision is given.
    ///
    /// # Errors
    /// If either is not as the Hub has them.
    pub fn new(repo: &str, revision: Option<&str>) -> Result<Self> {
        if !is_repo(repo) {
            return Err(Error::new(format!("expected OWNER/NAME of a model on the Hub, found {repo:?}"))
                .hint("write it as on the model's page, such as state-spaces/mamba-130m"));
        }
        let revision = revision.unwrap_or("main");
        if !is_revision(revision) {
            return Err(Error::new(format!("{repo}: expected a branch, tag or commit, found {revision:?}"))
                .hint("leave it out for main"));
        }
        Ok(Self { repo: repo.into(), revision: revision.into() })
    }

    /// The model that a word means, `OWNER/NAME` or `OWNER/NAME@REVISION`; `None` if it has another form.
    pub fn recognise(word: &str) -> Option<Result<Self>> {
        let (repo, revision) = match word.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (word, None),
        };
        is_repo(repo).then(|| Self::new(repo, revision))
    }

    /// `OWNER/NAME`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether the revision is a whole commit, which never changes.
    pub fn is_commit(&self) -> bool {
        self.revision.len() == 40
            && self.revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => write!(f, "{}", self.repo),
            revision => write!(f, "{}@{revision}", self.repo),
        }
    }
}

/// As `huggingface_hub` checks it: letters, digits, `-`, `_`, `.`; no `--` or `..`, none of `-` and `.` at an end.
fn is_repo(text: &str) -> bool {
    let part = |part: &str| {
        (1..=MAX_PART).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    text.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
        && !text.contains("--")
        && !text.contains("..")
        && !text.ends_with(".git")
}

/// A path below `refs/`: nothing that means another place there, nothing that a URL would have to escape but `/`.
fn is_revision(text: &str) -> bool {
    text.len() <= MAX_REVISION
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+/".contains(&b))
        && !text.starts_with('-')
        && text.split('/').all(|part| (1..=MAX_PART).contains(&part.len()) && !part.starts_with('.'))
        && !text.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_the_hub_has_them() {
        for good in
            ["state-spaces/mamba-130m", "RWKV/v5-Eagle-7B-HF", "a/b", "NX-AI/xLSTM-7b", "ai21labs/Jamba-v0.1"]
        {
            let id = ModelId::recognise(good).unwrap().unwrap();
            assert_eq!((id.repo(), id.revision(), id.to_string()), (good, "main", good.to_string()));
        }
        for other in [
            "mamba2",
            "a/b/c",
            "/a/b",
            "../a",
            "a/..",
            "./a",
            "a/b.git",
            "a--b/c",
            "a/b--c",
            "a/",
            "/b",
            "-a/b",
            "a/b.",
            "a\\b/c",
            "a b/c",
            "https://a/b",
            "~/b",
            "a/b?x",
            "é/b",
        ] {
            assert!(ModelId::recognise(other).is_none(), "{other}");
        }
        assert!(ModelId::recognise(&format!("a/{}", "b".repeat(97))).is_none());
    }

    #[test]
    fn revisions() {
        for good in ["main", "refs/pr/1", "v1.0", "release/2024-01", &"0a".repeat(20)] {
            let id = ModelId::recognise(&format!("a/b@{good}")).unwrap().unwrap();
            assert_eq!((id.revision(), id.is_commit()), (good, good.len() == 40));
        }
        for bad in
            ["", "..", "a/../b", "/a", "a/", "a//b", "-x", "a b", "a\\b", ".git", "a/.lock", "a@b", "a%2Fb"]
        {
            let message = ModelId::recognise(&format!("a/b@{bad}")).unwrap().unwrap_err().to_string();
            assert!(message.contains("expected a branch"), "{bad}: {message}");
        }
    }
}
