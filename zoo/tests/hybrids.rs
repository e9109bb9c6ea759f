//! The hybrids of transformers: what public configurations say besides the plain case, and what is wrong in bad ones.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{
    Raw, copy, edit_config, edit_tensors, golden, public_configurations, semisep, stderr, stdout, verify,
};
use semisep_zoo::load::{LoadOptions, describe, load};
use serde_json::{Value, json};

/// The golden logits come out, and the report says this.
fn passes(folder: &Path, note: &str) {
    let output = verify(folder, &["--dtype", "f64"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).contains(note), "{:?} lacks {note:?}", stdout(&output));
}

fn refused(folder: &Path, part: &str) {
    let output = verify(folder, &[]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{part}: {text}");
    assert!(text.contains(part) && !text.contains("panicked"), "{text:?} lacks {part:?}");
}

fn with(model: &str, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) -> tempfile::TempDir {
    let dir = copy(model);
    edit_config(dir.path(), edit);
    dir
}

#[test]
fn configurations_of_public_checkpoints() {
    assert!(public_configurations(include_str!("hybrids.json")).len() > 10);
}

const MODELS: [&str; 8] = [
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba-dense",
    "jamba-moe",
    "nemotron_h",
    "nemotron_h-moe",
];

#[test]
fn bad_sizes_are_named() {
    let bad = [json!(-1), json!(0), json!(1e18), json!("48"), json!(2.5), json!([48]), json!({})];
    for model in MODELS {
        let mut keys = vec!["hidden_size", "vocab_size", "num_hidden_layers"];
        if model != "falcon_mamba" {
            keys.push("num_attention_heads");
        }
        for key in keys {
            for value in &bad {
                let dir = with(model, |c| drop(c.insert(key.into(), value.clone())));
                refused(dir.path(), &format!("{key}: expected a whole number from 1 to"));
            }
            // The pattern tells how many layers there are.
            if key != "num_hidden_layers" || !model.starts_with("nemotron") {
                let dir = with(model, |c| drop(c.remove(key)));
                refused(dir.path(), &format!("{key}: expected a whole number from 1 to"));
            }
        }
    }
}

#[test]
fn bad_values_are_named() {
    let cases = [
        ("bamba", "attn_layer_indices", json!([-1]), "attn_layer_indices: expected a list"),
        ("bamba", "attn_layer_indices", json!("1"), "attn_layer_indices: expected a list"),
        ("bamba", "mamba_n_heads", json!(5), "mamba_n_heads: expected heads whose widths sum to"),
        ("bamba", "mamba_d_head", json!("16"), "mamba_d_head: expected"),
        ("bamba", "mamba_expand", json!(-2), "mamba_expand: expected a factor"),
        ("bamba", "hidden_act", json!("tanh"), "hidden_act: expected one of"),
        ("bamba", "hidden_act", json!("gelu"), "hidden_act: expected \"silu\""),
        ("bamba", "num_key_value_heads", json!(4), "num_key_value_heads: 4 does not divide"),
        ("bamba", "rope_scaling", json!({"type": "dynamic", "factor": 2}), "rope_scaling.type: expected"),
        ("bamba", "rms_norm_eps", json!(-1e-5), "rms_norm_eps: expected a number >= 0"),
        ("bamba", "attention_bias", json!(1), "attention_bias: expected true or false"),
        ("falcon_h1", "ssm_multipliers", json!([1, 2, 3]), "ssm_multipliers: expected a list of 5 numbers"),
        ("falcon_h1", "mlp_multipliers", json!("1"), "mlp_multipliers: expected a list of 2 numbers"),
        ("falcon_h1", "key_multiplier", json!(0), "key_multiplier: expected a number > 0"),
        ("falcon_h1", "mamba_d_ssm", json!(1e18), "mamba_d_ssm: expected"),
        ("falcon_mamba", "mixer_rms_eps", json!("x"), "mixer_rms_eps: expected a number"),
        ("falcon_mamba", "time_step_rank", json!(-4), "time_step_rank: expected"),
        (
            "granitemoehybrid",
            "layer_types",
            json!(["mamba", "rwkv", "mamba"]),
            "layer_types[1]: expected one of",
        ),
        ("granitemoehybrid", "layer_types", json!(["mamba"]), "layer_types: expected a kind for each of 3"),
        ("granitemoehybrid", "logits_scaling", json!(0), "logits_scaling: expected a number other than 0"),
        ("granitemoehybrid", "attention_multiplier", json!(-1), "scale: expected a number above 0"),
        ("granitemoehybrid", "num_local_experts", json!(1e9), "num_local_experts: expected"),
        ("granitemoehybrid", "num_local_experts", json!(100_000), "num_experts: expected 1 to"),
        ("granitemoehybrid", "num_experts_per_tok", json!(9), "num_experts_per_tok: expected 1 to"),
        ("jamba-moe", "attn_layer_period", json!(0), "attn_layer_period: expected"),
        ("jamba-moe", "expert_layer_offset", json!(-1), "expert_layer_offset: expected"),
        ("jamba-moe", "num_experts", json!("4"), "num_experts: expected"),
        ("jamba-dense", "mamba_dt_rank", json!("automatic"), "mamba_dt_rank: expected"),
        (
            "nemotron_h",
            "hybrid_override_pattern",
            json!("M-X*-"),
            "hybrid_override_pattern: expected letters",
        ),
        ("nemotron_h", "hybrid_override_pattern", json!(5), "hybrid_override_pattern: expected a string"),
        ("nemotron_h", "hybrid_override_pattern", Value::Null, "hybrid_override_pattern: expected a letter"),
        ("nemotron_h", "mamba_num_heads", json!(1e18), "mamba_num_heads: expected"),
        ("nemotron_h", "time_step_limit", json!([3, 1]), "time_step_limit: expected [low, high]"),
        ("nemotron_h-moe", "moe_latent_size", json!("16"), "moe_latent_size: expected a whole number"),
        ("nemotron_h-moe", "n_group", json!(3), "n_group: 3 does not divide"),
        (
            "nemotron_h-moe",
            "routed_scaling_factor",
            json!(-1),
            "routed_scaling_factor: expected a number >= 0",
        ),
    ];
    for (model, key, value, part) in cases {
        let dir = with(model, |c| drop(c.insert(key.into(), value)));
        refused(dir.path(), part);
    }
}

#[test]
fn what_is_past_the_last_layer_is_noted() {
    let dir = with("bamba", |c| drop(c.insert("attn_layer_indices".into(), json!([1, 9, 18]))));
    passes(dir.path(), "attn_layer_indices names layer 9, 18 of 3, counted from 0: passed over");
    let dir = with("nemotron_h", |c| drop(c.insert("num_hidden_layers".into(), json!(7))));
    passes(dir.path(), "hybrid_override_pattern has 5 layers, num_hidden_layers says 7: 5 it is");
    let types = json!(["mamba", "attention", "mamba", "mamba"]);
    let dir = with("granitemoehybrid", |c| drop(c.insert("layer_types".into(), types)));
    passes(dir.path(), "layer_types has 4 entries for 3 layers");
    let dir = with("falcon_h1", |c| drop(c.insert("attn_layer_indices".into(), json!([0]))));
    passes(dir.path(), "attn_layer_indices has no effect");
    let dir = with("falcon_mamba", |c| drop(c.insert("expand".into(), json!(16))));
    passes(dir.path(), "expand = 16 asks for 768 inner features, there are 96");
}

/// The keys of newer versions of transformers.
#[test]
fn both_generations_of_keys() {
    let dir = with("bamba", |c| {
        for key in ["rope_theta", "rope_scaling", "attn_rotary_emb"] {
            c.remove(key);
        }
        let rope = json!({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5});
        c.insert("rope_parameters".into(), rope);
    });
    passes(dir.path(), "ok");
    let dir = with("granitemoehybrid", |c| {
        c.insert("layer_types".into(), json!(["linear_attention", "full_attention", "linear_attention"]));
    });
    passes(dir.path(), "ok");
    let dir = with("jamba-moe", |c| {
        for key in ["attn_layer_period", "attn_layer_offset"] {
            c.remove(key);
        }
        c.insert("layers_block_type".into(), json!(["mamba", "attention", "mamba", "mamba"]));
    });
    passes(dir.path(), "ok");
    let dir = with("nemotron_h-moe", |c| {
        for key in ["hybrid_override_pattern", "num_hidden_layers", "head_dim"] {
            c.remove(key);
        }
        c.insert("attention_head_dim".into(), json!(16));
        c.insert("layers_block_type".into(), json!(["mamba", "moe", "attention", "moe"]));
    });
    passes(dir.path(), "ok");
    let dir = with("nemotron_h", |c| drop(c.insert("hybrid_override_pattern".into(), json!("M-|M*/-"))));
    passes(dir.path(), "ok");
}

/// Each factor counts.
#[test]
fn every_multiplier_has_its_effect() {
    let cases: [(&str, &[&str]); 2] = [
        (
            "falcon_h1",
            &[
                "embedding_multiplier",
                "lm_head_multiplier",
                "key_multiplier",
                "attention_in_multiplier",
                "attention_out_multiplier",
                "ssm_in_multiplier",
                "ssm_out_multiplier",
            ],
        ),
        (
            "granitemoehybrid",
            &["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"],
        ),
    ];
    for (model, keys) in cases {
        for key in keys {
            let dir = with(model, |c| drop(c.insert((*key).into(), json!(c[*key].as_f64().unwrap() * 1.5))));
            assert_eq!(verify(dir.path(), &["--dtype", "f64"]).status.code(), Some(1), "{model} {key}");
        }
    }
    for (key, n) in [("ssm_multipliers", 5), ("mlp_multipliers", 2)] {
        for i in 0..n {
            let dir = with("falcon_h1", |c| c[key][i] = json!(c[key][i].as_f64().unwrap() * 1.5));
            assert_eq!(verify(dir.path(), &["--dtype", "f64"]).status.code(), Some(1), "{key}[{i}]");
        }
    }
}

/// Granite without experts: as with experts that give nothing.
#[test]
fn granite_without_experts() {
    let (silent, dense) = (copy("granitemoehybrid"), copy("granitemoehybrid"));
    edit_tensors(silent.path(), |tensors| {
        let outputs = tensors.iter_mut().filter(|(name, _)| name.contains("block_sparse_moe.output_linear"));
        outputs.for_each(|(_, tensor)| tensor.bytes.fill(0));
    });
    edit_tensors(dense.path(), |tensors| tensors.retain(|name, _| !name.contains("block_sparse_moe")));
    edit_config(dense.path(), |c| drop(c.insert("num_local_experts".into(), json!(0))));
    let ids = Tensor::arange(0u32, 40, &Device::Cpu).unwrap().reshape((2, 20)).unwrap();
    let logits = |dir: &tempfile::TempDir| {
        let options = LoadOptions { dtype: DType::F64, ..LoadOptions::default() };
        let logits = load(dir.path(), &options).unwrap().model.forward(&ids, None).unwrap();
        logits.flatten_all().unwrap().to_vec1::<f64>().unwrap()
    };
    let largest = logits(&silent).iter().zip(logits(&dense)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(largest < 1e-10, "{largest:e}");
}

/// What transformers overrules, or does not read, in the same way.
#[test]
fn what_the_tensors_say() {
    passes(&golden("nemotron_h-latent"), "attention_bias = true has no effect");
    passes(&golden("zamba-apart"), "each has its own");
    let wide = with("mamba-hf", |c| drop(c.insert("expand".into(), json!(3))));
    passes(wide.path(), "inner features");
    std::fs::remove_file(wide.path().join("model.safetensors")).unwrap();
    edit_config(wide.path(), |c| drop(c.insert("intermediate_size".into(), json!(77))));
    let (architecture, _) = describe(wide.path()).unwrap();
    assert_eq!(architecture.layers[0].stages[0].branches[0].mixer.to_json()["d_inner"], json!(77));
}

/// Parts of a parameter that are missing, or do not fit although their sum does.
#[test]
fn parts_that_do_not_fit() {
    let dir = copy("bamba");
    edit_tensors(dir.path(), |tensors| {
        tensors.remove("model.layers.1.self_attn.k_proj.weight").unwrap();
    });
    refused(
        dir.path(),
        "1 tensor is missing: model.layers.1.self_attn.k_proj.weight, a part of backbone.layers.1.mixer.in_proj.weight",
    );
    let dir = copy("bamba");
    edit_tensors(dir.path(), |tensors| {
        for (name, rows) in [("k_proj", 24), ("v_proj", 8)] {
            let values = vec![0.1; rows * 48];
            tensors.insert(format!("model.layers.1.self_attn.{name}.weight"), Raw::f32(&[rows, 48], &values));
        }
    });
    refused(dir.path(), "expected [80, 48], found [48, 48] + [24, 48] + [8, 48]");
    let dir = copy("granitemoehybrid");
    edit_config(dir.path(), |c| drop(c.insert("num_local_experts".into(), json!(5))));
    refused(dir.path(), "another shape");
    let dir = copy("granitemoehybrid");
    edit_config(dir.path(), |c| drop(c.insert("num_local_experts".into(), json!(3))));
    refused(dir.path(), "another shape");
}

/// The report of `verify --json` has the notes.
#[test]
fn notes_are_in_the_report() {
    let output = semisep(&["verify", common::golden("bamba").to_str().unwrap(), "--json"]);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["family"], "bamba");
    assert!(report["tensors"]["notes"][0].as_str().unwrap().contains("attn_rotary_emb = 6"), "{report}");
}
