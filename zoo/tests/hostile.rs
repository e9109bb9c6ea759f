//! Every reader of files from strangers, given damaged ones: it refuses or understands them, and never panics, hangs or
//! holds more memory than a stated bound.
//!
//! ```text
//! SEMISEP_MUTATIONS=100000 cargo test --release --test hostile -- --nocapture
//! ```
//! gives each reader so many inputs (5,000 otherwise): over a million together. GGUF files are in `gguf/hostile.rs`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/mutate.rs"]
mod mutate;

use std::path::Path;

use candle_core::{DType, Device};
use common::{Raw, Tensors, copy, golden, safetensors, torch, write_shards};
use mutate::{Counting, folder, run, run_file};
use semisep_core::VarBuilder;
use semisep_models::{Blueprint, LanguageModel, Registry, Session, blueprints};
use semisep_zoo::checkpoint::Checkpoint;
use semisep_zoo::eval::read_questions;
use semisep_zoo::load::{LoadOptions, plan};
use semisep_zoo::tokenizer::Tokenizer;
use semisep_zoo::verify::Expected;
use semisep_zoo::{catalogue, import, state_file};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a reader may hold for an input of some kilobytes.
const SMALL: usize = 8 << 20;
/// With a model of at most 10,000 layers built as bare shapes.
const MODEL: usize = 512 << 20;

fn small() -> Tensors {
    let values: Vec<f32> = (0..24).map(|v| v as f32).collect();
    [
        ("backbone.embedding.weight".to_string(), Raw::f32(&[4, 6], &values)),
        ("backbone.layers.0.mixer.A_log".into(), Raw::f32(&[3], &values[..3])),
        ("backbone.layers.0.mixer.conv1d.weight".into(), Raw::f32(&[6, 1, 4], &values)),
    ]
    .into()
}

/// Reads all of a file's tensors.
fn read_all(checkpoint: semisep_zoo::Result<Checkpoint>) -> bool {
    let Ok(checkpoint) = checkpoint else { return false };
    for stored in checkpoint.tensors() {
        // A tensor that cannot be read is refused by itself.
        let _ = checkpoint.read(&stored.name, &stored.shape, DType::F32, &Device::Cpu);
    }
    let _ = checkpoint.metadata();
    true
}

#[test]
fn safetensors_headers() {
    let (dir, file) = (folder(), safetensors(&small()));
    let head = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    std::fs::write(dir.path().join("model.safetensors"), &file).unwrap();
    run_file(dir.path(), "model.safetensors", Some(head), SMALL, |folder| read_all(Checkpoint::open(folder)));
}

#[test]
fn shard_indices() {
    let dir = folder();
    write_shards(dir.path(), &small());
    run_file(dir.path(), "model.safetensors.index.json", None, SMALL, |folder| {
        read_all(Checkpoint::open(folder))
    });
}

#[test]
fn pytorch_archives() {
    let dir = folder();
    std::fs::write(dir.path().join("pytorch_model.bin"), torch(&small())).unwrap();
    run_file(dir.path(), "pytorch_model.bin", None, SMALL, |folder| read_all(Checkpoint::open(folder)));
}

/// The pickle alone, so that damage does not stop at the archive's directory.
#[test]
fn pickles() {
    let file = torch(&small());
    let start = file.windows(4).position(|w| w == b"\x80\x02}q").unwrap();
    let end = start + file[start..].windows(2).position(|w| w == b"u.").unwrap() + 2;
    let storages: Vec<Vec<u8>> = small().values().map(|t| t.bytes.clone()).collect();
    let dir = folder();
    let path = dir.path().join("pytorch_model.bin");
    run("pickle", &file[start..end], end - start, SMALL, |input| {
        mutate::replace(&path, &common::archive(input, &storages));
        read_all(Checkpoint::open(dir.path()))
    });
}

/// One configuration of each layout of keys, without weights.
#[test]
fn configurations() {
    for name in ["mamba-hf", "mamba2attn-mlp-orig", "rwkv7-fla", "hyenadna-hf", "stripedhyena", "xlstm"] {
        let dir = folder();
        std::fs::copy(golden(name).join("config.json"), dir.path().join("config.json")).unwrap();
        run_file(dir.path(), "config.json", None, SMALL, |folder| {
            import::import(folder, &Checkpoint::empty()).is_ok()
        });
    }
}

/// With weights, whose shapes bound what may be built.
#[test]
fn configurations_beside_weights() {
    for name in ["mamba2-hf", "retnet-torchscale"] {
        let dir = copy(name);
        run_file(dir.path(), "config.json", None, MODEL, |folder| {
            plan(folder, &LoadOptions::default()).is_ok()
        });
    }
}

#[test]
fn blueprints_of_strangers() {
    let source = blueprints::source("mamba2-hybrid").unwrap().as_bytes().to_vec();
    let registry = Registry::builtin();
    let read = |input: &[u8]| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        Blueprint::parse(text, "blueprint.toml", &registry).is_ok()
    };
    run("blueprint", &source, source.len(), SMALL, read);
}

#[test]
fn tokenizers() {
    let vocab: Vec<String> = (0..64).map(|i| format!("\"{}\":{i}", char::from(b'0' + i))).collect();
    let text = format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{{"id":64,"content":"<s>",
        "single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}],"normalizer":null,
        "pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}},
        "post_processor":null,"decoder":{{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,
        "use_regex":true}},"model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
        "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"vocab":{{{}}},"merges":[]}}}}"#,
        vocab.join(",").replace("\"\\\"", "\"\\\\\"")
    );
    let dir = folder();
    std::fs::write(dir.path().join("tokenizer.json"), &text).unwrap();
    let model = semisep_models::normal::ModelConfig::new(8, 256);
    run_file(dir.path(), "tokenizer.json", None, 64 << 20, |folder| {
        let Ok(tokenizer) = Tokenizer::open(folder, &model) else { return false };
        tokenizer.encode("0123 <s> abc").and_then(|ids| tokenizer.decode(&ids)).is_ok()
    });
}

/// RWKV's vocabulary, and the configuration by which HyenaDNA's characters are known.
#[test]
fn vocabularies_that_are_no_tokenizer_json() {
    let model = semisep_models::normal::ModelConfig::new(8, 256);
    let works = |folder: &Path| {
        let Ok(tokenizer) = Tokenizer::open(folder, &model) else { return false };
        tokenizer.encode("ab ACGT").and_then(|ids| tokenizer.decode(&ids)).is_ok()
    };
    let lines: String = (0..=255u8).map(|b| format!("{} b'\\x{b:02x}' 1\n", u32::from(b) + 1)).collect();
    let lines = format!("{lines}257 'ab' 2\n258 '\\u20ac\\'' 4\n259 \"\\n it's\" 6\n");
    let config = r#"{"tokenizer_class": "HyenaDNATokenizer", "characters": ["A", "C", "G", "T", "N"]}"#;
    for (name, content) in [("rwkv_vocab_v20230424.txt", &lines[..]), ("tokenizer_config.json", config)] {
        let dir = folder();
        std::fs::write(dir.path().join(name), content).unwrap();
        run_file(dir.path(), name, None, 64 << 20, works);
    }
}

#[test]
fn tokens_and_expected_values() {
    let dir = copy("mamba-hf");
    let read = |folder: &Path| {
        Expected::open(&folder.join("tokens.json"), &folder.join("expected.safetensors")).is_ok()
    };
    run_file(dir.path(), "tokens.json", None, SMALL, read);
    run_file(dir.path(), "expected.safetensors", Some(400), SMALL, read);
    run_file(dir.path(), "meta.json", None, SMALL, read);
}

#[test]
fn catalogues() {
    let dir = folder();
    let shipped =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("catalogue.toml")).unwrap();
    let some: Vec<&str> = shipped.split("[[model]]").step_by(37).collect();
    std::fs::write(dir.path().join("catalogue.toml"), some.join("[[model]]")).unwrap();
    run_file(dir.path(), "catalogue.toml", None, SMALL, |folder| {
        catalogue::open(&folder.join("catalogue.toml")).is_ok()
    });
}

#[test]
fn questions() {
    let line = r#"{"context": "2 + 2 =", "choices": ["3", "4"], "answer": 1}"#;
    let lines = [line; 4].join("\n");
    run("questions", lines.as_bytes(), lines.len(), SMALL, |input| {
        std::str::from_utf8(input).is_ok_and(|text| read_questions(text, Path::new("q.jsonl")).is_ok())
    });
}

#[test]
fn state_files() {
    let dir = folder();
    let source = blueprints::source("mamba2-hybrid").unwrap();
    let architecture = Blueprint::parse(source, "b", &Registry::builtin()).unwrap().architecture();
    let model = LanguageModel::new(&architecture, &VarBuilder::seeded(1, DType::F32, Device::Cpu)).unwrap();
    let mut session = Session::new(&model, &[b"some text".iter().map(|&b| b.into()).collect()]).unwrap();
    session.read(&model, 8).unwrap();
    let path = dir.path().join("state.safetensors");
    state_file::save(&path, &session, &architecture).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let head = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let read =
        |folder: &Path| state_file::load(&folder.join("state.safetensors"), &model, &architecture).is_ok();
    // The file is some 800 kB, held three times while it is taken over.
    run_file(dir.path(), "state.safetensors", Some(head), SMALL, read);
}
