//! Llama and its kin: configurations of public checkpoints, both generations of keys, other names, values that are wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{Raw, Tensors, copy, edit_config, edit_tensors, public_configurations, stderr, stdout, verify};
use serde_json::{Value, json};

/// Each is understood without a note.
#[test]
fn configurations_of_public_checkpoints() {
    for (name, notes) in public_configurations(include_str!("decoders.json")) {
        assert!(notes.is_empty(), "{name}: {notes:?}");
    }
}

fn exact(folder: &Path, what: &str) -> String {
    let output = verify(folder, &["--dtype", "f64"]);
    assert_eq!(output.status.code(), Some(0), "{what}: {}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// A golden model with other keys that say the same.
fn same(model: &str, removed: &[&str], added: Value) {
    let dir = copy(model);
    edit_config(dir.path(), |config| {
        for key in removed {
            config.remove(*key).unwrap_or_else(|| panic!("{model} has no {key}"));
        }
        config.extend(added.as_object().unwrap().clone());
    });
    let report = exact(dir.path(), &format!("{model} with {added}"));
    assert!(!report.contains("note:"), "{report}");
}

#[test]
fn other_keys_that_say_the_same() {
    let rope = |theta: f64| json!({ "rope_parameters": { "rope_type": "default", "rope_theta": theta } });
    same("llama", &["rope_theta", "rope_scaling", "torch_dtype"], rope(1e4));
    same("llama", &["model_type"], json!({ "head_dim": 12, "dtype": "bfloat16" }));
    same("mistral", &[], json!({ "head_dim": 12 }));
    same("qwen3", &["rope_theta", "rope_scaling"], rope(1e6));
    same("qwen3", &[], json!({ "layer_types": ["full_attention", "full_attention", "full_attention"] }));
    let partial = json!({ "rope_theta": 1e4, "partial_rotary_factor": 0.25, "rope_type": "default" });
    same("gpt_neox", &["rotary_pct", "rotary_emb_base"], json!({ "rope_parameters": partial }));
    let types = json!(["conv", "conv", "full_attention", "conv"]);
    same("lfm2", &["full_attn_idxs"], json!({ "layer_types": types }));
    same("lfm2", &["block_ff_dim"], json!({ "intermediate_size": 144, "block_ff_dim": null }));
    let plain = json!({ "block_auto_adjust_ff_dim": false, "intermediate_size": 96 });
    same("lfm2", &["block_ff_dim"], plain);
    let types = json!(["linear_attention", "linear_attention", "full_attention"]);
    same("qwen3_next", &["full_attention_interval"], json!({ "layer_types": types }));
    same("olmo_hybrid", &["rope_parameters"], json!({ "rope_theta": 5e5 }));
}

/// A window as long as the text changes nothing; a shorter one does.
#[test]
fn windows() {
    for (window, code) in [(json!(37), 0), (json!(null), 0), (json!(8), 1)] {
        let dir = copy("llama");
        edit_config(dir.path(), |config| {
            config.insert("model_type".into(), json!("mistral"));
            config.insert("sliding_window".into(), window.clone());
        });
        assert_eq!(verify(dir.path(), &["--dtype", "f64"]).status.code(), Some(code), "{window}");
    }
    for (first, code) in [(3, 0), (2, 1)] {
        let dir = copy("qwen3");
        edit_config(dir.path(), |config| {
            config.insert("use_sliding_window".into(), json!(true));
            config.insert("sliding_window".into(), json!(8));
            config.insert("max_window_layers".into(), json!(first));
        });
        assert_eq!(verify(dir.path(), &["--dtype", "f64"]).status.code(), Some(code), "from {first}");
    }
}

fn rename(tensors: &mut Tensors, from: &str, to: &str) {
    let tensor = tensors.remove(from).unwrap_or_else(|| panic!("no {from}"));
    tensors.insert(to.into(), tensor);
}

/// transformers' names of OLMo-hybrid's norms.
#[test]
fn norms_of_olmo_hybrid() {
    let dir = copy("olmo_hybrid");
    edit_tensors(dir.path(), |tensors| {
        for layer in [0, 2] {
            let at = |name: &str| format!("model.layers.{layer}.{name}.weight");
            rename(tensors, &at("attention_layer_norm"), &at("input_layernorm"));
            rename(tensors, &at("feedforward_layer_norm"), &at("post_attention_layernorm"));
        }
    });
    exact(dir.path(), "transformers' names");
    edit_tensors(dir.path(), |tensors| {
        let at = |name: &str| format!("model.layers.1.{name}.weight");
        rename(tensors, &at("post_attention_layernorm"), &at("feedforward_layer_norm"));
    });
    exact(dir.path(), "the norm of the attention layer as transformers writes it");
}

/// Layers that predict further tokens, frequencies and a tied head are stored beside the model.
#[test]
fn tensors_that_take_no_part() {
    let dir = copy("qwen3_next");
    edit_tensors(dir.path(), |tensors| {
        tensors.insert("mtp.layers.0.mlp.gate.weight".into(), Raw::f32(&[2, 2], &[0.0; 4]));
        tensors.insert("mtp.norm.weight".into(), Raw::f32(&[2], &[0.0; 2]));
    });
    exact(dir.path(), "mtp");
    let dir = copy("llama");
    edit_tensors(dir.path(), |tensors| {
        let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
        tensors.insert(name.into(), Raw::f32(&[6], &[0.0; 6]));
    });
    exact(dir.path(), "inv_freq");
    let dir = copy("qwen3");
    edit_tensors(dir.path(), |tensors| {
        let embedding = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), embedding);
    });
    assert!(!exact(dir.path(), "a tied head").contains("note:"));
    edit_tensors(dir.path(), |tensors| tensors.get_mut("lm_head.weight").unwrap().bytes[2] ^= 0x40);
    let output = verify(dir.path(), &["--dtype", "f64"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("differs from the embedding"), "{}", stdout(&output));
}

#[test]
fn keys_and_layers_that_are_not_known() {
    let dir = copy("llama");
    edit_config(dir.path(), |config| drop(config.insert("new_trick".into(), json!(3))));
    assert!(exact(dir.path(), "a new key").contains("not known of this family were passed over: new_trick"));
    let dir = copy("lfm2");
    edit_config(dir.path(), |config| drop(config.insert("full_attn_idxs".into(), json!([2, 4]))));
    assert!(exact(dir.path(), "a layer too many").contains("full_attn_idxs names layer 4 of 4"));
    let dir = copy("qwen3_next");
    edit_config(dir.path(), |config| drop(config.insert("mlp_only_layers".into(), json!([9]))));
    assert!(exact(dir.path(), "an MLP too many").contains("mlp_only_layers names layer 9 of 3"));
}

#[test]
fn values_that_are_wrong() {
    let sliding = json!(["sliding_attention", "full_attention", "full_attention"]);
    let cases = [
        ("llama", "num_key_value_heads", json!(3), "num_key_value_heads: 3 does not divide"),
        ("llama", "num_key_value_heads", json!("2"), "num_key_value_heads: expected a whole number"),
        ("llama", "num_attention_heads", json!(5), "num_attention_heads: 5 does not divide hidden_size"),
        ("llama", "hidden_act", json!("tanh"), "hidden_act: expected one of silu"),
        ("llama", "attention_bias", json!(1), "attention_bias: expected true or false"),
        ("llama", "attention_bias", json!(true), "are missing"),
        ("llama", "rms_norm_eps", json!("small"), "rms_norm_eps: expected a number"),
        ("llama", "rope_scaling", json!({"rope_type": "dynamic", "factor": 2}), "rope_scaling.rope_type:"),
        ("llama", "rope_scaling", json!({"type": "linear"}), "rope_scaling.factor: expected"),
        ("llama", "rope_theta", json!(-1), "rope_theta: expected"),
        ("llama", "head_dim", json!(10), "another shape"),
        ("llama", "head_dim", json!(11), "rope_theta: expected an even dim"),
        ("llama", "layer_types", sliding, "layer_types: expected a sliding_window"),
        ("llama", "quantization_config", json!({"quant_method": "fp8"}), "quantised (fp8)"),
        ("mistral", "sliding_window", json!(0), "sliding_window: expected a whole number"),
        ("qwen2", "use_mrope", json!(true), "use_mrope: expected false"),
        ("qwen3", "head_dim", json!(1e18), "head_dim: expected a whole number"),
        ("qwen3", "layer_types", json!(["full_attention"]), "layer_types: expected a kind for each of 3"),
        ("qwen3_moe", "use_sliding_window", json!("yes"), "use_sliding_window: expected true or false"),
        ("qwen3_moe", "decoder_sparse_step", json!(0), "decoder_sparse_step: expected a whole number"),
        ("gpt_neox", "rotary_pct", json!(2), "rotary_pct: expected a number in (0, 1]"),
        ("gpt_neox", "use_parallel_residual", json!("yes"), "use_parallel_residual: expected true or false"),
        ("gpt_neox", "num_attention_heads", json!(3), "num_attention_heads: 3 does not divide"),
        ("gpt_neox", "layer_norm_eps", json!([]), "layer_norm_eps: expected a number"),
        ("lfm2", "conv_L_cache", json!(0), "conv_L_cache: expected a whole number"),
        ("lfm2", "conv_dim", json!(40), "conv_dim: expected hidden_size = 48, found 40"),
        ("lfm2", "use_pos_enc", json!(false), "use_pos_enc: expected true"),
        ("lfm2", "block_ffn_dim_multiplier", json!(-1), "block_ffn_dim_multiplier: expected a number > 0"),
        ("lfm2", "block_ffn_dim_multiplier", json!(1e300), "another shape"),
        ("lfm2", "block_multiple_of", json!(1e18), "block_multiple_of: expected a whole number"),
        ("lfm2", "layer_types", json!(["conv", "rwkv", "conv", "conv"]), "layer_types[1]: expected one of"),
        ("lfm2_moe", "num_experts_per_tok", json!(9), "num_experts_per_tok: expected 1 to num_experts"),
        ("lfm2_moe", "num_experts", json!(1e7), "num_experts: expected 1 to"),
        ("lfm2_moe", "routed_scaling_factor", json!("1"), "routed_scaling_factor: expected a number"),
        ("qwen3_next", "linear_num_key_heads", json!(3), "linear_num_key_heads: 3 does not divide"),
        ("qwen3_next", "linear_key_head_dim", json!(-8), "linear_key_head_dim: expected a whole number"),
        ("qwen3_next", "full_attention_interval", json!(0), "full_attention_interval: expected"),
        ("qwen3_next", "mlp_only_layers", json!("none"), "mlp_only_layers: expected a list"),
        ("olmo_hybrid", "rope_parameters", json!({"rope_theta": "1e4"}), "rope_parameters.rope_theta:"),
        ("olmo_hybrid", "linear_num_value_heads", json!(4), "linear_num_key_heads: 3 does not divide"),
        ("olmo_hybrid", "linear_value_head_dim", json!(1e18), "linear_value_head_dim: expected"),
        ("olmo2", "attention_bias", json!(null), ""),
    ];
    for (model, key, value, part) in cases {
        let dir = copy(model);
        edit_config(dir.path(), |config| drop(config.insert(key.into(), value.clone())));
        let output = verify(dir.path(), &["--dtype", "f64"]);
        let (code, text) = (output.status.code(), stderr(&output));
        let expected = if part.is_empty() { 0 } else { 2 };
        assert_eq!(code, Some(expected), "{model} {key} = {value}: {text}");
        assert!(
            text.contains(part) && !text.contains("panicked"),
            "{key} = {value}: {text:?} lacks {part:?}"
        );
    }
}
