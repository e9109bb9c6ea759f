//! `semisep eval` against sums over plain logits.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use candle_core::{DType, Device, IndexOp, Tensor};
use common::{bytes_model, semisep, stderr, stdout};
use semisep_models::LanguageModel;
use semisep_zoo::load::{LoadOptions, load};
use serde_json::{Value, json};

const TEXT: &str = "It was the best of times, it was the worst of times; naïve, it was — and so on and on.";

fn model(folder: &Path) -> LanguageModel {
    let options = LoadOptions { dtype: DType::F64, allow_missing: true, ..Default::default() };
    load(folder, &options).unwrap().model
}

/// Log-likelihoods of ids[from..], one pass over the sequence alone.
fn plain(model: &LanguageModel, ids: &[u32], from: usize) -> f64 {
    let row = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let logits = model.forward(&row, None).unwrap().i(0).unwrap();
    let log_p = log_softmax(&logits);
    (from..ids.len()).map(|t| log_p[t - 1][ids[t] as usize]).sum()
}

fn log_softmax(logits: &Tensor) -> Vec<Vec<f64>> {
    let rows = logits.to_vec2::<f64>().unwrap();
    let normal = |row: Vec<f64>| {
        let sum: f64 = row.iter().map(|v| v.exp()).sum();
        row.into_iter().map(|v| v - sum.ln()).collect()
    };
    rows.into_iter().map(normal).collect()
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn eval(what: &str, folder: &Path, file: &Path, more: &[&str]) -> Value {
    let args = ["eval", what, folder.to_str().unwrap(), file.to_str().unwrap()];
    let tail = ["--dtype", "f64", "--allow-missing", "--json"];
    let output = semisep(&[&args[..], &tail, more].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn perplexity_in_windows_and_whole() {
    let dir = bytes_model();
    let file = dir.path().join("text.txt");
    std::fs::write(&file, TEXT).unwrap();
    let (model, ids) = (model(dir.path()), bytes(TEXT));
    let n = ids.len();
    // By hand: windows of 20 tokens that each predict 5 new ones.
    let mut by_hand = plain(&model, &ids[..20], 1);
    for start in (20..n).step_by(5) {
        let end = (start + 5).min(n);
        by_hand += plain(&model, &ids[end - 20..end], 20 - (end - start));
    }
    for (args, expected) in [
        (vec!["--context", "0"], plain(&model, &ids, 1)),
        (vec!["--context", "0", "--chunk", "7"], plain(&model, &ids, 1)),
        (vec!["--context", "4000"], plain(&model, &ids, 1)),
        (vec!["--context", "20", "--stride", "5"], by_hand),
        (vec!["--context", "20", "--stride", "5", "--chunk", "45"], by_hand),
        (vec!["--context", "20", "--stride", "5", "--chunk", "3"], by_hand),
    ] {
        let result = &eval("ppl", dir.path(), &file, &args)["result"];
        let close = |key: &str, value: f64| {
            let found = result[key].as_f64().unwrap();
            assert!((found / value - 1.0).abs() < 1e-9, "{args:?} {key}: {found} against {value}");
        };
        close("nll", -expected);
        close("perplexity", (-expected / (n - 1) as f64).exp());
        close("bits_per_byte", -expected / 2f64.ln() / n as f64);
        close("word_perplexity", (-expected / TEXT.split_whitespace().count() as f64).exp());
        assert_eq!(result["predicted"], n - 1);
    }
}

#[test]
fn multiple_choice_as_by_hand() {
    let dir = bytes_model();
    common::edit_config(dir.path(), |config| {
        config.insert("eos_token_id".into(), json!(3));
    });
    let model = model(dir.path());
    let questions = [
        ("The capital of France is", vec!["Paris", "a rather long and unlikely answer", "no"], 0),
        ("2 + 2 = ", vec!["4", "5"], 1),
        ("", vec!["yes", "maybe so", "no"], 2),
        ("a b c", vec!["d", "e", "fffff"], 2),
    ];
    let (mut right, mut right_norm) = (0, 0);
    let mut lines = String::new();
    for (context, choices, answer) in &questions {
        let score = |choice: &&str| {
            let mut ids = bytes(&format!("{context} {choice}"));
            let mut from = context.trim_end().len();
            if from == 0 {
                ids.insert(0, 3);
                from = 1;
            }
            plain(&model, &ids, from)
        };
        let sums: Vec<f64> = choices.iter().map(score).collect();
        let first_best =
            |values: &[f64]| (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b]));
        let by_length: Vec<f64> = sums.iter().zip(choices).map(|(s, c)| s / c.len() as f64).collect();
        right += usize::from(first_best(&sums) == Some(*answer));
        right_norm += usize::from(first_best(&by_length) == Some(*answer));
        lines += &format!("{}\n", json!({ "context": context, "choices": choices, "answer": answer }));
    }
    let file = dir.path().join("questions.jsonl");
    std::fs::write(&file, lines).unwrap();
    for more in [&[][..], &["--chunk", "10"]] {
        let result = &eval("mc", dir.path(), &file, more)["result"];
        assert_eq!(result["questions"], 4);
        assert_eq!(result["acc"], right as f64 / 4.0);
        assert_eq!(result["acc_norm"], right_norm as f64 / 4.0);
    }
}

#[test]
fn refusals() {
    let dir = bytes_model();
    let folder = dir.path().to_str().unwrap();
    let path = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (short, text) = (path("short.txt", "a"), path("text.txt", TEXT));
    let (bad, empty) = (path("bad.jsonl", "{}"), path("empty.jsonl", "\n"));
    let lone = path("lone.jsonl", r#"{"context": "", "choices": ["a", "b"], "answer": 0}"#);
    for (args, part) in [
        (vec!["ppl", folder, &short], "at least two tokens, found 1"),
        (vec!["ppl", folder, "/nowhere"], "/nowhere: cannot be opened"),
        (vec!["ppl", folder, &text, "--context", "1"], "--context: expected at least 2"),
        (vec!["ppl", folder, &text, "--context", "8", "--stride", "8"], "--stride: expected less than"),
        (vec!["mc", folder, &bad], "bad.jsonl: line 1: missing field"),
        (vec!["mc", folder, &empty], "expected a question a line"),
        (vec!["mc", folder, &lone], "question 0: the context has no tokens"),
    ] {
        let output = semisep(&[&["eval"], &args[..], &["--allow-missing"]].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(part) && !text.contains("panicked"), "{args:?}: {text:?} lacks {part:?}");
    }
}
