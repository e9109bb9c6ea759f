//! A GGUF file: header, metadata and table, the plan of its model, then every tensor and the tokenizer.
#![no_main]

use candle_core::{DType, Device};
use libfuzzer_sys::fuzz_target;
use semisep_zoo::checkpoint::Checkpoint;
use semisep_zoo::load::{LoadOptions, plan};
use semisep_zoo::tokenizer::Tokenizer;

fuzz_target!(|bytes: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else { return };
    let path = folder.path().join("model.gguf");
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    if let Ok(checkpoint) = Checkpoint::open(&path) {
        for stored in checkpoint.tensors() {
            let _ = checkpoint.read(&stored.name, &stored.shape, DType::F32, &Device::Cpu);
        }
    }
    let Ok(planned) = plan(&path, &LoadOptions::default()) else { return };
    if let Ok(tokenizer) = Tokenizer::open(&path, &planned.architecture.model)
        && let Ok(ids) = tokenizer.encode("0123 <s> abc")
    {
        let _ = tokenizer.decode(&ids);
    }
});
