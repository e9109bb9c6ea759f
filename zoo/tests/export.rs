//! `semisep import` and `semisep export`: the same model again, from TOML and from our own files.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{GOLDEN, golden, semisep, stderr, stdout};
use semisep_models::{Blueprint, Registry};
use semisep_zoo::load::{LoadOptions, load, plan};

fn run(args: &[&str]) -> String {
    let output = semisep(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

fn logits(folder: &Path) -> Vec<Vec<f32>> {
    let loaded = load(folder, &LoadOptions::default()).unwrap();
    let ids: Vec<u32> = (0..20).map(|i| (i * 7 + 3) % 11).collect();
    let logits =
        loaded.model.forward(&Tensor::new(&ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap(), None);
    logits.unwrap().squeeze(0).unwrap().to_vec2().unwrap()
}

/// Every parameter has the same bits in f32, in which all of these are stored, and so have the logits. (A norm weight stored
/// less one has more of them in f64 until it is written.)
fn same_model(a: &Path, b: &Path, name: &str) {
    let options = LoadOptions::default();
    let (one, two) = (plan(a, &options).unwrap(), plan(b, &options).unwrap());
    assert_eq!(one.architecture.hash(), two.architecture.hash(), "{name}");
    let (first, second) = (one.weights(), two.weights());
    assert_eq!(one.parameters.len(), two.parameters.len(), "{name}");
    for p in &one.parameters {
        let bits = |tensor: Tensor| {
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let read = |from: &dyn semisep_core::Source| bits(from.get(p, DType::F32, &Device::Cpu).unwrap());
        assert!(read(&*first) == read(&*second), "{name}: {}", p.name);
    }
    assert!(logits(a) == logits(b), "{name}");
}

#[test]
fn every_golden_model_is_the_same_from_its_blueprint_and_from_our_files() {
    let dir = tempfile::tempdir().unwrap();
    for name in GOLDEN {
        let folder = golden(name);
        let toml = run(&["import", folder.to_str().unwrap()]);
        let blueprint =
            Blueprint::parse(&toml, name, &Registry::builtin()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let architecture = plan(&folder, &LoadOptions::default()).unwrap().architecture;
        assert_eq!(blueprint.architecture().hash(), architecture.hash(), "{name}");
        let out = dir.path().join(name);
        run(&["export", folder.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        same_model(&folder, &out, name);
    }
}

/// Names, joins and reorderings backwards: in its own layout every model comes out as it went in.
#[test]
fn every_golden_model_is_the_same_in_its_own_layout() {
    let dir = tempfile::tempdir().unwrap();
    for name in GOLDEN {
        let (folder, out) = (golden(name), dir.path().join(name));
        run(&["export", folder.to_str().unwrap(), "--out", out.to_str().unwrap(), "--layout", "same"]);
        same_model(&folder, &out, name);
        assert!(!out.join("blueprint.toml").exists());
    }
}

/// Into another family's layout, by a configuration written for the model, and back to our own.
#[test]
fn other_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (name, layout) in [
        ("mamba-orig", "mamba"),
        ("mamba-hf", "state-spaces"),
        ("mamba2-orig", "mamba2"),
        ("mamba2-orig-groups", "mamba2"),
        ("mamba2-hf", "state-spaces"),
        ("mamba2attn-orig", "state-spaces"),
        ("mamba2attn-mlp-orig", "state-spaces"),
        ("gla-fla", "gla-fla"),
        ("retnet-fla", "retnet-fla"),
        ("delta_net-fla", "deltanet-fla"),
        ("gated_deltanet-fla", "gated-deltanet-fla"),
    ] {
        // Through our own layout, so that nothing is left of the configuration that was there.
        let (ours, theirs) = (dir.path().join(name), dir.path().join(format!("{name}-{layout}")));
        run(&["export", &text(&golden(name)), "--out", &text(&ours)]);
        run(&["export", &text(&ours), "--out", &text(&theirs), "--layout", layout]);
        let loaded = load(&theirs, &LoadOptions::default()).unwrap();
        assert_eq!(loaded.family, layout, "{name}");
        assert!(logits(&ours) == logits(&theirs), "{name} as {layout}");
    }
    for (name, layout, part) in [
        ("mamba2attn-orig", "mamba2", "its layers are not all mamba2"),
        ("gla-fla", "state-spaces", "it has no layer like gla"),
        ("mamba-orig", "no-such", "no configuration of no-such"),
    ] {
        let out = dir.path().join("refused");
        let output = semisep(&["export", &text(&golden(name)), "--out", &text(&out), "--layout", layout]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
        assert!(!out.exists());
    }
}

#[test]
fn shards_types_and_seeds() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let folder = golden("mamba2attn-orig");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    run(&["export", &text(&folder), "--out", &text(&at("small")), "--max-shard-size", "20KB"]);
    let index = std::fs::read_to_string(at("small").join("model.safetensors.index.json")).unwrap();
    assert!(index.contains("model-00002-of-"), "{index}");
    same_model(&folder, &at("small"), "shards");
    // In bf16, norms and decays stay in f32.
    run(&["export", &text(&folder), "--out", &text(&at("half")), "--dtype", "bf16"]);
    let stored = common::read_safetensors(&at("half").join("model.safetensors"));
    assert_eq!(stored["backbone.layers.0.mixer.A_log"].dtype, "F32");
    assert_eq!(stored["backbone.layers.0.mixer.in_proj.weight"].dtype, "BF16");
    // A blueprint gets the weights of its seed.
    for (out, seed) in [("a", "3"), ("b", "3"), ("c", "4")] {
        run(&["export", "mamba2", "--out", &text(&at(out)), "--seed", seed]);
    }
    same_model(&at("a"), &at("b"), "seed");
    assert!(logits(&at("a")) != logits(&at("c")));
    // Files that are there are never touched, and a failed export leaves nothing.
    for args in [
        ["export", &text(&folder), "--out", &text(&at("half"))],
        ["export", &text(&dir.path().join("nothing")), "--out", &text(&at("new"))],
    ] {
        let output = semisep(&args);
        assert_eq!(output.status.code(), Some(2));
    }
    assert!(!at("new").exists());
    let left = std::fs::read_dir(dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(left.count(), 0, "no temporary folder is left");
}

#[test]
fn the_tokenizer_and_its_tokens_go_along() {
    let dir = tempfile::tempdir().unwrap();
    let source = common::copy("mamba-hf");
    std::fs::write(source.path().join("tokenizer_config.json"), "{}").unwrap();
    common::edit_config(source.path(), |config| {
        config.insert("eos_token_id".into(), serde_json::json!([3, 4]));
    });
    let out = dir.path().join("out");
    run(&["export", source.path().to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(out.join("tokenizer_config.json").exists());
    assert_eq!(semisep_zoo::tokenizer::stop_tokens(&out).unwrap(), [3, 4]);
}
