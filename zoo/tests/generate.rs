//! `semisep generate`, as a process.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{bytes_model, golden, semisep, stderr, stdout};
use serde_json::{Value, json};

fn generate(folder: &Path, args: &[&str]) -> String {
    let output = semisep(&[&["generate", folder.to_str().unwrap(), "--allow-missing"], args].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stdout(&output)
}

fn completions(folder: &Path, args: &[&str]) -> Vec<Value> {
    let value: Value = serde_json::from_str(&generate(folder, &[args, &["--json"]].concat())).unwrap();
    value["completions"].as_array().unwrap().clone()
}

#[test]
fn a_seed_gives_the_same_text() {
    let dir = bytes_model();
    let run =
        |seed| generate(dir.path(), &["--prompt", "abc", "-n", "40", "--temperature", "1.5", "--seed", seed]);
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
    assert!(!generate(dir.path(), &["--prompt", "abc", "-n", "0"]).contains('a'));
}

/// Prompts of different lengths in one batch continue as they do alone.
#[test]
fn a_batch_is_its_prompts() {
    let dir = bytes_model();
    let prompts = ["a", "some longer prompt that takes more than one piece", "xyz"];
    let args: Vec<&str> = prompts.iter().flat_map(|p| ["--prompt", p]).collect();
    let tail = ["-n", "24", "--prefill-chunk", "16", "--dtype", "f64"];
    let batch = completions(dir.path(), &[&args[..], &tail].concat());
    for (prompt, row) in prompts.iter().zip(&batch) {
        let alone = completions(dir.path(), &["--prompt", prompt, "-n", "24", "--dtype", "f64"]);
        assert_eq!(row["tokens"], alone[0]["tokens"], "{prompt}");
        assert_eq!(row["finish"], "length");
    }
}

#[test]
fn stop_strings_cut_the_text() {
    let dir = bytes_model();
    let tokenizer = tokenizer_of_letters(256);
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer).unwrap();
    let args = ["--prompt", "abc", "-n", "60", "--temperature", "2", "--seed", "3"];
    let whole = completions(dir.path(), &args)[0]["text"].as_str().unwrap().to_string();
    let letters: Vec<char> = whole.chars().collect();
    assert_eq!(letters.len(), 60, "one letter a token");
    let stop: String = letters[20..23].iter().collect();
    let cut = whole.find(&stop).unwrap();
    let stopped =
        &completions(dir.path(), &[&args[..], &["--stop", "never this", "--stop", &stop]].concat())[0];
    assert_eq!((stopped["text"].as_str(), stopped["finish"].as_str()), (Some(&whole[..cut]), Some("stop")));
    let live = generate(dir.path(), &[&args[..], &["--stop", &stop]].concat());
    assert_eq!(live, format!("{}\n", &whole[..cut]));
}

/// The end-of-text token of the configuration ends a text and is not part of it.
#[test]
fn end_tokens() {
    let dir = bytes_model();
    let args = ["--prompt", "abc", "-n", "30", "--temperature", "2", "--seed", "5"];
    let tokens = completions(dir.path(), &args)[0]["tokens"].as_array().unwrap().clone();
    let end = tokens[10].as_u64().unwrap();
    let first = tokens.iter().position(|t| t.as_u64() == Some(end)).unwrap();
    common::edit_config(dir.path(), |config| {
        config.insert("eos_token_id".into(), json!([end]));
    });
    let ended = &completions(dir.path(), &args)[0];
    assert_eq!(ended["tokens"].as_array().unwrap().as_slice(), &tokens[..first]);
    assert_eq!(ended["finish"], "stop_token");
}

#[test]
fn speed_goes_to_standard_error() {
    let dir = bytes_model();
    let output = semisep(&[
        "generate",
        dir.path().to_str().unwrap(),
        "--allow-missing",
        "--prompt",
        "hello",
        "-n",
        "5",
    ]);
    let text = stderr(&output);
    assert!(
        text.contains("5 prompt tokens") && text.contains("5 tokens in") && text.contains("tokens/s"),
        "{text}"
    );
}

#[test]
fn refusals() {
    let dir = bytes_model();
    let folder = dir.path().to_str().unwrap();
    let golden = golden("mamba-orig");
    let golden = golden.to_str().unwrap();
    for (args, part) in [
        (vec!["generate", golden, "--prompt", "x"], "a vocabulary of 101 has no room for bytes"),
        (vec!["generate", folder, "--allow-missing"], "expected a prompt, found none"),
        (vec!["generate", folder, "--allow-missing", "--prompt", ""], "prompt 0 is empty"),
        (
            vec!["generate", folder, "--prompt", "x", "--top-p", "2"],
            "--top-p: expected a number from 0 to 1, found 2",
        ),
        (vec!["generate", folder, "--prompt", "x", "--temperature", "NaN"], "--temperature: expected"),
        (vec!["generate", folder, "--prompt-file", "/nowhere"], "/nowhere: cannot be opened"),
        (vec!["generate", folder, "--prompt", "x"], "missing: backbone.layers.0.norm.weight"),
        (vec!["generate", folder, "--prompt", "x", "--device", "tpu"], "expected cpu, cuda or cuda:N"),
        (vec!["generate", folder, "--prompt", "x", "--dtype", "int8"], "invalid value 'int8'"),
        (vec!["no-such-command"], "unrecognized subcommand"),
    ] {
        let output = semisep(&args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(part) && !text.contains("panicked"), "{args:?}: {text:?} lacks {part:?}");
        assert!(output.stdout.is_empty());
    }
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let output = semisep(&["generate", folder, "--allow-missing", "--prompt", "x"]);
    assert!(stderr(&output).contains("tokenizer.json: expected a tokenizer"), "{}", stderr(&output));
    // A tokenizer of a larger vocabulary than the model's.
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer_of_letters(400)).unwrap();
    let output = semisep(&["generate", folder, "--allow-missing", "--prompt", &letter(300)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("token id 300"), "{}", stderr(&output));
}

#[test]
fn version_and_help() {
    let version = semisep(&["--version"]);
    assert_eq!(
        (version.status.code(), stdout(&version)),
        (Some(0), format!("semisep {}\n", env!("CARGO_PKG_VERSION")))
    );
    let help = semisep(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).contains("Exit codes:"));
    assert!(!stdout(&help).contains('\x1b'), "NO_COLOR is honoured");
    let run = semisep_zoo::cli::run(["semisep", "--version"].map(Into::into));
    assert_eq!(format!("{run:?}"), format!("{:?}", std::process::ExitCode::SUCCESS));
}

/// A letter a token: token i is the letter U+4E00 + i, but for a, b, c.
fn letter(i: u32) -> String {
    match i {
        97..=99 => char::from_u32(i),
        _ => char::from_u32(0x4e00 + i),
    }
    .unwrap()
    .to_string()
}

fn tokenizer_of_letters(size: u32) -> String {
    let vocab: serde_json::Map<String, Value> = (0..size).map(|i| (letter(i), json!(i))).collect();
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "Fuse" },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
    .to_string()
}
