//! The golden models give their references' logits, in every format and form.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{GOLDEN, copy, golden, read_safetensors, stdout, torch, verify, write_shards};
use semisep_models::LanguageModel;
use semisep_zoo::load::{LoadOptions, load};
use semisep_zoo::verify::{Expected, tolerance};

fn passes(folder: &std::path::Path, dtype: DType) {
    let expected = Expected::open(&folder.join("tokens.json"), &folder.join("expected.safetensors")).unwrap();
    let loaded = load(folder, &LoadOptions { dtype, ..LoadOptions::default() }).unwrap();
    let tolerance = tolerance(dtype, expected.f64_tolerance());
    let forms = expected.compare(&loaded.model, tolerance).unwrap();
    assert_eq!(forms.iter().map(|f| f.form).collect::<Vec<_>>(), ["parallel", "chunked", "step"]);
    for form in forms {
        assert!(form.ok, "{} {dtype:?}: {form:?}, tolerance {tolerance}", folder.display());
    }
}

#[test]
fn logits_of_the_references() {
    for name in GOLDEN {
        for dtype in [DType::F64, DType::F32] {
            passes(&golden(name), dtype);
        }
        if !ROUNDING_ALONE.contains(name) {
            passes(&golden(name), DType::BF16);
        }
    }
}

/// Models whose logits move by more than the tolerance of bf16 when their weights are rounded to it, whatever computes
/// with them.
const ROUNDING_ALONE: [&str; 13] = [
    "gated_deltanet-fla",
    "granitemoehybrid",
    "jamba-dense",
    "jamba-moe",
    "lfm2",
    "lfm2_moe",
    "nemotron_h-moe",
    "olmo_hybrid",
    "olmo_hybrid-saved",
    "qwen3_moe",
    "qwen3_next",
    "retnet-torchscale",
    "zamba2",
];

/// The nearest bf16, little-endian: the upper half of the f32, ties to even.
fn bf16(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let rounded = bits + 0x7fff + (bits >> 16 & 1);
    ((rounded >> 16) as u16).to_le_bytes()
}

/// There f64 over the rounded weights is out of tolerance, too, and bf16 is as near to it as f32 must be.
#[test]
fn bf16_adds_nothing_to_the_rounding_of_the_weights() {
    for name in ROUNDING_ALONE {
        let dir = copy(name);
        common::edit_tensors(dir.path(), |tensors| {
            for tensor in tensors.values_mut() {
                let values = tensor.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                tensor.bytes = values.flat_map(bf16).collect();
                tensor.dtype = "BF16".into();
            }
        });
        let expected =
            Expected::open(&dir.path().join("tokens.json"), &dir.path().join("expected.safetensors"))
                .unwrap();
        let open = |dtype| load(dir.path(), &LoadOptions { dtype, ..LoadOptions::default() }).unwrap().model;
        let (exact, rounded) = (open(DType::F64), open(DType::BF16));
        let forms = expected.compare(&exact, tolerance(DType::BF16, expected.f64_tolerance())).unwrap();
        assert!(!forms.iter().all(|form| form.ok), "{name} may be held to bf16's tolerance: {forms:?}");

        let ids = Tensor::arange(0u32, 74, &Device::Cpu).unwrap().reshape((2, 37)).unwrap();
        let logits = |model: &LanguageModel| model.forward(&ids, None).unwrap().to_dtype(DType::F64).unwrap();
        let largest = |t: Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        let largest = |t: Tensor| largest(t).to_scalar::<f64>().unwrap();
        let (want, got) = (logits(&exact), logits(&rounded));
        let error = largest((got - &want).unwrap()) / largest(want);
        assert!(error < tolerance(DType::F32, expected.f64_tolerance()), "{name}: {error:.3e}");
    }
}

#[test]
fn pytorch_files_with_views() {
    for name in GOLDEN {
        let dir = copy(name);
        let tensors = read_safetensors(&dir.path().join("model.safetensors"));
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        std::fs::write(dir.path().join("pytorch_model.bin"), torch(&tensors)).unwrap();
        passes(dir.path(), DType::F64);
        passes(dir.path(), DType::F32);
    }
}

#[test]
fn pytorch_files_of_pytorch() {
    for name in ["mamba-orig", "mamba2-orig"] {
        let dir = copy(name);
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        passes(dir.path(), DType::F64);
        passes(dir.path(), DType::F32);
    }
}

/// HyenaDNA as it was published: Lightning's pickle of the training module, one level deep, the tied head beside.
#[test]
fn lightning_checkpoints() {
    let dir = copy("hyenadna");
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        passes(dir.path(), dtype);
    }
}

/// Trained with activation checkpointing, HyenaDNA's mixers and MLPs have a further `layer` in their names.
#[test]
fn checkpointed_layers() {
    let dir = copy("hyenadna");
    common::edit_tensors(dir.path(), |tensors| {
        let old = std::mem::take(tensors);
        let renamed = |n: String| n.replace(".mixer.", ".mixer.layer.").replace(".mlp.", ".mlp.layer.");
        tensors.extend(old.into_iter().map(|(name, tensor)| (renamed(name), tensor)));
    });
    passes(dir.path(), DType::F64);
}

/// Published StripedHyena configurations speak of one layer more than there are: a note, not an error.
#[test]
fn a_layer_past_the_last_is_passed_over() {
    let dir = copy("stripedhyena");
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["hyena_layer_idxs"].as_array_mut().unwrap().push(serde_json::json!(3));
    std::fs::write(&path, config.to_string()).unwrap();
    passes(dir.path(), DType::F64);
    config["hyena_layer_idxs"] = serde_json::json!([0]);
    std::fs::write(&path, config.to_string()).unwrap();
    let refused = verify(dir.path(), &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(common::stderr(&refused).contains("layer 2 of 3 is neither"), "{}", common::stderr(&refused));
}

#[test]
fn shards() {
    for name in GOLDEN {
        let dir = copy(name);
        let tensors = read_safetensors(&dir.path().join("model.safetensors"));
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        write_shards(dir.path(), &tensors);
        passes(dir.path(), DType::F64);
        passes(dir.path(), DType::F32);
    }
}

/// The other formats hold the same numbers, bit by bit.
#[test]
fn formats_agree() {
    let whole = copy("mamba2attn-orig");
    let other = copy("mamba2attn-orig");
    let tensors = read_safetensors(&whole.path().join("model.safetensors"));
    std::fs::remove_file(other.path().join("model.safetensors")).unwrap();
    std::fs::write(other.path().join("pytorch_model.bin"), torch(&tensors)).unwrap();
    let open = |dir: &tempfile::TempDir| semisep_zoo::checkpoint::Checkpoint::open(dir.path()).unwrap();
    let (a, b) = (open(&whole), open(&other));
    assert_eq!(a.tensors().count(), b.tensors().count());
    for stored in a.tensors() {
        let read = |c: &semisep_zoo::checkpoint::Checkpoint| {
            let read = c.read(&stored.name, &stored.shape, DType::F32, &candle_core::Device::Cpu).unwrap();
            read.tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(read(&a), read(&b), "{}", stored.name);
    }
}

#[test]
fn the_command_reports_and_exits() {
    let good = verify(&golden("mamba2-orig"), &["--dtype", "f64", "--json"]);
    assert_eq!(good.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_str(&stdout(&good)).unwrap();
    assert_eq!((report["ok"].as_bool(), report["family"].as_str()), (Some(true), Some("state-spaces")));
    assert_eq!(report["forms"].as_array().unwrap().len(), 3);
    assert_eq!(report["tensors"]["ignored"][0], "lm_head.weight");

    let strict = verify(&golden("mamba2-orig"), &["--tolerance", "1e-12"]);
    assert_eq!(strict.status.code(), Some(1));
    assert!(stdout(&strict).contains("OUT OF TOLERANCE"));
}

/// A reference of another model does not pass.
#[test]
fn other_weights_are_out_of_tolerance() {
    let dir = copy("mamba2-orig");
    common::edit_tensors(dir.path(), |tensors| {
        let norm = tensors.get_mut("backbone.layers.0.mixer.norm.weight").unwrap();
        norm.bytes[2] ^= 0x40;
    });
    assert_eq!(verify(dir.path(), &["--dtype", "f64"]).status.code(), Some(1));
}

/// Weights kept as bf16, f16 and f64 load as well; types that are no numbers are skipped while nobody needs them.
#[test]
fn stored_types() {
    let dir = copy("mamba-hf");
    common::edit_tensors(dir.path(), |tensors| {
        for tensor in tensors.values_mut() {
            tensor.bytes = tensor
                .bytes
                .chunks_exact(4)
                .flat_map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])).to_le_bytes())
                .collect();
            tensor.dtype = "F64".into();
        }
        let mask = common::Raw { dtype: "BOOL".into(), shape: vec![3], bytes: vec![0, 1, 0] };
        tensors.insert("backbone.mask".into(), mask);
    });
    let strict = verify(dir.path(), &[]);
    assert_eq!(strict.status.code(), Some(2));
    assert!(
        common::stderr(&strict).contains("1 tensor is unexpected: backbone.mask"),
        "{}",
        common::stderr(&strict)
    );
    assert_eq!(verify(dir.path(), &["--allow-unexpected", "--dtype", "f64"]).status.code(), Some(0));
}
