//! Every family, as llama.cpp writes it.

use candle_core::DType;
use semisep_core::{BlockFormat, ParameterGroup, WeightType};
use semisep_zoo::load::{LoadOptions, load, plan};

use crate::conversion::{filled, gguf};
use crate::listing::Listing;
use crate::{error, rwkv, written};

#[test]
fn files_in_f32_give_the_references_logits() {
    for name in [
        "bamba",
        "falcon_h1",
        "falcon_mamba",
        "gpt_neox",
        "granitemoehybrid",
        "jamba-dense",
        "jamba-moe",
        "lfm2",
        "lfm2_moe",
        "llama",
        "mamba-hf",
        "mamba2-hf",
        "nemotron_h",
        "nemotron_h-moe",
        "olmo2",
        "qwen3",
        "qwen3_next",
        "rwkv6-pth",
        "rwkv7-pth",
    ] {
        let (dir, path) = written(&gguf(name, false));
        // Factors were multiplied in, and A_log went through an exponential, in single precision.
        let double = error(&path, name, DType::F64);
        assert!(double < 2e-5, "{name} in f64: {double}");
        let single = error(dir.path(), name, DType::F32);
        assert!(single < 3e-4, "{name} in f32: {single}");
    }
}

/// What these files do not say: windows, and which GELU it is.
#[test]
fn files_that_say_less_than_the_checkpoint() {
    for name in ["mistral", "qwen2", "gpt_neox-serial"] {
        let (_dir, path) = written(&gguf(name, false));
        let planned = plan(&path, &LoadOptions::default()).unwrap();
        assert!(planned.report.missing.is_empty() && planned.report.unexpected.is_empty(), "{name}");
    }
}

/// A model of which every other layer's part was divided gives the same but for the eps of norms.
#[test]
fn rescaled_layers() {
    let listing = Listing::of("rwkv6-pth").with("rescale_every_n_layers", "1");
    let (_dir, path) = written(&filled(&listing, rwkv::rwkv6(1), false));
    let found = error(&path, "rwkv6-pth", DType::F64);
    assert!(found < 2e-3, "{found}");
}

/// Blocks arrive as they lie in the file, and lose what eight bits lose; other formats can be made of them.
#[test]
fn files_in_q8_0_stay_in_blocks() {
    for name in
        ["granitemoehybrid", "jamba-moe", "lfm2", "llama", "mamba-hf", "mamba2-hf", "rwkv6-pth", "rwkv7-pth"]
    {
        let (_dir, path) = written(&gguf(name, true));
        let loaded = load(&path, &LoadOptions::default()).unwrap();
        let groups = loaded.model.parameter_groups();
        let held = |name: &str| groups.iter().filter(|g| g.held.is_some_and(|h| h.name() == name)).count();
        assert!(held("q8_0") >= 2, "{name}: {} in q8_0", held("q8_0"));
        for dtype in [DType::F32, DType::F64] {
            let found = error(&path, name, dtype);
            // A router that chooses another expert changes more than any rounding.
            let most = if name.contains("moe") { 0.2 } else { 5e-2 };
            assert!(found > 1e-5 && found < most, "{name} {dtype:?}: {found}");
        }
        let four = LoadOptions { quant: Some(BlockFormat::Q4_0), ..LoadOptions::default() };
        let loaded = load(&path, &four).unwrap();
        let q4 = |g: &&ParameterGroup| g.held == Some(WeightType::Blocks(BlockFormat::Q4_0));
        assert!(loaded.model.parameter_groups().iter().any(|g| q4(&g)));
    }
}
