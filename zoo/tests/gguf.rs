//! GGUF files give the logits of the checkpoints that they were made of.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/mutate.rs"]
mod mutate;

use std::path::{Path, PathBuf};

use candle_core::DType;
use common::gguf::{Gguf, Numbers, mapped, numbers};
use common::{golden, semisep, stderr, stdout};
use semisep_core::WeightType;
use semisep_zoo::checkpoint::Checkpoint;
use semisep_zoo::load::{LoadOptions, load, plan};
use semisep_zoo::tokenizer::{Tokenizer, stop_tokens};
use semisep_zoo::verify::Expected;
use tempfile::TempDir;

fn config(name: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(golden(name).join("config.json")).unwrap();
    serde_json::from_str(&text.replace("Infinity", "1e300")).unwrap()
}

fn size(config: &serde_json::Value, key: &str) -> usize {
    config[key].as_u64().unwrap() as usize
}

fn mamba(q8_0: bool) -> Gguf {
    let c = config("mamba-hf");
    let mut file = Gguf::new("mamba", q8_0);
    let tensors = numbers(&golden("mamba-hf"));
    file.size("embedding_length", size(&c, "hidden_size"));
    file.size("block_count", size(&c, "num_hidden_layers"));
    file.size("feed_forward_length", 0);
    file.size("attention.head_count", 0);
    file.size("ssm.conv_kernel", size(&c, "conv_kernel"));
    file.size("ssm.inner_size", tensors["backbone.layers.0.mixer.D"].values.len());
    file.size("ssm.state_size", size(&c, "state_size"));
    file.size("ssm.time_step_rank", size(&c, "time_step_rank"));
    file.float("attention.layer_norm_rms_epsilon", c["layer_norm_epsilon"].as_f64().unwrap() as f32);
    file.flag("mamba.ssm.dt_b_c_rms", false);
    for (name, tensor) in tensors {
        let new = mapped(
            &name,
            &[
                ("backbone.embeddings", "token_embd"),
                ("backbone.norm_f", "output_norm"),
                ("lm_head", "output"),
                ("backbone.layers", "blk"),
                ("mixer.in_proj", "ssm_in"),
                ("mixer.conv1d", "ssm_conv1d"),
                ("mixer.x_proj", "ssm_x"),
                ("mixer.dt_proj", "ssm_dt"),
                ("mixer.A_log", "ssm_a"),
                ("mixer.D", "ssm_d"),
                ("mixer.out_proj", "ssm_out"),
                (".norm.", ".attn_norm."),
            ],
        );
        let tensor = if new.ends_with("ssm_a") { tensor.map(|a| -a.exp()) } else { tensor };
        let tensor = if new.contains("conv1d") { tensor.squeezed() } else { tensor };
        file.tensor(&new, &tensor);
    }
    file
}

fn mamba2(q8_0: bool) -> Gguf {
    let c = config("mamba2-hf");
    let mut file = Gguf::new("mamba2", q8_0);
    let (inner, groups) = (size(&c, "num_heads") * size(&c, "head_dim"), size(&c, "n_groups"));
    file.size("embedding_length", size(&c, "hidden_size"));
    file.size("block_count", size(&c, "num_hidden_layers"));
    file.size("ssm.conv_kernel", size(&c, "conv_kernel"));
    file.size("ssm.inner_size", inner);
    file.size("ssm.state_size", size(&c, "state_size"));
    file.size("ssm.time_step_rank", size(&c, "num_heads"));
    file.size("ssm.group_count", groups);
    file.float("attention.layer_norm_rms_epsilon", c["layer_norm_epsilon"].as_f64().unwrap() as f32);
    for (name, tensor) in numbers(&golden("mamba2-hf")) {
        let new = mapped(
            &name,
            &[
                ("backbone.embeddings", "token_embd"),
                ("backbone.norm_f", "output_norm"),
                ("lm_head", "output"),
                ("backbone.layers", "blk"),
                ("mixer.in_proj", "ssm_in"),
                ("mixer.conv1d", "ssm_conv1d"),
                ("mixer.dt_bias", "ssm_dt.bias"),
                ("mixer.A_log", "ssm_a"),
                ("mixer.D", "ssm_d"),
                ("mixer.norm", "ssm_norm"),
                ("mixer.out_proj", "ssm_out"),
                (".norm.", ".attn_norm."),
            ],
        );
        let n = tensor.values.len();
        let tensor = match new.rsplit('.').next().unwrap() {
            "ssm_a" => tensor.map(|a| -a.exp()).reshaped(&[n, 1]),
            "ssm_d" => tensor.reshaped(&[n, 1]),
            _ if new.contains("ssm_norm") => tensor.reshaped(&[groups, inner / groups]),
            _ if new.contains("conv1d") => tensor.squeezed(),
            _ => tensor,
        };
        file.tensor(&new, &tensor);
    }
    file
}

/// From the original names, with what layers add divided by two once for every `rescale` layers before them.
fn rwkv6(q8_0: bool, rescale: usize) -> Gguf {
    let mut file = Gguf::new("rwkv6", q8_0);
    let tensors = numbers(&golden("rwkv6-pth"));
    let layers = tensors.keys().filter(|name| name.ends_with(".ln1.weight")).count();
    file.size("embedding_length", tensors["emb.weight"].shape[1]);
    file.size("block_count", layers);
    file.size("wkv.head_size", tensors["blocks.0.att.time_faaaa"].shape[1]);
    file.size("rescale_every_n_layers", rescale);
    file.float("attention.layer_norm_epsilon", 1e-5);
    for layer in 0..layers {
        let lerp = |part: &str| tensors[&format!("blocks.{layer}.att.time_maa_{part}")].values.clone();
        let values: Vec<f32> = ["w", "k", "v", "r", "g"].into_iter().flat_map(lerp).collect();
        let shape = [5, 1, 1, values.len() / 5];
        let fused = Numbers { shape: shape.into(), values };
        file.tensor(&format!("blk.{layer}.time_mix_lerp_fused.weight"), &fused);
    }
    for (name, tensor) in tensors {
        let maa = name.split("att.time_maa_").nth(1);
        if maa.is_some_and(|part| part.len() == 1 && part != "x") {
            continue;
        }
        let mut new = mapped(
            &name,
            &[
                ("blocks.0.ln0", "token_embd_norm"),
                ("emb.", "token_embd."),
                ("ln_out", "output_norm"),
                ("head", "output"),
                ("blocks", "blk"),
                ("ln1", "attn_norm"),
                ("ln2", "attn_norm_2"),
                ("att.ln_x", "time_mix_ln"),
                ("att.time_maa_x", "time_mix_lerp_x"),
                ("att.time_maa_w", "time_mix_w"),
                ("att.time_faaaa", "time_mix_first"),
                ("att.time_", "time_mix_"),
                ("att.", "time_mix_"),
                ("ffn.time_maa_", "channel_mix_lerp_"),
                ("ffn.", "channel_mix_"),
            ],
        );
        if !new.ends_with(".weight") && !new.ends_with(".bias") {
            new += ".weight";
        }
        let transposed = ["time_mix_w1.", "time_mix_w2.", "decay_w1.", "decay_w2."];
        let tensor = if transposed.iter().any(|t| new.contains(t)) { tensor.transposed() } else { tensor };
        let squeezed = new.contains("time_mix_decay.") || new.contains("lerp");
        let tensor = if squeezed { tensor.squeezed() } else { tensor };
        let adds = new.contains("time_mix_output") || new.contains("channel_mix_value");
        let tensor = match name.split('.').nth(1).and_then(|n| n.parse::<usize>().ok()) {
            Some(layer) if adds && rescale > 0 => tensor.map(|w| w / 2f32.powi((layer / rescale) as i32)),
            _ => tensor,
        };
        file.tensor(&new, &tensor);
    }
    file
}

fn rwkv7(q8_0: bool) -> Gguf {
    let mut file = Gguf::new("rwkv7", q8_0);
    let tensors = numbers(&golden("rwkv7-pth"));
    let layers = tensors.keys().filter(|name| name.ends_with(".ln1.weight")).count();
    file.size("embedding_length", tensors["emb.weight"].shape[1]);
    file.size("block_count", layers);
    file.size("wkv.head_size", tensors["blocks.0.att.r_k"].shape[1]);
    file.float("attention.layer_norm_epsilon", 1e-5);
    for layer in 0..layers {
        let lerp = |part: &str| tensors[&format!("blocks.{layer}.att.x_{part}")].values.clone();
        let values: Vec<f32> = ["r", "w", "k", "v", "a", "g"].into_iter().flat_map(lerp).collect();
        let shape = [6, 1, 1, values.len() / 6];
        let fused = Numbers { shape: shape.into(), values };
        file.tensor(&format!("blk.{layer}.time_mix_lerp_fused.weight"), &fused);
    }
    for (name, tensor) in tensors {
        if name.contains("att.x_") || name.starts_with("blocks.0.att.v") && !name.contains("value") {
            continue;
        }
        let mut new = mapped(
            &name,
            &[
                ("blocks.0.ln0", "token_embd_norm"),
                ("emb.", "token_embd."),
                ("ln_out", "output_norm"),
                ("head", "output"),
                ("blocks", "blk"),
                ("ln1", "attn_norm"),
                ("ln2", "attn_norm_2"),
                ("att.ln_x", "time_mix_ln"),
                ("att.", "time_mix_"),
                ("ffn.x_", "channel_mix_lerp_"),
                ("ffn.", "channel_mix_"),
            ],
        );
        if !new.ends_with(".weight") && !new.ends_with(".bias") {
            new += ".weight";
        }
        let tensor = tensor.squeezed();
        let low_rank = ["w", "a", "v", "g"]
            .iter()
            .flat_map(|part| [format!("time_mix_{part}1."), format!("time_mix_{part}2.")]);
        let transposed = low_rank.into_iter().any(|part| new.contains(&part));
        let n = tensor.values.len();
        let tensor = match transposed {
            true => tensor.transposed(),
            false if new.contains("r_k") => tensor.reshaped(&[n]),
            false => tensor,
        };
        if new.starts_with("blk.0.time_mix_a") {
            file.tensor(&new.replace("time_mix_a", "time_mix_v"), &tensor);
        }
        file.tensor(&new, &tensor);
    }
    file
}

/// Llama's layout of tensors; Llama's own queries and keys are reordered for another rotation.
fn decoder(architecture: &str, q8_0: bool) -> Gguf {
    let c = config(architecture);
    let mut file = Gguf::new(architecture, q8_0);
    let (heads, kv_heads) = (size(&c, "num_attention_heads"), size(&c, "num_key_value_heads"));
    let tensors = numbers(&golden(architecture));
    let head_dim = tensors["model.layers.0.self_attn.q_proj.weight"].shape[0] / heads;
    file.size("embedding_length", size(&c, "hidden_size"));
    file.size("feed_forward_length", size(&c, "intermediate_size"));
    file.size("block_count", size(&c, "num_hidden_layers"));
    file.size("attention.head_count", heads);
    file.size("attention.head_count_kv", kv_heads);
    file.size("attention.key_length", head_dim);
    file.size("attention.value_length", head_dim);
    file.size("rope.dimension_count", head_dim);
    file.float("rope.freq_base", c["rope_theta"].as_f64().unwrap() as f32);
    file.float("attention.layer_norm_rms_epsilon", c["rms_norm_eps"].as_f64().unwrap() as f32);
    for (name, tensor) in tensors {
        let new = mapped(
            &name,
            &[
                ("model.embed_tokens", "token_embd"),
                ("model.norm", "output_norm"),
                ("lm_head", "output"),
                ("model.layers", "blk"),
                ("input_layernorm", "attn_norm"),
                ("post_attention_layernorm", "ffn_norm"),
                ("self_attn.o_proj", "attn_output"),
                ("self_attn.q_proj", "attn_q"),
                ("self_attn.k_proj", "attn_k"),
                ("self_attn.v_proj", "attn_v"),
                ("self_attn.q_norm", "attn_q_norm"),
                ("self_attn.k_norm", "attn_k_norm"),
                ("mlp.gate_proj", "ffn_gate"),
                ("mlp.up_proj", "ffn_up"),
                ("mlp.down_proj", "ffn_down"),
            ],
        );
        let tensor = match new.split('.').nth(2) {
            Some("attn_q") if architecture == "llama" => tensor.paired(heads),
            Some("attn_k") if architecture == "llama" => tensor.paired(kv_heads),
            _ => tensor,
        };
        if new != "output.weight" || c["tie_word_embeddings"] == false {
            file.tensor(&new, &tensor);
        }
    }
    file
}

fn lfm2(q8_0: bool) -> Gguf {
    let c = config("lfm2");
    let mut file = Gguf::new("lfm2", q8_0);
    let tensors = numbers(&golden("lfm2"));
    let layers = size(&c, "num_hidden_layers");
    let attends = |i: usize| tensors.contains_key(&format!("model.layers.{i}.self_attn.q_proj.weight"));
    let kv = |i: usize| if attends(i) { size(&c, "num_key_value_heads") as i32 } else { 0 };
    file.size("embedding_length", size(&c, "hidden_size"));
    file.size("feed_forward_length", tensors["model.layers.0.feed_forward.w1.weight"].shape[0]);
    file.size("block_count", layers);
    file.size("attention.head_count", size(&c, "num_attention_heads"));
    file.each_layer("attention.head_count_kv", &(0..layers).map(kv).collect::<Vec<_>>());
    file.size("shortconv.l_cache", size(&c, "conv_L_cache"));
    file.float("rope.freq_base", c["rope_theta"].as_f64().unwrap() as f32);
    file.float("attention.layer_norm_rms_epsilon", c["norm_eps"].as_f64().unwrap() as f32);
    for (name, tensor) in tensors {
        let new = mapped(
            &name,
            &[
                ("model.embed_tokens", "token_embd"),
                ("model.embedding_norm", "token_embd_norm"),
                ("lm_head", "output"),
                ("model.layers", "blk"),
                ("operator_norm", "attn_norm"),
                ("self_attn.q_layernorm", "attn_q_norm"),
                ("self_attn.k_layernorm", "attn_k_norm"),
                ("self_attn.out_proj", "attn_output"),
                ("self_attn.q_proj", "attn_q"),
                ("self_attn.k_proj", "attn_k"),
                ("self_attn.v_proj", "attn_v"),
                ("conv.conv.", "shortconv.conv."),
                ("conv.in_proj", "shortconv.in_proj"),
                ("conv.out_proj", "shortconv.out_proj"),
                ("feed_forward.w1", "ffn_gate"),
                ("feed_forward.w2", "ffn_down"),
                ("feed_forward.w3", "ffn_up"),
            ],
        );
        let tensor = if new.contains("shortconv.conv.") { tensor.squeezed() } else { tensor };
        file.tensor(&new, &tensor);
    }
    file
}

fn jamba(name: &str, q8_0: bool) -> Gguf {
    let c = config(name);
    let mut file = Gguf::new("jamba", q8_0);
    let tensors = numbers(&golden(name));
    let (layers, experts) = (size(&c, "num_hidden_layers"), size(&c, "num_experts"));
    let (period, offset) = (size(&c, "attn_layer_period"), size(&c, "attn_layer_offset"));
    let kv = |i: usize| if i % period == offset { size(&c, "num_key_value_heads") as i32 } else { 0 };
    file.size("embedding_length", size(&c, "hidden_size"));
    file.size("feed_forward_length", size(&c, "intermediate_size"));
    file.size("block_count", layers);
    file.size("attention.head_count", size(&c, "num_attention_heads"));
    file.each_layer("attention.head_count_kv", &(0..layers).map(kv).collect::<Vec<_>>());
    file.size("ssm.conv_kernel", size(&c, "mamba_d_conv"));
    file.size("ssm.inner_size", size(&c, "mamba_expand") * size(&c, "hidden_size"));
    file.size("ssm.state_size", size(&c, "mamba_d_state"));
    file.size("ssm.time_step_rank", size(&c, "mamba_dt_rank"));
    file.float("attention.layer_norm_rms_epsilon", c["rms_norm_eps"].as_f64().unwrap() as f32);
    file.size("expert_count", experts);
    file.size("expert_used_count", size(&c, "num_experts_per_tok"));
    for layer in 0..layers {
        for (map, new) in
            [("gate_proj", "ffn_gate_exps"), ("up_proj", "ffn_up_exps"), ("down_proj", "ffn_down_exps")]
        {
            let expert =
                |e| tensors.get(&format!("model.layers.{layer}.feed_forward.experts.{e}.{map}.weight"));
            let Some(all) = (0..experts).map(expert).collect::<Option<Vec<_>>>() else { continue };
            let shape = [&[experts][..], &all[0].shape].concat();
            let values = all.iter().flat_map(|e| e.values.clone()).collect();
            file.tensor(&format!("blk.{layer}.{new}.weight"), &Numbers { shape, values });
        }
    }
    for (name, tensor) in tensors.into_iter().filter(|(name, _)| !name.contains(".experts.")) {
        let new = mapped(
            &name,
            &[
                ("model.embed_tokens", "token_embd"),
                ("model.final_layernorm", "output_norm"),
                ("lm_head", "output"),
                ("model.layers", "blk"),
                ("input_layernorm", "attn_norm"),
                ("pre_ff_layernorm", "ffn_norm"),
                ("self_attn.o_proj", "attn_output"),
                ("self_attn.q_proj", "attn_q"),
                ("self_attn.k_proj", "attn_k"),
                ("self_attn.v_proj", "attn_v"),
                ("mamba.in_proj", "ssm_in"),
                ("mamba.conv1d", "ssm_conv1d"),
                ("mamba.x_proj", "ssm_x"),
                ("mamba.dt_proj", "ssm_dt"),
                ("mamba.dt_layernorm", "ssm_dt_norm"),
                ("mamba.b_layernorm", "ssm_b_norm"),
                ("mamba.c_layernorm", "ssm_c_norm"),
                ("mamba.A_log", "ssm_a"),
                ("mamba.D", "ssm_d"),
                ("mamba.out_proj", "ssm_out"),
                ("feed_forward.router", "ffn_gate_inp"),
                ("feed_forward.gate_proj", "ffn_gate"),
                ("feed_forward.up_proj", "ffn_up"),
                ("feed_forward.down_proj", "ffn_down"),
            ],
        );
        let tensor = if new.ends_with("ssm_a") { tensor.map(|a| -a.exp()) } else { tensor };
        let tensor = if new.contains("conv1d") { tensor.squeezed() } else { tensor };
        file.tensor(&new, &tensor);
    }
    file
}

fn written(file: &Gguf) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    (dir, path)
}

/// The largest difference from the reference, relative to the largest logit, of all forms.
fn error(path: &Path, name: &str, dtype: DType) -> f64 {
    let folder = golden(name);
    let expected = Expected::open(&folder.join("tokens.json"), &folder.join("expected.safetensors")).unwrap();
    let loaded = load(path, &LoadOptions { dtype, ..LoadOptions::default() }).unwrap();
    let forms = expected.compare(&loaded.model, f64::INFINITY).unwrap();
    assert_eq!(forms.len(), 3);
    forms.iter().map(|form| form.relative).fold(0.0, f64::max)
}

#[test]
fn files_in_f32_give_the_references_logits() {
    let files = [
        ("mamba-hf", mamba(false)),
        ("mamba2-hf", mamba2(false)),
        ("rwkv6-pth", rwkv6(false, 0)),
        ("rwkv7-pth", rwkv7(false)),
        ("jamba-dense", jamba("jamba-dense", false)),
        ("jamba-moe", jamba("jamba-moe", false)),
        ("lfm2", lfm2(false)),
        ("llama", decoder("llama", false)),
        ("qwen3", decoder("qwen3", false)),
    ];
    for (name, file) in files {
        let (dir, path) = written(&file);
        // A_log went through an exponential in single precision.
        let double = error(&path, name, DType::F64);
        assert!(double < 2e-5, "{name} in f64: {double}");
        let single = error(dir.path(), name, DType::F32);
        assert!(single < 3e-4, "{name} in f32: {single}");
    }
}

/// A model of which every other layer's part was divided gives the same but for the eps of norms.
#[test]
fn rescaled_layers() {
    let (_dir, path) = written(&rwkv6(false, 1));
    let found = error(&path, "rwkv6-pth", DType::F64);
    assert!(found < 2e-3, "{found}");
}

/// Blocks arrive as they lie in the file, and lose what eight bits lose; other formats can be made of them.
#[test]
fn files_in_q8_0_stay_in_blocks() {
    for (name, file) in [
        ("mamba-hf", mamba(true)),
        ("mamba2-hf", mamba2(true)),
        ("rwkv6-pth", rwkv6(true, 0)),
        ("rwkv7-pth", rwkv7(true)),
        ("jamba-moe", jamba("jamba-moe", true)),
        ("lfm2", lfm2(true)),
        ("llama", decoder("llama", true)),
    ] {
        let (_dir, path) = written(&file);
        let loaded = load(&path, &LoadOptions::default()).unwrap();
        let groups = loaded.model.parameter_groups();
        let held = |name: &str| groups.iter().filter(|g| g.held.is_some_and(|h| h.name() == name)).count();
        assert!(held("q8_0") >= 2, "{name}: {} in q8_0", held("q8_0"));
        for dtype in [DType::F32, DType::F64] {
            let found = error(&path, name, dtype);
            // A router that chooses another expert changes more than any rounding.
            let most = if name == "jamba-moe" { 0.2 } else { 5e-2 };
            assert!(found > 1e-5 && found < most, "{name} {dtype:?}: {found}");
        }
        let four = LoadOptions { quant: Some(semisep_core::BlockFormat::Q4_0), ..LoadOptions::default() };
        let loaded = load(&path, &four).unwrap();
        let q4 = |g: &&semisep_core::ParameterGroup| {
            g.held == Some(WeightType::Blocks(semisep_core::BlockFormat::Q4_0))
        };
        assert!(loaded.model.parameter_groups().iter().any(|g| q4(&g)));
    }
}

/// Every byte of the first part of a file cut off or changed: an error or a model, never a panic.
#[test]
fn damaged_files() {
    let bytes = mamba(true).bytes();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let header = 4096.min(bytes.len());
    for cut in (1..header).step_by(13).chain([bytes.len() - 1]) {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert!(Checkpoint::open(&path).is_err(), "cut at {cut}");
    }
    for at in (0..header).step_by(3) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x81;
        std::fs::write(&path, changed).unwrap();
        if let Ok(planned) = semisep_zoo::load::plan(&path, &LoadOptions::default()) {
            drop(planned);
        }
    }
    std::fs::write(&path, Gguf::new("gptj", false).bytes()).unwrap();
    let output = semisep(&["describe", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("known architectures: jamba, lfm2, llama, mamba"),
        "{}",
        stderr(&output)
    );
}

#[global_allocator]
static ALLOCATOR: mutate::Counting = mutate::Counting;

/// Damaged headers, metadata, vocabularies and tensor tables, as in the tests of the other readers (`hostile.rs`).
#[test]
fn hostile_files() {
    const BOUND: usize = 256 << 20;
    let dir = mutate::folder();
    let bytes = with_tokenizer(mamba(true), 104).bytes();
    // Header, metadata and table; the tensors' bytes are what is left.
    let head = bytes.windows(8).rposition(|w| w == b"ssm_out.").map_or(bytes.len(), |at| at + 64);
    std::fs::write(dir.path().join("model.gguf"), &bytes).unwrap();
    mutate::run_file(dir.path(), "model.gguf", Some(head), BOUND, |folder| {
        let path = folder.join("model.gguf");
        let Ok(planned) = plan(&path, &LoadOptions::default()) else { return false };
        let tokenizer = Tokenizer::open(&path, &planned.architecture.model);
        tokenizer.and_then(|t| t.encode("the th!").and_then(|ids| t.decode(&ids))).is_ok()
    });
}

/// The characters that stand for bytes in byte-level vocabularies: here those of ASCII.
fn with_tokenizer(mut file: Gguf, vocab: usize) -> Gguf {
    let mut tokens: Vec<String> = (0x21..=0x7eu8).map(|b| char::from(b).to_string()).collect();
    tokens.insert(0, "\u{120}".into());
    tokens.push("th".into());
    tokens.push("<|end|>".into());
    let kinds: Vec<i32> = (0..vocab).map(|i| if i + 1 == tokens.len() { 3 } else { 1 }).collect();
    let end = tokens.len() as u32 - 1;
    (tokens.len()..vocab).for_each(|i| tokens.push(format!("[{i}]")));
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "gpt-2");
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.kinds("tokenizer.ggml.token_type", &kinds);
    file.texts("tokenizer.ggml.merges", &["t h".into()]);
    file.id("tokenizer.ggml.eos_token_id", end);
    file
}

#[test]
fn text_through_the_files_own_vocabulary() {
    let (_dir, path) = written(&with_tokenizer(mamba(true), 104));
    let loaded = load(&path, &LoadOptions::default()).unwrap();
    let tokenizer = Tokenizer::open(&path, &loaded.architecture.model).unwrap();
    let ids = tokenizer.encode("the th!<|end|>").unwrap();
    assert_eq!(ids, [95, 69, 0, 95, 1, 96]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "the th!");
    assert_eq!(stop_tokens(&path).unwrap(), [96]);
    let output = semisep(&["generate", path.to_str().unwrap(), "-p", "the", "-n", "5"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let bench = semisep(&["bench", path.to_str().unwrap(), "--lengths", "4", "--seconds", "0"]);
    assert!(stdout(&bench).contains("q8_0"), "{}", stdout(&bench));
}

#[test]
fn pieces_with_scores() {
    let tokens =
        ["<unk>", "<s>", "</s>", "<0x21>", "\u{2581}", "a", "b", "ab", "\u{2581}ab", "aba", "\u{2581}a"];
    let mut file = mamba(false);
    file.text("tokenizer.ggml.model", "llama");
    file.texts("tokenizer.ggml.tokens", &tokens.map(String::from));
    file.floats("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, 0.0, -9.0, -8.0, -7.0, -1.0, -2.0, -3.0, -4.0]);
    file.kinds("tokenizer.ggml.token_type", &[2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1]);
    file.id("tokenizer.ggml.bos_token_id", 1);
    file.id("tokenizer.ggml.unknown_token_id", 0);
    let (_dir, path) = written(&file);
    let model = load(&path, &LoadOptions::default()).unwrap().architecture.model;
    let tokenizer = Tokenizer::open(&path, &model).unwrap();
    // `ab` scores highest, then the word that begins with it.
    assert_eq!(tokenizer.encode("ab aba!").unwrap(), [1, 8, 8, 5, 3]);
    assert_eq!(tokenizer.decode(&[1, 8, 8, 5, 3]).unwrap(), "ab aba!");
}
