//! `semisep import` and `semisep export`: the same model again, from TOML and from our own files.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
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
    let mut differences = BTreeMap::new();
    for name in GOLDEN {
        let (folder, out) = (golden(name), dir.path().join(name));
        run(&["export", folder.to_str().unwrap(), "--out", out.to_str().unwrap(), "--layout", "same"]);
        same_model(&folder, &out, name);
        assert!(!out.join("blueprint.toml").exists());
        differences.insert(*name, differing(&out, &folder));
    }
    differences.retain(|_, all| !all.is_empty());
    assert!(differences.is_empty(), "{differences:#?}");
}

/// The tensors that a model is loaded from: names and shapes.
fn stored(folder: &Path) -> BTreeMap<String, Vec<usize>> {
    let planned = plan(folder, &LoadOptions::default()).unwrap();
    let names = planned.report.loaded.iter().flat_map(|t| t.stored_as.split(" + "));
    names.map(|name| (name.to_owned(), planned.stored(name).unwrap().0)).collect()
}

/// What is in one of two files alone.
fn differing(a: &Path, b: &Path) -> Vec<String> {
    let (a, b) = (stored(a), stored(b));
    let only = |one: &BTreeMap<String, Vec<usize>>, other: &BTreeMap<String, Vec<usize>>| {
        let differs = one.iter().filter(|(name, shape)| other.get(*name) != Some(shape));
        differs.map(|(name, shape)| format!("{name} {shape:?}")).collect::<Vec<_>>()
    };
    [only(&a, &b), only(&b, &a)].concat()
}

/// From the architecture alone, the configuration that was there forgotten: every family's writer.
#[test]
fn every_golden_model_is_the_same_in_its_dialect() {
    let dir = tempfile::tempdir().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (mut written, mut differences) = (BTreeSet::new(), BTreeMap::new());
    for name in GOLDEN {
        let (ours, theirs) = (dir.path().join(name), dir.path().join(format!("{name}-theirs")));
        run(&["export", &text(&golden(name)), "--out", &text(&ours)]);
        let family = plan(&golden(name), &LoadOptions::default()).unwrap().family();
        run(&["export", &text(&ours), "--out", &text(&theirs), "--layout", family]);
        assert_eq!(plan(&theirs, &LoadOptions::default()).unwrap().family(), family, "{name}");
        same_model(&golden(name), &theirs, name);
        // transformers' own files of this family cut the convolutions elsewhere, and it reads both.
        if *name != "olmo_hybrid-saved" {
            differences.insert(*name, differing(&theirs, &golden(name)));
        }
        written.insert(family);
    }
    differences.retain(|_, all| !all.is_empty());
    assert!(differences.is_empty(), "{differences:#?}");
    assert_eq!(written, semisep_zoo::export::families().collect(), "families without a golden model");
}

/// Into another family's layout, and back to our own.
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
        ("mamba2-hf", "nemotron_h"),
        ("llama", "mistral"),
        ("lfm2", "lfm2_moe"),
        ("rwkv4-pth", "rwkv4-hf"),
        ("rwkv5-pth", "rwkv5-hf"),
    ] {
        let theirs = dir.path().join(format!("{name}-{layout}"));
        run(&["export", &text(&golden(name)), "--out", &text(&theirs), "--layout", layout]);
        let loaded = load(&theirs, &LoadOptions::default()).unwrap();
        assert_eq!(loaded.family, layout, "{name}");
        assert!(logits(&golden(name)) == logits(&theirs), "{name} as {layout}");
    }
}

/// What a layout lacks is said, and where in the model it would be.
#[test]
fn beyond_a_layout() {
    let dir = tempfile::tempdir().unwrap();
    for (name, layout, part) in [
        ("llama", "mamba2", "layer 0 is attention + mlp; the layers of mamba2 are mamba2"),
        ("mamba2attn-orig", "mamba2", "layer 1 is attention; the layers of mamba2 are mamba2"),
        ("retnet-fla", "jamba", "layer 0 is retnet + mlp; the layers of jamba are mamba1 + mlp,"),
        ("qwen3", "llama", "layer 0, attention: qk_norm is {"),
        ("mamba-orig", "lama", "did you mean llama? layouts are semisep, same, bamba,"),
        ("mamba-orig", "no-such-layout", "expected a layout, found \"no-such-layout\""),
    ] {
        let out = dir.path().join("refused");
        let model = golden(name);
        let args = ["export", model.to_str().unwrap(), "--out", out.to_str().unwrap(), "--layout", layout];
        let output = semisep(&args);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
        assert!(!out.exists());
    }
}

/// Shipped blueprints and the layouts that they may be written in. They leave out what a configuration says, and hold gated
/// MLPs as one map.
const BLUEPRINTS: &[(&str, &[&str])] = &[
    ("deltanet", &["deltanet-fla"]),
    ("gated-deltanet", &["gated-deltanet-fla", "olmo_hybrid"]),
    ("gla", &["gla-fla"]),
    ("hgrn2", &["hgrn2-fla"]),
    ("lfm2", &["lfm2", "lfm2_moe"]),
    ("mamba1", &["mamba", "state-spaces"]),
    ("mamba2", &["mamba2", "nemotron_h", "state-spaces"]),
    ("mamba2-hybrid", &["state-spaces"]),
    ("retnet", &["retnet-fla"]),
    ("rwkv4", &["rwkv4-hf", "rwkv-pth"]),
    ("rwkv5", &["rwkv5-hf", "rwkv-pth"]),
    ("rwkv6", &["rwkv6-hf", "rwkv-pth"]),
    ("rwkv7", &["rwkv-pth"]),
    ("transformer", &["bamba", "granitemoehybrid", "llama", "mistral"]),
];

#[test]
fn blueprints_in_public_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (name, layouts) in BLUEPRINTS {
        let ours = dir.path().join(name);
        run(&["export", name, "--out", &text(&ours)]);
        let expected = logits(&ours);
        for layout in *layouts {
            let theirs = dir.path().join(format!("{name}-{layout}"));
            run(&["export", name, "--out", &text(&theirs), "--layout", layout]);
            // Sums of one map and of two are not in the same order.
            let largest = expected.iter().flatten().fold(0f32, |most, a| most.max(a.abs()));
            for (a, b) in expected.iter().flatten().zip(logits(&theirs).iter().flatten()) {
                assert!((a - b).abs() <= 1e-5 * largest, "{name} as {layout}: {a} and {b}");
            }
        }
    }
}

/// Why a shipped blueprint is not in its family's own layout.
#[test]
fn blueprints_beyond_their_familys_layout() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("refused");
    for (name, layout, why) in [
        ("griffin", "recurrent_gemma", "rg_lru has 8 blocks, attention 6 heads"),
        ("hyena", "hyenadna", "the model's norm.kind is \"rms\", there it is \"layer\""),
        ("retnet", "retnet-torchscale", "layer 0, retnet: decay_norm is false, there it is true"),
        ("rwkv7", "rwkv7-fla", "layer 0, rwkv7: layout is \"pth\", there it is \"fla\""),
        ("xlstm", "xlstm", "layer 0, mlstm: norm_eps is 1e-6, there it is 0.00001"),
    ] {
        let output = semisep(&["export", name, "--out", out.to_str().unwrap(), "--layout", layout]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(why), "{name}: {}", stderr(&output));
    }
}

/// Two maps made one, and one made two again: the same bits.
#[test]
fn gated_mlps_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let llama = golden("llama");
    run(&["export", llama.to_str().unwrap(), "--out", &at("fused"), "--layout", "granitemoehybrid"]);
    assert!(stored(Path::new(&at("fused"))).contains_key("model.layers.0.shared_mlp.input_linear.weight"));
    run(&["export", &at("fused"), "--out", &at("apart"), "--layout", "llama"]);
    same_model(&llama, Path::new(&at("apart")), "llama");
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
