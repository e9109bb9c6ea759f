//! A tokenizer, and a text through it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use semisep_models::normal::ModelConfig;
use semisep_zoo::tokenizer::Tokenizer;

fuzz_target!(|bytes: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else { return };
    if std::fs::write(folder.path().join("tokenizer.json"), bytes).is_err() {
        return;
    }
    let Ok(tokenizer) = Tokenizer::open(folder.path(), &ModelConfig::new(8, 256)) else { return };
    if let Ok(ids) = tokenizer.encode("0123 <s> abc") {
        let _ = tokenizer.decode(&ids);
    }
});
