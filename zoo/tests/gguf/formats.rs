//! Formats that nothing multiplies by: blocks that llama.cpp wrote, beside what it makes of them (`listings/README.md`).

use std::path::Path;

use candle_core::{DType, Device};
use semisep_core::{BlockFormat, WeightType};
use semisep_zoo::checkpoint::{Checkpoint, Packed};
use semisep_zoo::load::{LoadOptions, load};

use crate::conversion::gguf;
use crate::{error, written};

#[test]
fn blocks_are_the_numbers_that_ggml_makes_of_them() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf/packed.gguf");
    let checkpoint = Checkpoint::open(&file).unwrap();
    let read = |name: &str| {
        let read = checkpoint.read(name, &[256], DType::F32, &Device::Cpu).unwrap();
        read.tensor.to_vec1::<f32>().unwrap()
    };
    for format in Packed::ALL {
        let (found, expected) =
            (read(format.name()), read(&format!("{format}.values", format = format.name())));
        let largest = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
        assert!(largest > 0.1, "{format:?}");
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let difference = (found - expected).abs();
            assert!(difference <= 1e-6 * largest, "{format:?}: {found} for {expected} at {i}");
        }
    }
}

/// Matrices in such a format are held in eight bits unless another format is asked for; a note says so.
#[test]
fn models_in_formats_that_nothing_multiplies_by() {
    let mut file = gguf("granitemoehybrid", false);
    file.pack_iq4_nl();
    let (_dir, path) = written(&file);
    let loaded = load(&path, &LoadOptions::default()).unwrap();
    let held = |format| {
        loaded.model.parameter_groups().iter().filter(|g| g.held == Some(WeightType::Blocks(format))).count()
    };
    assert!(held(BlockFormat::Q8_0) > 10, "{}", held(BlockFormat::Q8_0));
    let note = "what is stored in iq4_nl is held in q8_0";
    assert!(loaded.report.notes.iter().any(|n| n.contains(note)), "{:?}", loaded.report.notes);
    let found = error(&path, "granitemoehybrid", DType::F32);
    assert!(found > 1e-3 && found < 0.5, "{found}");
    let four = LoadOptions { quant: Some(BlockFormat::Q4_0), ..LoadOptions::default() };
    let loaded = load(&path, &four).unwrap();
    assert!(loaded.report.notes.iter().any(|n| n.contains("held in q4_0")), "{:?}", loaded.report.notes);
}

/// A type that is not read is named.
#[test]
fn formats_that_are_refused() {
    let mut file = gguf("mamba-hf", false);
    file.say_type("blk.0.ssm_in.weight", 17);
    let (_dir, path) = written(&file);
    let Err(refused) = load(&path, &LoadOptions::default()) else { panic!("iq2_xs was read") };
    let message = refused.to_string();
    assert!(message.contains("in_proj.weight has elements of type iq2_xs, expected numbers"), "{message}");
}
