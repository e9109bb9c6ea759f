//! `semisep check` and `semisep describe`, as users run them.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::PathBuf;
use std::process::{Command, Output};

fn semisep(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_semisep")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn shipped(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../blueprints").join(format!("{name}.toml"));
    path.display().to_string()
}

/// A file that goes away with the folder.
fn file(folder: &tempfile::TempDir, name: &str, source: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, source).unwrap();
    path.display().to_string()
}

#[test]
fn good_blueprints_exit_with_0() {
    let out = semisep(&["check", &shipped("mamba2attn-2.7b"), &shipped("mamba-130m")]);
    let text = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{text}");
    assert!(text.contains("good (mamba2attn-2.7b, 64 layers, 2,697,590,880 parameters)"), "{text}");
    assert_eq!(text.lines().count(), 2);
}

#[test]
fn bad_blueprints_exit_with_1_and_all_errors() {
    let folder = tempfile::tempdir().unwrap();
    let bad = file(
        &folder,
        "bad.toml",
        "name = \"x\"\n[model]\nd_model = 8\nvocabsize = 9\n[blocks.a]\nmixer = \"nlp\"\n[stack]\npattern = [\"b\"]\n",
    );
    let out = semisep(&["check", &bad, &shipped("mamba-130m")]);
    assert_eq!(out.status.code(), Some(1));
    let text = text(&out.stdout);
    for part in [
        "unknown key `vocabsize`",
        "did you mean `vocab_size`?",
        "\"nlp\"",
        "no block is called \"b\"",
        "mamba-130m",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let out = semisep(&["check", "--json", &bad]);
    assert_eq!(out.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json[0]["valid"], false);
    assert_eq!(json[0]["file"], bad.as_str());
    let lines: Vec<_> =
        json[0]["diagnostics"].as_array().unwrap().iter().map(|d| d["line"].as_u64().unwrap()).collect();
    // The missing `vocab_size` is the misspelt one.
    assert_eq!(lines, [4, 6, 8]);
}

#[test]
fn files_that_cannot_be_read_exit_with_2() {
    let out = semisep(&["check", "no-such-file.toml"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("no-such-file.toml"));
    let out = semisep(&["describe", "no-such-name"]);
    assert_eq!(out.status.code(), Some(2));
    let message = text(&out.stderr);
    assert!(message.contains("shipped blueprints: ") && message.contains("mamba-1.4b, "), "{message}");
}

#[test]
fn describe_folds_equal_layers() {
    let out = semisep(&["describe", "mamba2attn-2.7b", "--seqlen", "4096", "--batch", "2"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    insta::assert_snapshot!(text(&out.stdout));
}

#[test]
fn describe_as_json_adds_up() {
    let out = semisep(&["describe", &shipped("mamba2-hybrid"), "--json", "--dtype", "f32"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let layers = json["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 8);
    let sum: u64 = layers.iter().map(|l| l["parameters"].as_u64().unwrap()).sum();
    let rest = ["embedding_parameters", "head_parameters", "final_norm_parameters"]
        .map(|k| json[k].as_u64().unwrap());
    assert_eq!(json["total"]["parameters"].as_u64().unwrap(), sum + rest.iter().sum::<u64>());
    assert_eq!(json["total"]["weight_bytes"].as_u64(), json["total"]["parameters"].as_u64().map(|n| 4 * n));
}
