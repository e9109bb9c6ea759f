//! `semisep inspect`, as a process.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{golden, semisep, stderr, stdout};
use serde_json::Value;

fn inspect(model: &str, out: &Path, args: &[&str]) -> std::process::Output {
    semisep(&[&["inspect", model, "--out", out.to_str().unwrap()], args].concat())
}

fn report(out: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(out.join("inspect.json")).unwrap()).unwrap()
}

/// In one model: Mamba-2 layers have at most the rank of their state, attention has all that it can.
#[test]
fn state_spaces_are_semiseparable_and_attention_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/pictures");
    let folder = golden("mamba2attn-orig");
    let output = inspect(folder.to_str().unwrap(), &out, &["--tokens", "64", "--log"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report = report(&out);
    let (mut ssd, mut attention) = (0, 0);
    for mixer in report["mixers"].as_array().unwrap() {
        let rank = mixer["max_off_diagonal_rank"].as_u64().unwrap();
        let possible = mixer["possible_rank"].as_u64().unwrap();
        assert_eq!(possible, 32);
        if mixer["kind"] == "mamba2" {
            ssd += 1;
            assert!(rank <= mixer["d_state"].as_u64().unwrap() && rank < possible, "{mixer}");
        } else {
            attention += 1;
            assert_eq!(mixer["kind"], "attention");
            assert!(rank > possible - 4, "{mixer}");
        }
        assert_eq!(
            mixer["off_diagonal_ranks"].as_array().unwrap().len() as u64,
            mixer["heads"].as_u64().unwrap()
        );
    }
    assert!(ssd > 0 && attention > 0);
    assert!(stdout(&output).contains("relative tolerance 1e-10"));
    let pictures: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "png"))
        .collect();
    assert!(pictures.len() >= ssd + attention);
    for picture in &pictures {
        assert!(std::fs::read(picture).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));
    }
}

#[test]
fn a_blueprint_with_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--prompt", "semiseparable", "--heads", "1", "--json", "--dtype", "f32"];
    let output = inspect("mamba2", dir.path(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let printed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(printed, report(dir.path()));
    assert_eq!((&printed["tokens"], &printed["dtype"]), (&13.into(), &"f32".into()));
    let mixers = printed["mixers"].as_array().unwrap().len();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), mixers + 1);
}

#[test]
fn a_folder_with_files_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine.txt"), "x").unwrap();
    let small = ["--tokens", "4", "--heads", "0"];
    let refused = inspect("mamba2", dir.path(), &small);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("has files already") && stderr(&refused).contains("--force"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let forced = inspect("mamba2", dir.path(), &[&small[..], &["--force"]].concat());
    assert_eq!(forced.status.code(), Some(0), "{}", stderr(&forced));
    assert_eq!(std::fs::read_to_string(dir.path().join("mine.txt")).unwrap(), "x");
    let file = dir.path().join("mine.txt");
    assert!(stderr(&inspect("mamba2", &file, &small)).contains("expected a folder"));
}

#[test]
fn lengths_are_bounded_before_anything_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (tokens, part) in
        [("1", "at least 2 tokens"), ("100000", "tokens for a model 192 wide, found 100000")]
    {
        let output = inspect("mamba2", &out, &["--tokens", tokens]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
        assert!(!out.exists());
    }
    for (args, part) in
        [(&["--tolerance", "2"][..], "below 1"), (&["--prompt", "a", "--tokens", "3"], "cannot be used")]
    {
        assert!(stderr(&inspect("mamba2", &out, args)).contains(part));
    }
}
