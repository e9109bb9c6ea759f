//! Checkpoints loaded into quantised blocks.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::DType;
use common::golden;
use semisep_core::{Activations, BlockFormat, WeightType};
use semisep_zoo::load::{LoadOptions, load};
use semisep_zoo::verify::Expected;

/// The largest difference from the reference's logits, relative to the largest logit, over all forms.
fn error(name: &str, quant: BlockFormat, activations: Activations) -> f64 {
    let folder = golden(name);
    let options = LoadOptions { quant: Some(quant), activations, ..LoadOptions::default() };
    let loaded = load(&folder, &options).unwrap();
    let blocks = loaded.model.parameter_groups().iter().filter_map(|g| g.held);
    assert!(blocks.into_iter().any(|held| matches!(held, WeightType::Blocks(_))), "{name}: no blocks");
    let expected = Expected::open(&folder.join("tokens.json"), &folder.join("expected.safetensors")).unwrap();
    let forms = expected.compare(&loaded.model, f64::INFINITY).unwrap();
    forms.iter().map(|form| form.relative).fold(0.0, f64::max)
}

/// Eight bits lose some hundredths of the largest logit (half precision loses a third of that), four bits some sixteen times
/// as much, as their steps are so much larger: these models are tiny, so that nothing averages out. Activations in eight
/// bits lose up to some times as much as weights: one large value leaves the others of its group few bits.
#[test]
fn errors_stay_in_proportion_to_the_bits() {
    for name in ["mamba-hf", "mamba2-hf", "mamba2attn-mlp-orig", "rwkv6-pth", "rwkv7-pth", "gla-fla"] {
        let exact = |format| error(name, format, Activations::Exact);
        let (eight, four) = (exact(BlockFormat::Q8_0), exact(BlockFormat::Q4_0));
        assert!(eight > 1e-5 && eight < 0.1, "{name}: q8_0 {eight}");
        assert!(four > 2.0 * eight && four < 40.0 * eight, "{name}: q4_0 {four}, q8_0 {eight}");
        let rounded = error(name, BlockFormat::Q8_0, Activations::Rounded);
        assert!(rounded != eight && rounded < 5.0 * eight, "{name}: q8_0 {eight}, activations too {rounded}");
    }
}

/// Fallbacks are told; what is no matrix stays as it was.
#[test]
fn the_report_tells_of_fallbacks() {
    let options = LoadOptions { quant: Some(BlockFormat::Q4K), ..LoadOptions::default() };
    let loaded = load(&golden("mamba-hf"), &options).unwrap();
    let note = loaded.report.notes.iter().find(|note| note.contains("q4_k")).unwrap();
    assert!(note.contains("in_proj.weight in f16") && note.contains("x_proj.weight in q5_0"), "{note}");
    let f32s = LoadOptions { dtype: DType::F64, ..options };
    let wide = load(&golden("mamba-hf"), &f32s).unwrap();
    let held = |loaded: &semisep_zoo::load::Loaded, name: &str| {
        loaded.model.parameter_groups().iter().find(|g| g.name.ends_with(name)).unwrap().held
    };
    assert_eq!(held(&wide, "out_proj.weight"), Some(WeightType::Blocks(BlockFormat::Q5_0)));
    assert_eq!(held(&wide, "in_proj.weight"), Some(WeightType::Dense(DType::F64)));
    assert_eq!(held(&loaded, "A_log"), Some(WeightType::Dense(DType::F32)));
    assert_eq!(held(&loaded, "conv1d.weight"), Some(WeightType::Dense(DType::F32)));
}
