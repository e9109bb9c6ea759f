//! Files that are damaged or lie.

use std::path::Path;

use candle_core::{DType, Device};
use semisep_zoo::checkpoint::{Checkpoint, Stored};
use semisep_zoo::load::{LoadOptions, plan};
use semisep_zoo::tokenizer::Tokenizer;

use crate::common::{semisep, stderr};
use crate::conversion::gguf;
use crate::mutate;
use crate::tokenizer::with_tokenizer;
use crate::writer::{Gguf, Numbers};
use crate::written;

/// Every byte of the first part of a file cut off or changed: an error or a model, never a panic.
#[test]
fn damaged_files() {
    let bytes = gguf("mamba-hf", true).bytes();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let header = 4096.min(bytes.len());
    for cut in (1..header).step_by(13).chain([bytes.len() - 1]) {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert!(Checkpoint::open(&path).is_err(), "cut at {cut}");
    }
    for at in (0..header).step_by(3) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x81;
        std::fs::write(&path, changed).unwrap();
        if let Ok(planned) = semisep_zoo::load::plan(&path, &LoadOptions::default()) {
            drop(planned);
        }
    }
    std::fs::write(&path, Gguf::of("gptj").bytes()).unwrap();
    let output = semisep(&["describe", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("known architectures: falcon-h1, gptneox, granite, granitehybrid, jamba"),
        "{}",
        stderr(&output)
    );
}

const BOUND: usize = 256 << 20;

/// Where the table of tensors ends: the rest of a file is the tensors' bytes.
fn head(bytes: &[u8], last: &str) -> usize {
    bytes.windows(last.len()).rposition(|w| w == last.as_bytes()).map_or(bytes.len(), |at| at + 64)
}

/// Damaged headers, metadata, vocabularies and tensor tables, as in the tests of the other readers (`hostile.rs`).
#[test]
fn hostile_files() {
    let dir = mutate::folder();
    let bytes = with_tokenizer(gguf("mamba-hf", true), 104).bytes();
    std::fs::write(dir.path().join("model.gguf"), &bytes).unwrap();
    mutate::run_file(dir.path(), "model.gguf", Some(head(&bytes, "token_embd.")), BOUND, |folder| {
        let path = folder.join("model.gguf");
        let Ok(planned) = plan(&path, &LoadOptions::default()) else { return false };
        let tokenizer = Tokenizer::open(&path, &planned.architecture.model);
        tokenizer.and_then(|t| t.encode("the th!").and_then(|ids| t.decode(&ids))).is_ok()
    });
}

/// Families whose tensors are put together of parts, cut into several, or brought into another order.
#[test]
fn hostile_tensors() {
    for name in ["granitemoehybrid", "qwen3_next"] {
        let dir = mutate::folder();
        let bytes = gguf(name, true).bytes();
        std::fs::write(dir.path().join("model.gguf"), &bytes).unwrap();
        mutate::run_file(dir.path(), "model.gguf", Some(head(&bytes, "token_embd.")), BOUND, |folder| {
            all_read(&folder.join("model.gguf"))
        });
    }
}

/// Blocks of every format with any bytes, and tables that say otherwise of them.
#[test]
fn hostile_blocks() {
    let dir = mutate::folder();
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf/packed.gguf");
    std::fs::copy(original, dir.path().join("model.gguf")).unwrap();
    mutate::run_file(dir.path(), "model.gguf", None, BOUND, |folder| all_read(&folder.join("model.gguf")));
}

/// Whether every tensor of a file can be read.
fn all_read(path: &Path) -> bool {
    let Ok(checkpoint) = Checkpoint::open(path) else { return false };
    let read = |tensor: &Stored| checkpoint.read(&tensor.name, &tensor.shape, DType::F32, &Device::Cpu);
    checkpoint.tensors().all(|tensor| read(tensor).is_ok())
}

/// Vectors in one tensor of blocks, where a block belongs to two of them.
#[test]
fn pieces_that_begin_within_a_block() {
    let mut file = Gguf::of("rwkv7");
    let values: Vec<f32> = (0..6 * 48).map(|i| i as f32 - 127.0).collect();
    file.blocks("blk.0.time_mix_lerp_fused.weight", &Numbers { shape: vec![288], values: values.clone() });
    let (_dir, path) = written(&file);
    let checkpoint = Checkpoint::open(&path).unwrap();
    for (i, part) in ["r", "w", "k", "v", "a", "g"].into_iter().enumerate() {
        let read =
            checkpoint.read(&format!("blocks.0.att.x_{part}"), &[48], DType::F32, &Device::Cpu).unwrap();
        let found = read.tensor.to_vec1::<f32>().unwrap();
        let expected = &values[48 * i..48 * (i + 1)];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1.0), "{part}: {found:?}");
    }
}
