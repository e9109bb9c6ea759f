//! A safetensors file: header, then every tensor.
#![no_main]

use candle_core::{DType, Device};
use libfuzzer_sys::fuzz_target;
use semisep_zoo::checkpoint::Checkpoint;

fuzz_target!(|bytes: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else { return };
    let path = folder.path().join("model.safetensors");
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    let Ok(checkpoint) = Checkpoint::open_files(&[path]) else { return };
    for stored in checkpoint.tensors() {
        let _ = checkpoint.read(&stored.name, &stored.shape, DType::F32, &Device::Cpu);
    }
    let _ = checkpoint.metadata();
});
