//! A tokenizer of each kind of file, and a text through it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use semisep_models::normal::ModelConfig;
use semisep_zoo::tokenizer::Tokenizer;

const FILES: [&str; 3] = ["tokenizer.json", "rwkv_vocab_v20230424.txt", "tokenizer_config.json"];

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let Ok(folder) = tempfile::tempdir() else { return };
    let name = FILES[usize::from(*kind) % FILES.len()];
    if std::fs::write(folder.path().join(name), bytes).is_err() {
        return;
    }
    let Ok(tokenizer) = Tokenizer::open(folder.path(), &ModelConfig::new(8, 256)) else { return };
    if let Ok(ids) = tokenizer.encode("0123 <s> abc") {
        let _ = tokenizer.decode(&ids);
    }
});
