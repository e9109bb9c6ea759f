//! Files that are damaged, wrong or hostile: one clear error each, the right exit code, nothing written.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{
    archive, copy, edit_config, edit_tensors, read_safetensors, semisep, stderr, verify, write_shards,
};
use serde_json::{Value, json};

fn listing(folder: &Path) -> BTreeSet<(String, u64)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().unwrap().len())).collect()
}

/// `verify` ends with exit code 2 and one error line that holds all of `parts`, quickly, and leaves the folder as it is.
fn refused_with(folder: &Path, args: &[&str], parts: &[&str]) -> String {
    let before = listing(folder);
    let start = Instant::now();
    let output = verify(folder, args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());
    assert_eq!(text.matches("error:").count(), 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    assert!(output.stdout.is_empty());
    assert_eq!(listing(folder), before, "files changed");
    text
}

fn refused(folder: &Path, parts: &[&str]) -> String {
    refused_with(folder, &[], parts)
}

#[test]
fn damaged_safetensors() {
    let dir = copy("mamba2-orig");
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let with = |bytes: &[u8], parts: &[&str]| {
        std::fs::write(&path, bytes).unwrap();
        refused(dir.path(), &[parts, &["model.safetensors"]].concat());
    };
    with(&[], &["the file is empty"]);
    with(&whole[..5], &["at least 8 bytes, found 5"]);
    with(&whole[..100], &["expected a header of"]);
    with(&whole[..whole.len() - 100], &["outside the"]);
    with(&[&whole[..], b"more"].concat(), &["after the header"]);
    with(b"PK\x03\x04 this is a zip archive of some kind", &["header of at most"]);
    with(
        &[&u64::MAX.to_le_bytes()[..], &whole[8..]].concat(),
        &["header of at most", "found a length of 18446744073709551615"],
    );
    with(&[&99_000_000u64.to_le_bytes()[..], &whole[8..]].concat(), &["expected a header of 99000000 bytes"]);
    let text = std::str::from_utf8(&whole[8..8 + header]).unwrap();
    let overlapping = text.replacen("\"data_offsets\":[14336", "\"data_offsets\":[0", 1);
    let zero_first = text.replace("\"F32\"", "\"F16\"");
    for (changed, part) in [(overlapping, ""), (zero_first, "bytes, found")] {
        assert_ne!(changed, text);
        let file =
            [&(changed.len() as u64).to_le_bytes()[..], changed.as_bytes(), &whole[8 + header..]].concat();
        with(&file, &[part]);
    }
}

#[test]
fn overlapping_tensors() {
    let dir = copy("mamba2-orig");
    let header = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 24]].concat();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    refused(dir.path(), &["b starts at byte 8", "overlaps"]);
}

#[test]
fn pickles_with_code() {
    let dir = copy("mamba-orig");
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let path = dir.path().join("pytorch_model.bin");
    let proof = dir.path().join("proof");
    let command = format!("touch {}", proof.display());
    let mut system = b"\x80\x02cposix\nsystem\nX".to_vec();
    system.extend((command.len() as u32).to_le_bytes());
    system.extend(command.bytes());
    system.extend(b"\x85R.");
    for (pickle, name) in [
        (&system[..], "posix.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
        (b"(ios\nsystem\n.", "os.system"),
    ] {
        std::fs::write(&path, archive(pickle, &[])).unwrap();
        refused(dir.path(), &["refused", name, "nothing was executed", "pytorch_model.bin"]);
        assert!(!proof.exists());
    }
    let whole = archive(b"}.", &[vec![0; 64]]);
    for (bytes, part) in [
        (&whole[..whole.len() / 2], "zip archive"),
        (&b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."[..], "bare pickle"),
        (&b"<html>not found</html>"[..], "another format"),
        (&b""[..], "empty"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        refused(dir.path(), &[part]);
    }
}

#[test]
fn pickled_tensors_outside_of_their_storage() {
    let dir = copy("mamba-orig");
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let tensor = |shape: i32, stride: i32, offset: i32| {
        let mut p = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQJ".to_vec();
        p.extend(offset.to_le_bytes());
        p.extend(b"(J");
        p.extend(shape.to_le_bytes());
        p.extend(b"t(J");
        p.extend(stride.to_le_bytes());
        p.extend(b"t\x89ccollections\nOrderedDict\n)RtRs.");
        p
    };
    for (pickle, part) in [
        (tensor(5, 1, 0), "exceeds the 4 elements"),
        (tensor(i32::MAX, 0, 0), "exceeds the 4 elements"),
        (tensor(4, 1, 1), "exceeds the 4 elements"),
        (tensor(-1, 1, 0), "from 0 on, found -1"),
    ] {
        std::fs::write(dir.path().join("pytorch_model.bin"), archive(&pickle, &[vec![0; 16]])).unwrap();
        refused(dir.path(), &[part]);
    }
}

#[test]
fn configurations() {
    let keys = [
        ("mamba2-orig", "d_model"),
        ("mamba2-orig", "n_layer"),
        ("mamba-orig", "vocab_size"),
        ("mamba2-hf", "hidden_size"),
        ("mamba-hf", "num_hidden_layers"),
        ("gpt_neox", "intermediate_size"),
        ("lfm2", "vocab_size"),
        ("lfm2_moe", "num_attention_heads"),
        ("llama", "hidden_size"),
        ("mistral", "num_attention_heads"),
        ("olmo2", "num_hidden_layers"),
        ("olmo_hybrid", "intermediate_size"),
        ("qwen2", "vocab_size"),
        ("qwen3", "num_hidden_layers"),
        ("qwen3_moe", "hidden_size"),
        ("qwen3_next", "vocab_size"),
        ("hgrn2-fla", "hidden_size"),
        ("recurrent_gemma", "hidden_size"),
        ("recurrent_gemma", "num_hidden_layers"),
        ("xlstm", "vocab_size"),
        ("zamba", "hidden_size"),
        ("zamba2", "num_hidden_layers"),
        ("zamba2", "vocab_size"),
    ];
    for (model, key) in keys {
        let dir = copy(model);
        let values = [
            Value::Null,
            json!(-1),
            json!(0),
            json!(1e18),
            json!(1_000_000_000_000_000_000_u64),
            json!("48"),
            json!(2.5),
            json!([48]),
        ];
        for value in values {
            edit_config(dir.path(), |config| {
                config.insert(key.into(), value.clone());
            });
            let found = if value.is_null() { "nothing".to_string() } else { String::new() };
            refused(
                dir.path(),
                &["config.json", &format!("{key}: expected a whole number from 1 to"), &found],
            );
        }
        edit_config(dir.path(), |config| {
            config.remove(key);
        });
        refused(dir.path(), &[&format!("{key}: expected"), "found nothing"]);
    }
}

#[test]
fn layer_arguments() {
    let cases = [
        (json!({"layer": "Mamba2", "d_sate": 16}), "ssm_cfg.d_sate: unknown key"),
        (json!({"layer": "Mamba7"}), "ssm_cfg.layer: expected \"Mamba1\" or \"Mamba2\", found \"Mamba7\""),
        (json!({"layer": "Mamba2", "headdim": -16}), "ssm_cfg.headdim: expected"),
        (json!({"layer": "Mamba2", "headdim": 48}), "ssm_cfg.headdim: 48 does not divide"),
        (json!({"layer": "Mamba2", "d_state": "128"}), "ssm_cfg.d_state: expected"),
        (json!({"layer": "Mamba2", "rmsnorm": 1}), "ssm_cfg.rmsnorm: expected true or false, found 1"),
        (json!({"layer": "Mamba2", "dt_limit": [3, 1]}), "ssm_cfg.dt_limit: expected [low, high]"),
        (json!({"layer": "Mamba1", "dt_rank": "automatic"}), "ssm_cfg.dt_rank: expected"),
        // Far larger than what is stored: found out before anything of that size is allocated.
        (json!({"layer": "Mamba2", "d_state": 16_000_000}), "another shape"),
        (json!({"layer": "Mamba1", "d_state": 16_000_000}), "another shape"),
        (json!([]), "ssm_cfg: expected an object"),
    ];
    let dir = copy("mamba2-orig");
    for (value, part) in cases {
        edit_config(dir.path(), |config| {
            config.insert("ssm_cfg".into(), value);
        });
        refused(dir.path(), &[part]);
    }
    let dir = copy("mamba2attn-orig");
    for (key, value, part) in [
        ("attn_layer_idx", json!([1, 9]), "attn_layer_idx: expected a list of whole numbers below 4"),
        ("attn_cfg", json!({"num_heads": 3, "heads": 2}), "attn_cfg.heads: unknown key"),
        ("attn_cfg", json!({}), "attn_cfg.num_heads: expected"),
        ("attn_cfg", json!({"num_heads": 3, "mlp_dim": 64}), "attn_cfg.mlp_dim: expected 0"),
    ] {
        let fresh = copy("mamba2attn-orig");
        std::fs::copy(fresh.path().join("config.json"), dir.path().join("config.json")).unwrap();
        edit_config(dir.path(), |config| {
            config.insert(key.into(), value);
        });
        refused(dir.path(), &[part]);
    }
}

/// Options of one family each.
#[test]
fn family_options() {
    let cases = [
        ("hgrn2-fla", "expand_ratio", json!(5), "expand_ratio: 5 does not divide"),
        ("xlstm", "use_bias", json!(true), "use_bias: expected false"),
        ("xlstm", "add_out_norm", json!(false), "add_out_norm: expected true"),
        ("xlstm", "weight_mode", json!("half"), "weight_mode: expected \"single\" or \"fused\""),
        ("xlstm", "gate_soft_cap", json!(-1), "gate_soft_cap: expected a number > 0"),
        ("xlstm", "num_blocks", json!(7), "num_blocks: expected 2 as in num_hidden_layers, found 7"),
        ("xlstm", "num_heads", json!(5), "num_heads: 5 does not divide"),
        ("recurrent_gemma", "block_types", json!(["recurrent", "x"]), "block_types[1]: expected one of"),
        ("recurrent_gemma", "hidden_activation", json!("tanh"), "hidden_activation: expected"),
        ("recurrent_gemma", "logits_soft_cap", json!("30"), "logits_soft_cap: expected a number"),
        ("zamba", "layers_block_type", json!(["mamba"]), "expected a kind for each of 5 layers, found 1"),
        ("zamba", "n_mamba_heads", json!(3), "n_mamba_heads: 3 does not divide"),
        ("zamba", "mamba_d_state", json!(1e18), "mamba_d_state: expected a whole number"),
        ("zamba2", "mamba_headdim", json!(7), "mamba_headdim: expected"),
        ("zamba2", "hidden_act", json!("tanh"), "hidden_act: expected"),
        ("zamba2", "adapter_rank", json!(-1), "adapter_rank: expected a whole number"),
        ("zamba2", "num_mem_blocks", json!(2), "missing"),
        (
            "zamba2",
            "attention_hidden_size",
            json!(32),
            "attention_hidden_size: expected 2 x hidden_size = 64",
        ),
    ];
    for (model, key, value, part) in cases {
        let dir = copy(model);
        edit_config(dir.path(), |config| {
            config.insert(key.into(), value);
        });
        refused(dir.path(), &[part]);
    }
}

#[test]
fn configuration_files() {
    let dir = copy("mamba2-orig");
    let path = dir.path().join("config.json");
    for (text, part) in [
        ("", "expected JSON"),
        ("{\"d_model\": 32", "expected JSON"),
        ("[1, 2]", "expected an object"),
        ("{}", "expected a family of the zoo"),
        (r#"{"model_type": "gpt9"}"#, "found model_type \"gpt9\""),
        (&"[".repeat(100_000), "expected JSON"),
    ] {
        std::fs::write(&path, text).unwrap();
        refused(dir.path(), &["config.json", part]);
    }
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    refused(dir.path(), &["UTF-8"]);
    std::fs::remove_file(&path).unwrap();
    refused(dir.path(), &["config.json", "found none"]);
}

#[test]
fn vocabulary_and_embedding_disagree() {
    for (model, key) in [("mamba2-orig", "vocab_size"), ("mamba2-hf", "vocab_size")] {
        for vocabulary in [50, 200] {
            let dir = copy(model);
            edit_config(dir.path(), |config| {
                config.insert(key.into(), json!(vocabulary));
            });
            refused(dir.path(), &["config.json", "vocab_size: expects", "rows of backbone.embedding"]);
        }
    }
}

#[test]
fn tensors_that_do_not_fit() {
    let dir = copy("mamba2-orig");
    let take = |name: &str| {
        edit_tensors(dir.path(), |tensors| {
            let tensor = tensors.remove(name).unwrap();
            tensors.insert(format!("{name}x"), tensor);
        });
    };
    take("backbone.layers.1.mixer.A_log");
    refused(
        dir.path(),
        &[
            "1 tensor is missing: backbone.layers.1.mixer.A_log [1]",
            "1 tensor is unexpected: backbone.layers.1.mixer.A_logx",
        ],
    );
    refused_with(dir.path(), &["--allow-missing"], &["1 tensor is unexpected"]);
    refused_with(dir.path(), &["--allow-unexpected"], &["1 tensor is missing"]);
    let both = verify(dir.path(), &["--allow-missing", "--allow-unexpected"]);
    assert_eq!(both.status.code(), Some(1), "random decay: out of tolerance, but loaded");

    let dir = copy("mamba2-orig");
    edit_tensors(dir.path(), |tensors| {
        tensors.get_mut("backbone.norm_f.weight").unwrap().shape = vec![2, 16];
    });
    refused(dir.path(), &["backbone.norm_f.weight: expected [32], found [2, 16]"]);
}

#[test]
fn weights_that_are_not_finite() {
    for value in [f32::NAN, f32::INFINITY] {
        let dir = copy("mamba-hf");
        edit_tensors(dir.path(), |tensors| {
            let tensor = tensors.get_mut("backbone.layers.2.mixer.x_proj.weight").unwrap();
            tensor.bytes[40..44].copy_from_slice(&value.to_le_bytes());
        });
        refused(dir.path(), &["NaN or infinite", "backbone.layers.2.mixer.x_proj.weight (1 values)"]);
    }
    // Finite in the file, but not in f16.
    let dir = copy("mamba-hf");
    edit_tensors(dir.path(), |tensors| {
        let tensor = tensors.get_mut("backbone.layers.0.mixer.in_proj.weight").unwrap();
        tensor.bytes[..4].copy_from_slice(&1e6f32.to_le_bytes());
    });
    refused_with(
        dir.path(),
        &["--dtype", "f16"],
        &["infinite as f16: backbone.layers.0.mixer.in_proj.weight"],
    );
}

#[test]
fn tokens() {
    let dir = copy("mamba-orig");
    let path = dir.path().join("tokens.json");
    std::fs::remove_file(dir.path().join("expected.safetensors")).unwrap();
    refused(dir.path(), &["expected.safetensors"]);
    for (text, part) in [
        (json!({"input_ids": [[1, 2], [3]]}), "rows of one length, found lengths [2, 1]"),
        (json!({"input_ids": []}), "rows of one length"),
        (json!({"input_ids": [[1, -2]]}), "input_ids[0][1]: expected a token id, found -2"),
        (json!({"input_ids": [[1, "x"]]}), "input_ids[0][1]: expected a token id"),
        (json!({"ids": [[1]]}), "input_ids: expected a list"),
        (
            json!({"input_ids": [[1, 2]], "decode_start": 3}),
            "decode_start: expected a whole number up to 2, found 3",
        ),
    ] {
        std::fs::write(&path, text.to_string()).unwrap();
        refused(dir.path(), &["tokens.json", part]);
    }

    let dir = copy("mamba-orig");
    let path = dir.path().join("tokens.json");
    let mut tokens: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokens["input_ids"][1][3] = json!(104);
    std::fs::write(&path, tokens.to_string()).unwrap();
    refused(dir.path(), &["input_ids differ from those in"]);
    let expected = dir.path().join("expected.safetensors");
    let mut tensors = read_safetensors(&expected);
    tensors.remove("input_ids").unwrap();
    std::fs::write(&expected, common::safetensors(&tensors)).unwrap();
    refused(dir.path(), &["tokens.json: input_ids[1][3] is 104, expected a token below 104"]);
}

#[test]
fn indices_that_lead_elsewhere() {
    let dir = copy("mamba2-orig");
    let weights = dir.path().join("model.safetensors");
    let tensors = read_safetensors(&weights);
    std::fs::remove_file(&weights).unwrap();
    let outside = tempfile::tempdir().unwrap();
    write_shards(outside.path(), &tensors);
    let target = outside.path().join("model-00001-of-00002.safetensors");
    std::os::unix::fs::symlink(&target, dir.path().join("link.safetensors")).unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let absolute = target.display().to_string();
    let up = format!(
        "../{}/model-00001-of-00002.safetensors",
        outside.path().file_name().unwrap().to_str().unwrap()
    );
    for (file, part) in [
        (absolute.as_str(), "expected the plain name of a file"),
        (&up, "expected the plain name of a file"),
        ("..", "expected the plain name of a file"),
        ("link.safetensors", "a link that leads out of it"),
        ("absent.safetensors", "cannot be opened"),
    ] {
        std::fs::write(&index, json!({"weight_map": {"a": file}}).to_string()).unwrap();
        refused(dir.path(), &[part]);
    }
    std::fs::write(&index, json!({"weight_map": {"a": 3}}).to_string()).unwrap();
    refused(dir.path(), &["expected {\"weight_map\""]);
    write_shards(dir.path(), &tensors);
    let mut map: Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    map["weight_map"]["ghost"] = json!("model-00001-of-00002.safetensors");
    std::fs::write(&index, map.to_string()).unwrap();
    refused(dir.path(), &["ghost should be in model-00001-of-00002.safetensors, found it in no file"]);
}

#[test]
fn folders() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokens.json"), "{}").unwrap();
    refused(dir.path(), &["tokens.json"]);
    let output = semisep(&["verify", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/nowhere/at/all"));
    let output = semisep(&["generate", dir.path().to_str().unwrap(), "--prompt", "x"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("expected model.safetensors or pytorch_model.bin"));
}

#[test]
fn blueprints_beside_weights() {
    let dir = copy("mamba2-orig");
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    let path = dir.path().join("blueprint.toml");
    let blueprint = r#"
name = "tiny"
[model]
d_model = 32
vocab_size = 101
pad_vocab_size_multiple = 16
tie_embeddings = true
norm = { kind = "rms", eps = 1e-5 }
[blocks.ssd]
mixer = "mamba2"
[stack]
n_layer = 2
pattern = ["ssd"]
"#;
    std::fs::write(&path, blueprint).unwrap();
    refused(dir.path(), &["1 tensor is unexpected: lm_head.weight"]);
    let output = verify(dir.path(), &["--dtype", "f64", "--allow-unexpected"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    std::fs::write(&path, blueprint.replace("d_model", "d_modle")).unwrap();
    let output = verify(dir.path(), &[]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("the blueprint cannot be used") && text.contains("d_modle"), "{text}");
}
