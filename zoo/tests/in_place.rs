//! Matrices left in the mapped files against copies of them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{edit_tensors, golden, read_safetensors, semisep, stderr};
use half::bf16;
use semisep_core::WeightType;
use semisep_zoo::load::{LoadOptions, Loaded, load};

/// Stored matrices of another kind each: as they are, joined of several tensors, experts of a stack, tied, PyTorch's.
const FOLDERS: [&str; 6] = ["mamba2-orig", "llama", "qwen3_moe", "lfm2", "rwkv7-pth", "gpt_neox"];

/// The folder in half precision, in its own layout.
fn halved(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("half");
    let (from, to) = (golden(name), out.to_str().unwrap().to_owned());
    let output = semisep(&["export", from.to_str().unwrap(), "--dtype", "bf16", "--out", &to]);
    assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
    dir
}

fn logits(loaded: &Loaded, name: &str) -> Tensor {
    let ids = &read_safetensors(&golden(name).join("expected.safetensors"))["input_ids"];
    let values = ids.bytes.chunks(8).map(|id| u32::from_le_bytes(id[..4].try_into().unwrap()));
    let ids = Tensor::from_vec(values.collect::<Vec<_>>(), &ids.shape[..], &Device::Cpu).unwrap();
    loaded.model.forward(&ids, None).unwrap().to_dtype(DType::F64).unwrap()
}

fn in_bf16(loaded: &Loaded) -> usize {
    let held = loaded.model.parameter_groups().iter().filter_map(|g| g.held);
    held.filter(|held| *held == WeightType::Dense(DType::BF16)).count()
}

#[test]
fn half_precision_stays_as_stored_under_f32() {
    for name in FOLDERS {
        let dir = halved(name);
        let folder = dir.path().join("half");
        let options = |dtype, in_place| LoadOptions { dtype, in_place, ..LoadOptions::default() };
        let (mapped, copied) = (
            load(&folder, &options(DType::F32, true)).unwrap(),
            load(&folder, &options(DType::F32, false)).unwrap(),
        );
        assert!(in_bf16(&mapped) >= 5, "{name}: {} matrices in place", in_bf16(&mapped));
        assert_eq!(in_bf16(&copied), 0, "{name}");
        // The same numbers in f64: f32 sums them in another order, which is all that differs.
        let exact = logits(&load(&folder, &options(DType::F64, true)).unwrap(), name);
        let largest = exact.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        for (loaded, how) in [(mapped, "mapped"), (copied, "copied")] {
            let error = (logits(&loaded, name) - &exact).unwrap().abs().unwrap().max_all().unwrap();
            let error = error.to_scalar::<f64>().unwrap() / largest;
            assert!(error < 3e-5, "{name} {how}: {error}");
        }
    }
}

#[test]
fn the_same_dtype_gives_the_same_bits() {
    for name in FOLDERS {
        let of = |in_place| {
            let options = LoadOptions { in_place, ..LoadOptions::default() };
            logits(&load(&golden(name), &options).unwrap(), name)
                .flatten_all()
                .unwrap()
                .to_vec1::<f64>()
                .unwrap()
        };
        assert!(of(true) == of(false), "{name}");
    }
}

/// Nothing is read that is not looked at first.
#[test]
fn values_that_are_not_finite_are_found_in_place() {
    let dir = halved("mamba2-orig");
    let folder = dir.path().join("half");
    edit_tensors(&folder, |tensors| {
        let bytes = &mut tensors.get_mut("backbone.layers.1.mixer.out_proj.weight").unwrap().bytes;
        bytes[6..8].copy_from_slice(&bf16::NEG_INFINITY.to_le_bytes());
        bytes[10..12].copy_from_slice(&bf16::NAN.to_le_bytes());
    });
    let error = load(&folder, &LoadOptions::default()).err().unwrap().to_string();
    assert!(
        error.contains("NaN or infinite") && error.contains("layers.1.mixer.out_proj.weight (2 values)"),
        "{error}"
    );
    // Or when it is first used.
    let later = LoadOptions { checked_at_first_use: true, ..LoadOptions::default() };
    let model = load(&folder, &later).unwrap().model;
    let ids = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu).unwrap();
    let error = model.forward(&ids, None).unwrap_err().to_string();
    let step = model.step(&[1], &mut model.new_state(1).unwrap()).unwrap_err().to_string();
    std::fs::write(folder.join("tokenizer_config.json"), r#"{"tokenizer_class": "HyenaDNATokenizer"}"#)
        .unwrap();
    let output = semisep(&["generate", folder.to_str().unwrap(), "-p", "A", "-n", "1"]);
    assert_eq!(output.status.code(), Some(2));
    for error in [error, step, stderr(&output)] {
        assert!(
            error.contains("model.safetensors: ")
                && error.contains("layers.1.mixer.out_proj.weight: 2 of the values are NaN or infinite"),
            "{error}"
        );
    }
}
