//! A configuration without weights, through the importer of its family.
#![no_main]

use libfuzzer_sys::fuzz_target;
use semisep_zoo::checkpoint::Checkpoint;
use semisep_zoo::import::import;

fuzz_target!(|bytes: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else { return };
    if std::fs::write(folder.path().join("config.json"), bytes).is_ok() {
        let _ = import(folder.path(), &Checkpoint::empty());
    }
});
