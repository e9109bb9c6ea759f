//! GGUF files give the logits of the checkpoints that they were made of.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod conversion;
mod formats;
mod hostile;
mod listing;
mod logits;
#[path = "../common/mutate.rs"]
mod mutate;
mod rwkv;
mod split;
mod tokenizer;
mod writer;

use std::path::{Path, PathBuf};

use candle_core::DType;
use common::golden;
use semisep_zoo::load::{LoadOptions, load};
use semisep_zoo::verify::Expected;
use tempfile::TempDir;
use writer::Gguf;

#[global_allocator]
static ALLOCATOR: mutate::Counting = mutate::Counting;

fn written(file: &Gguf) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    (dir, path)
}

/// The largest difference from the reference, relative to the largest logit, of all forms.
fn error(path: &Path, name: &str, dtype: DType) -> f64 {
    let folder = golden(name);
    let expected = Expected::open(&folder.join("tokens.json"), &folder.join("expected.safetensors")).unwrap();
    let loaded = load(path, &LoadOptions { dtype, ..LoadOptions::default() }).unwrap();
    let forms = expected.compare(&loaded.model, f64::INFINITY).unwrap();
    assert_eq!(forms.len(), 3);
    forms.iter().map(|form| form.relative).fold(0.0, f64::max)
}
