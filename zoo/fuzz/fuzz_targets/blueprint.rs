//! A blueprint; one that is good is written and read back as the same architecture.
#![no_main]

use libfuzzer_sys::fuzz_target;
use semisep_models::{Blueprint, Registry};

fuzz_target!(|source: &str| {
    let registry = Registry::builtin();
    if let Ok(blueprint) = Blueprint::parse(source, "blueprint.toml", &registry) {
        let architecture = blueprint.architecture();
        let again = Blueprint::parse(&architecture.to_toml(), "written.toml", &registry);
        assert_eq!(again.map(|b| b.architecture().hash()).ok(), Some(architecture.hash()));
    }
});
