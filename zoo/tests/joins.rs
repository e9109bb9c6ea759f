//! Parameters that are put together from stored tensors: read in one pass, from every format.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::{DType, Device};
use common::{Raw, Tensors, safetensors, torch};
use semisep_zoo::checkpoint::Checkpoint;

const ROWS: usize = 700;
const COLUMNS: usize = 301;

fn value(r: usize, c: usize) -> f32 {
    ((r * COLUMNS + c) % 1009) as f32
}

/// A slice of a tensor, then a slice of it transposed, and one more than what is stored: large enough for several threads.
/// PyTorch's file holds the same tensor as a view with strides.
#[test]
fn joined_views_and_a_constant() {
    let values: Vec<f32> = (0..ROWS * COLUMNS).map(|i| value(i / COLUMNS, i % COLUMNS)).collect();
    let tensors: Tensors = [("w".to_string(), Raw::f32(&[ROWS, COLUMNS], &values))].into();
    let dir = tempfile::tempdir().unwrap();
    let files = [("w.safetensors", safetensors(&tensors)), ("w.bin", torch(&tensors))];
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let checkpoint = Checkpoint::open_files(&[path]).unwrap();
        let stored = checkpoint.get("w").unwrap();
        let slice = stored.view().take(0, 5, COLUMNS).unwrap().take(1, 1, 300).unwrap();
        let turned = stored.view().swap(0, 1).unwrap().take(1, 7, 300).unwrap();
        let parts = [(stored, slice), (stored, turned)];
        for dtype in [DType::F64, DType::F32] {
            let read = checkpoint.read_views(&parts, &[2 * COLUMNS, 300], dtype, &Device::Cpu, 1.0).unwrap();
            assert_eq!((read.tensor.dtype(), read.non_finite), (dtype, 0));
            let found = read.tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            for r in 0..COLUMNS {
                for c in 0..300 {
                    assert_eq!(found[r][c], value(5 + r, 1 + c) + 1.0);
                    assert_eq!(found[COLUMNS + r][c], value(7 + c, r) + 1.0);
                }
            }
        }
        let short = checkpoint.read_views(&parts[..1], &[7, 300], DType::F32, &Device::Cpu, 0.0);
        let message = short.err().unwrap().to_string();
        assert!(message.contains("w [301, 300]: expected shape [7, 300]"), "{message}");
    }
}
