//! Configurations without weights: every family is described and checked from `config.json` alone, and loads nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{GOLDEN, golden, semisep, stderr, stdout};

/// Models whose configuration alone does not tell all: sizes, or biases that it announces and the file lacks.
const TENSORS_TELL: [&str; 2] = ["rwkv6-hf", "nemotron_h-latent"];

#[test]
fn every_family_without_weights() {
    let folder = tempfile::tempdir().unwrap();
    for name in GOLDEN {
        let config = golden(name).join("config.json");
        if !config.exists() {
            continue;
        }
        // The name is that of the folder.
        let dir = folder.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::copy(config, dir.join("config.json")).unwrap();
        let dir = dir.to_str().unwrap();
        let described = semisep(&["describe", dir, "--json"]);
        assert_eq!(described.status.code(), Some(0), "{name}: {}", stderr(&described));
        let whole = semisep(&["describe", golden(name).to_str().unwrap(), "--json"]);
        if !TENSORS_TELL.contains(name) {
            assert_eq!(stdout(&described), stdout(&whole), "{name}");
        }
        let checked = semisep(&["check", dir]);
        assert_eq!(checked.status.code(), Some(0), "{name}: {}", stderr(&checked));
        assert!(stdout(&checked).contains(&format!("good ({name}, ")), "{}", stdout(&checked));
        let out = folder.path().join("out");
        let out = out.to_str().unwrap();
        for command in
            [&["verify", dir][..], &["generate", dir, "--prompt", "a"], &["export", dir, "--out", out]]
        {
            let refused = semisep(command);
            assert_eq!(refused.status.code(), Some(2), "{name}: {command:?}");
            assert!(refused.stdout.is_empty());
        }
    }
}

#[test]
fn a_bad_configuration_is_found_without_weights() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "jamba", "hidden_size": -1}"#).unwrap();
    let checked = semisep(&["check", dir.path().to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(1));
    let text = stdout(&checked);
    assert!(
        text.contains("config.json: hidden_size: expected") && text.contains("vocab_size: expected"),
        "{text}"
    );
    let weightless = golden("rwkv7-pth");
    let empty = tempfile::tempdir().unwrap();
    assert!(
        weightless.exists()
            && semisep(&["describe", empty.path().to_str().unwrap()]).status.code() == Some(2)
    );
}
