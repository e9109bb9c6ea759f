//! What importers of RWKV checkpoints get wrong, one fact a test.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use candle_core::{DType, Device, IndexOp, Tensor};
use common::{copy, edit_config, edit_tensors, golden, stderr, verify};
use semisep_zoo::load::{LoadOptions, Loaded, load};
use serde_json::Value;

fn open(folder: &Path) -> Loaded {
    load(folder, &LoadOptions { dtype: DType::F64, ..LoadOptions::default() }).unwrap()
}

/// The configuration of a layer's time mix.
fn time_mix(loaded: &Loaded, layer: usize) -> Value {
    loaded.architecture.layers[layer].stages[0].branches[0].mixer.to_json()
}

fn logits(loaded: &Loaded) -> Tensor {
    let ids = Tensor::new(&[[5u32, 17, 3, 99, 42, 8], [1, 1, 2, 3, 5, 8]], &Device::Cpu).unwrap();
    loaded.model.forward(&ids, None).unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let largest = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    largest((a - b).unwrap()) / largest(b.clone())
}

#[test]
fn the_eps_of_the_norm_of_heads_depends_on_the_layout() {
    for (name, want) in [
        ("rwkv5-pth", 64e-5),
        ("rwkv6-pth", 64e-5),
        ("rwkv7-pth", 64e-5),
        ("rwkv5-hf", 64e-5),
        ("rwkv6-hf", 64e-5),
        ("rwkv6-fla", 1e-5),
        ("rwkv7-fla", 16.0 * 1e-5),
    ] {
        let eps = time_mix(&open(&golden(name)), 1)["norm_eps"].as_f64().unwrap();
        assert!((eps / want - 1.0).abs() < 1e-12, "{name}: {eps}");
    }
}

#[test]
fn files_without_a_configuration_are_known_by_their_tensors() {
    for version in 4..=7 {
        let dir = copy(&format!("rwkv{version}-pth"));
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        assert_eq!(verify(dir.path(), &["--dtype", "f64"]).status.code(), Some(0), "version {version}");
        let loaded = open(dir.path());
        assert_eq!(loaded.family, "rwkv-pth");
        assert_eq!(loaded.architecture.layers.len(), 3);
    }
    let dir = copy("rwkv7-pth");
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    std::fs::copy(dir.path().join("model.pth"), dir.path().join("second.pth")).unwrap();
    let output = verify(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("expected one .pth file, found several: model.pth, second.pth"));
}

/// Their first layer makes the values that the others are mixed with, and has gates that nothing reads.
#[test]
fn rwkv7_files_hold_a_value_gate_of_the_first_layer_that_is_unused() {
    let loaded = open(&golden("rwkv7-pth"));
    let unused = ["blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"];
    assert_eq!(loaded.report.ignored, unused);
    let dir = copy("rwkv7-pth");
    edit_tensors(dir.path(), |tensors| unused.iter().for_each(|name| drop(tensors.remove(*name))));
    assert_eq!(distance(&logits(&open(dir.path())), &logits(&loaded)), 0.0);
}

#[test]
fn an_unknown_version_is_refused() {
    let dir = copy("rwkv5-pth");
    edit_tensors(dir.path(), |tensors| {
        for layer in 0..3 {
            let bonus = tensors.remove(&format!("blocks.{layer}.att.time_faaaa")).unwrap();
            tensors.insert(format!("blocks.{layer}.att.time_first"), bonus);
        }
    });
    let output = verify(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("expected the tensors of RWKV 4, 5.2, 6 or 7"), "{}", stderr(&output));
}

/// The stream is halved and the weights are scaled alike: what is left are the norms' eps, which see a smaller stream.
#[test]
fn rescaling_changes_no_more_than_the_eps_of_the_norms() {
    let plain = copy("rwkv4-hf");
    edit_config(plain.path(), |config| drop(config.insert("rescale_every".into(), 0.into())));
    let halved = copy("rwkv4-hf");
    edit_config(halved.path(), |config| drop(config.insert("rescale_every".into(), 1.into())));
    let (plain, halved) = (open(plain.path()), open(halved.path()));
    assert_eq!(open(&golden("rwkv4-hf")).architecture.model.rescale_every, 6);
    let moved = distance(&logits(&halved), &logits(&plain));
    assert!(moved > 1e-9 && moved < 1e-3, "{moved}");
    let absent = copy("rwkv4-hf");
    edit_config(absent.path(), |config| drop(config.remove("rescale_every")));
    assert_eq!(open(absent.path()).architecture.model.rescale_every, 6);
}

/// A decode step with several rows gives each row what it gets alone.
#[test]
fn rows_of_a_decode_step_do_not_mix() {
    for name in ["rwkv4-hf", "rwkv5-pth", "rwkv6-fla", "rwkv7-pth"] {
        let model = open(&golden(name)).model;
        let mut both = model.new_state(2).unwrap();
        let mut alone = [model.new_state(1).unwrap(), model.new_state(1).unwrap()];
        for ids in [[5u32, 7], [9, 1], [4, 4]] {
            let together = model.step(&ids, &mut both).unwrap();
            for (row, state) in alone.iter_mut().enumerate() {
                let want = model.step(&ids[row..=row], state).unwrap();
                assert!(distance(&together.i(row).unwrap(), &want.i(0).unwrap()) < 1e-12, "{name}");
            }
        }
    }
}

#[test]
fn what_a_configuration_asks_for_in_vain_is_said() {
    for (name, key, value, message) in [
        ("rwkv7-fla", "norm_bias", Value::from(false), "norm_bias: expected true"),
        ("rwkv7-fla", "attn", serde_json::json!({ "layers": [1] }), "attn: expected null"),
        ("rwkv6-fla", "hidden_act", "gelu".into(), "hidden_act: expected \"sqrelu\""),
        ("rwkv6-fla", "num_heads", 5.into(), "num_heads: expected a divisor"),
        ("rwkv7-fla", "value_dim", serde_json::json!([48, 48.5, 48]), "value_dim: expected a whole number"),
        ("rwkv4-hf", "hidden_size", 40.into(), "hidden_size"),
    ] {
        let dir = copy(name);
        edit_config(dir.path(), |config| drop(config.insert(key.into(), value)));
        let output = verify(dir.path(), &[]);
        assert_eq!(output.status.code(), Some(2), "{name} {key}");
        assert!(stderr(&output).contains(message), "{name} {key}: {}", stderr(&output));
    }
}
