//! The Hub, against a server on this machine that behaves like it or fails as told.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;

mod commands;
mod faults;
mod hostile;
mod pulls;
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use semisep_zoo::Error;
use semisep_zoo::hub::{Endpoint, Event, ModelId, PullOptions, Pulled, Settings, Token, pull_with};
use server::{COMMIT, Server, etag};
use tempfile::TempDir;

/// A cache in a temporary folder, and the settings to fill it from a server.
struct Setup {
    dir: TempDir,
    settings: Settings,
}

const TOKEN: &str = "hf_secretsecret";

fn setup(server: &Server) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        endpoint: Endpoint::new(&server.url(), false).unwrap(),
        cache: dir.path().join("hub"),
        token: Token::new(TOKEN).unwrap(),
        offline: false,
        connect_timeout: Duration::from_secs(5),
        read_timeout: Duration::from_secs(5),
        attempts: 5,
        backoff: Duration::from_millis(1),
        longest_wait: Duration::from_secs(3),
    };
    Setup { dir, settings }
}

impl Setup {
    fn pull(&self, word: &str) -> Result<Pulled, Error> {
        self.pull_events(word, &PullOptions::default()).0
    }

    fn pull_events(&self, word: &str, options: &PullOptions) -> (Result<Pulled, Error>, Vec<Event>) {
        let mut events = Vec::new();
        let id = ModelId::recognise(word).unwrap().unwrap();
        (pull_with(&self.settings, &id, options, &mut |event| events.push(event)), events)
    }

    fn repository(&self) -> PathBuf {
        self.settings.cache.join("models--owner--name")
    }

    fn blob(&self, name: &str, bytes: &[u8]) -> PathBuf {
        self.repository().join("blobs").join(etag(name, bytes))
    }

    /// Every file and link below the temporary folder but locks, relative to it.
    fn tree(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(self.dir.path(), &mut found);
        let name = |path: &PathBuf| path.strip_prefix(self.dir.path()).unwrap().to_str().unwrap().to_string();
        let mut names: Vec<String> =
            found.iter().map(name).filter(|name| !name.contains("/.locks/")).collect();
        names.sort();
        names
    }

    /// Fails unless nothing looks complete: no content under its name, no snapshot, no reference.
    #[track_caller]
    fn assert_nothing_looks_complete(&self) {
        let bad = |name: &&String| !name.ends_with(".incomplete");
        let names = self.tree();
        assert_eq!(names.iter().find(bad), None);
    }

    /// Fails unless the snapshot holds exactly these files, through links to the right contents.
    #[track_caller]
    fn assert_holds(&self, commit: &str, files: &BTreeMap<String, Vec<u8>>, names: &[&str]) {
        let snapshot = self.repository().join("snapshots").join(commit);
        let mut there: Vec<String> = std::fs::read_dir(&snapshot)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        there.sort();
        assert_eq!(there, names);
        for name in names {
            let bytes = &files[*name];
            let target = std::fs::read_link(snapshot.join(name)).unwrap();
            assert_eq!(target, Path::new("../../blobs").join(etag(name, bytes)), "{name}");
            assert!(std::fs::read(snapshot.join(name)).unwrap() == *bytes, "{name}");
        }
        let left =
            self.tree().into_iter().find(|name| name.contains(".incomplete") || name.contains(".link-"));
        assert_eq!(left, None);
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Fails unless the token went to the Hub with every request, and nowhere else.
#[track_caller]
fn assert_token_stayed(server: &Server) {
    for request in server.log() {
        let token = request.headers.get("authorization").map(String::as_str);
        let expected = (!request.to_files()).then_some("Bearer hf_secretsecret");
        assert_eq!(token, expected, "{request:?}");
    }
}

/// What the user reads: the error and its advice.
fn words(error: &Error) -> String {
    format!("{error}\n{}", error.advice().unwrap_or_default())
}

/// Fails unless an error says all this, and none of what must stay secret.
#[track_caller]
fn assert_says(error: &Error, parts: &[&str]) {
    let words = words(error);
    for part in parts {
        assert!(words.contains(part), "expected {part:?} in: {words}");
    }
    assert!(!words.contains("secret"), "{words}");
    assert!(error.advice().is_some(), "nothing to try: {words}");
}

fn main_ref(setup: &Setup) -> Option<String> {
    std::fs::read_to_string(setup.repository().join("refs/main")).ok()
}

fn is_commit(text: &Option<String>) -> bool {
    text.as_deref() == Some(COMMIT)
}
