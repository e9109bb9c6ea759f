//! Thousands of damaged files: the readers refuse or read them, and never panic, hang or ask for more memory than the
//! file is large.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use candle_core::{DType, Device};
use common::{Raw, Tensors, safetensors, torch};
use semisep_core::Rng;
use semisep_zoo::checkpoint::Checkpoint;
use semisep_zoo::load::{LoadOptions, plan};
use serde_json::{Value, json};

const MUTATIONS: usize = 4000;

fn small() -> Tensors {
    let values: Vec<f32> = (0..24).map(|v| v as f32).collect();
    [
        ("backbone.embedding.weight".to_string(), Raw::f32(&[4, 6], &values)),
        ("backbone.layers.0.mixer.A_log".into(), Raw::f32(&[3], &values[..3])),
        ("backbone.layers.0.mixer.conv1d.weight".into(), Raw::f32(&[6, 1, 4], &values)),
    ]
    .into()
}

/// One to four changes: a bit, a byte, a run of bytes cut or doubled, the end cut off, numbers of interest.
fn mutate(original: &[u8], head: usize, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=rng.below(4) {
        // Mostly where the structure is.
        let span = if rng.below(4) == 0 { bytes.len() } else { head.min(bytes.len()) };
        let at = rng.below(span.max(1));
        if at >= bytes.len() {
            continue;
        }
        match rng.below(7) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.below(256) as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..(at + 1 + rng.below(16)).min(bytes.len()))),
            4 => {
                let run = bytes[at..(at + 1 + rng.below(32)).min(bytes.len())].to_vec();
                bytes.splice(at..at, run);
            }
            5 => {
                let big = [u64::MAX, 1 << 63, 1 << 40, u64::from(u32::MAX), 0][rng.below(5)].to_le_bytes();
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&big[..end - at]);
            }
            _ => {
                // A digit or an opcode for another.
                let pool = b"0123456789-e{}[]\",:().tRQcXqhus\x85\x86\x87\x88\x8a\x93\x94";
                bytes[at] = pool[rng.below(pool.len())];
            }
        }
    }
    bytes
}

/// A new file: truncating one that is there makes some file systems write it to disk first.
fn replace(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}

/// Opens a file and reads all of it.
fn exercise(path: &Path) -> bool {
    let Ok(checkpoint) = Checkpoint::open_files(&[path.into()]) else { return false };
    let size = std::fs::metadata(path).unwrap().len() as usize;
    for stored in checkpoint.tensors() {
        if let Ok(read) = checkpoint.read(&stored.name, &stored.shape, DType::F32, &Device::Cpu) {
            assert!(read.tensor.elem_count() <= size, "{} elements from a file of {size}", stored.elements);
        }
    }
    true
}

fn run(name: &str, original: &[u8], head: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, original).unwrap();
    assert!(exercise(&path), "the original is readable");
    let mut rng = Rng::named(1, name);
    let mut refused = 0;
    for i in 0..MUTATIONS {
        let mutated = mutate(original, head, &mut rng);
        replace(&path, &mutated);
        let outcome = std::panic::catch_unwind(|| exercise(&path));
        match outcome {
            Ok(readable) => refused += usize::from(!readable),
            Err(_) => panic!("mutation {i} of {name}: {mutated:?}"),
        }
    }
    assert!(
        refused > MUTATIONS / 4,
        "only {refused} of {MUTATIONS} were refused: do the mutations reach the header?"
    );
}

#[test]
fn safetensors_headers() {
    let file = safetensors(&small());
    let head = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    run("model.safetensors", &file, head);
}

#[test]
fn pytorch_archives() {
    let file = torch(&small());
    run("pytorch_model.bin", &file, file.len());
}

/// The pickle alone, so that damage does not stop at the archive's directory.
#[test]
fn pickles() {
    let file = torch(&small());
    let start = file.windows(4).position(|w| w == b"\x80\x02}q").unwrap();
    let end = start + file[start..].windows(2).position(|w| w == b"u.").unwrap() + 2;
    let storages: Vec<Vec<u8>> = small().values().map(|t| t.bytes.clone()).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    let mut rng = Rng::named(2, "pickle");
    let mut refused = 0;
    for i in 0..MUTATIONS {
        let pickle = mutate(&file[start..end], end - start, &mut rng);
        replace(&path, &common::archive(&pickle, &storages));
        match std::panic::catch_unwind(|| exercise(&path)) {
            Ok(readable) => refused += usize::from(!readable),
            Err(_) => panic!("mutation {i}: {pickle:?}"),
        }
    }
    assert!(refused > MUTATIONS / 4, "only {refused} of {MUTATIONS} were refused");
}

/// Every value of a configuration becomes something else, one or two at a time: it is refused or understood, and nothing
/// larger than the checkpoint is allocated on its word.
#[test]
fn configurations() {
    let odd = [
        json!(null),
        json!(-1),
        json!(0),
        json!(1),
        json!(3),
        json!(7),
        json!(64),
        json!(1.5),
        json!(1e18),
        json!(1 << 24),
        json!((1 << 24) - 1),
        json!(u64::MAX),
        json!("x"),
        json!(true),
        json!([]),
        json!([1]),
        json!({}),
    ];
    let mut rng = Rng::named(3, "config");
    for name in [
        "mamba-hf",
        "mamba2-hf",
        "mamba-orig",
        "mamba2-orig-groups",
        "mamba2attn-orig",
        "mamba2attn-mlp-orig",
    ] {
        let dir = common::copy(name);
        let path = dir.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap().replace("Infinity", "1e300");
        let original: Value = serde_json::from_str(&text).unwrap();
        let mut refused = 0;
        for _ in 0..300 {
            let mut config = original.clone();
            for _ in 0..=rng.below(2) {
                let mut object = config.as_object_mut().unwrap();
                let sections: Vec<String> =
                    object.iter().filter(|(_, v)| v.is_object()).map(|(k, _)| k.clone()).collect();
                if !sections.is_empty() && rng.below(2) == 0 {
                    let section = &sections[rng.below(sections.len())];
                    object = object[section].as_object_mut().unwrap();
                }
                let keys: Vec<String> = object.keys().cloned().collect();
                if !keys.is_empty() {
                    object.insert(keys[rng.below(keys.len())].clone(), odd[rng.below(odd.len())].clone());
                }
            }
            replace(&path, config.to_string().as_bytes());
            let planned = std::panic::catch_unwind(|| plan(dir.path(), &LoadOptions::default()).is_err());
            refused += usize::from(planned.unwrap_or_else(|_| panic!("{name}: {config}")));
        }
        assert!(refused > 60, "{name}: only {refused} of 300 were refused");
    }
}
