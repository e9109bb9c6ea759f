//! GGUF files: the metadata as the configuration that the family's own checkpoints have.
//!
//! The tensors have been given their own names already ([`crate::checkpoint`]). Source: llama.cpp's `conversion/*.py`.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::{BARE, Fields, Folder, Import, MAX_LAYERS, understand};
use crate::checkpoint::{Checkpoint, Metadata, Value};
use crate::{Error, Result};

/// Makes a configuration of metadata.
type Configure = fn(&Facts<'_>) -> Json;

/// Architectures that are understood, and what makes a configuration of their metadata; RWKV's files say it all in names
/// and shapes.
const FAMILIES: [(&str, Configure); 9] = [
    ("jamba", jamba),
    ("lfm2", lfm2),
    ("llama", llama),
    ("mamba", mamba),
    ("mamba2", mamba2),
    ("qwen2", qwen2),
    ("qwen3", qwen3),
    ("rwkv6", |_| json!({})),
    ("rwkv7", |_| json!({})),
];

/// Understands a GGUF file.
///
/// # Errors
/// If its architecture is unknown, or the metadata do not fit the tensors.
pub(super) fn import(path: &Path, checkpoint: &Checkpoint, metadata: &Metadata) -> Result<Import> {
    let architecture = metadata.architecture();
    let Some((_, configuration)) = FAMILIES.iter().find(|(name, _)| *name == architecture) else {
        let known: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        let message = format!("expected a GGUF architecture of the zoo, found {architecture:?}");
        return Err(Error::at(path, message).hint(format!("known architectures: {}", known.join(", "))));
    };
    let object: Map<String, Json> = match configuration(&Facts { metadata, checkpoint }) {
        // What the file does not say is absent, not null.
        Json::Object(object) => object.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    };
    let bare = BARE.iter().find(|bare| object.is_empty() && (bare.detects)(checkpoint));
    let import = match bare {
        None => understand((path, path), checkpoint, Fields::new(path, object))?,
        Some(bare) => {
            let folder = Folder { path, config: Fields::new(path, object), checkpoint };
            let import = (bare.import)(&folder);
            folder.config.finish()?;
            import?
        }
    };
    Ok(rescaled(import, metadata))
}

/// RWKV-6: what each layer adds was divided by two once for every so many layers before it, when the file was written.
fn rescaled(mut import: Import, metadata: &Metadata) -> Import {
    let every = metadata.number("rescale_every_n_layers").filter(|n| *n >= 1.0 && n.fract() == 0.0);
    let Some(every) = every.map(|n| n as usize) else { return import };
    import.architecture.model.rescale_every = every;
    for (i, layer) in import.architecture.layers.iter_mut().enumerate() {
        let factor = 2f64.powi(i32::try_from(i / every).unwrap_or(i32::MAX));
        for branch in layer.stages.iter_mut().flat_map(|stage| &mut stage.branches) {
            branch.output_multiplier *= factor;
        }
    }
    import
}

/// What a file says, by key and by tensor.
struct Facts<'a> {
    metadata: &'a Metadata,
    checkpoint: &'a Checkpoint,
}

impl Facts<'_> {
    /// A number of this architecture; null if it is not there.
    fn number(&self, key: &str) -> Json {
        match self.metadata.number(key) {
            Some(number) if number.fract() == 0.0 && number.abs() < 1e15 => json!(number as i64),
            Some(number) => json!(number),
            None => Json::Null,
        }
    }

    /// A number a layer: a list, or one number for all.
    fn each_layer(&self, key: &str) -> Vec<f64> {
        match self.metadata.own(key) {
            Some(Value::Numbers(numbers)) => numbers.clone(),
            Some(Value::Number(number)) => {
                let layers = self.metadata.number("block_count").unwrap_or(0.0).clamp(0.0, MAX_LAYERS as f64);
                vec![*number; layers as usize]
            }
            _ => Vec::new(),
        }
    }

    /// The most heads of keys and values of any layer, and a kind for each layer: this where it has none, that where it
    /// has.
    fn kinds(&self, without: &str, with: &str) -> (Json, Json) {
        let heads = self.each_layer("attention.head_count_kv");
        let kinds: Vec<&str> = heads.iter().map(|n| if *n == 0.0 { without } else { with }).collect();
        (json!(heads.iter().copied().fold(0.0, f64::max) as i64), json!(kinds))
    }

    fn has(&self, tensor: &str) -> bool {
        self.checkpoint.get(tensor).is_some()
    }

    /// Rows of the embedding.
    fn rows(&self, embedding: &str) -> Json {
        self.checkpoint.get(embedding).and_then(|t| t.shape.first()).map_or(Json::Null, |rows| json!(rows))
    }

    /// The quotient of two numbers of this architecture, if it is whole.
    fn quotient(&self, key: &str, by: &str) -> Json {
        let (Some(number), Some(by)) = (self.metadata.number(key), self.metadata.number(by)) else {
            return Json::Null;
        };
        let quotient = number / by;
        if quotient.fract() == 0.0 { json!(quotient as i64) } else { json!(quotient) }
    }
}

fn mamba(facts: &Facts<'_>) -> Json {
    let normed = facts.metadata.own("ssm.dt_b_c_rms") == Some(&Value::Flag(true));
    json!({
        "model_type": if normed { "falcon_mamba" } else { "mamba" },
        "hidden_size": facts.number("embedding_length"),
        "num_hidden_layers": facts.number("block_count"),
        "vocab_size": facts.rows("backbone.embeddings.weight"),
        "state_size": facts.number("ssm.state_size"),
        "conv_kernel": facts.number("ssm.conv_kernel"),
        "intermediate_size": facts.number("ssm.inner_size"),
        "expand": facts.quotient("ssm.inner_size", "embedding_length"),
        "time_step_rank": facts.number("ssm.time_step_rank"),
        "layer_norm_epsilon": facts.number("attention.layer_norm_rms_epsilon"),
        "use_bias": facts.has("backbone.layers.0.mixer.in_proj.bias"),
        "use_conv_bias": facts.has("backbone.layers.0.mixer.conv1d.bias"),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
    })
}

fn mamba2(facts: &Facts<'_>) -> Json {
    json!({
        "model_type": "mamba2",
        "hidden_size": facts.number("embedding_length"),
        "num_hidden_layers": facts.number("block_count"),
        "vocab_size": facts.rows("backbone.embeddings.weight"),
        "state_size": facts.number("ssm.state_size"),
        "conv_kernel": facts.number("ssm.conv_kernel"),
        "expand": facts.quotient("ssm.inner_size", "embedding_length"),
        "num_heads": facts.number("ssm.time_step_rank"),
        "head_dim": facts.quotient("ssm.inner_size", "ssm.time_step_rank"),
        "n_groups": facts.number("ssm.group_count"),
        "layer_norm_epsilon": facts.number("attention.layer_norm_rms_epsilon"),
        "use_bias": facts.has("backbone.layers.0.mixer.in_proj.bias"),
        "use_conv_bias": facts.has("backbone.layers.0.mixer.conv1d.bias"),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
    })
}

/// What decoders with rotary attention and a gated MLP have in common.
fn transformer(facts: &Facts<'_>, model_type: &str) -> Json {
    let head_dim = match facts.number("attention.key_length") {
        Json::Null => facts.quotient("embedding_length", "attention.head_count"),
        length => length,
    };
    let theta = facts.metadata.number("rope.freq_base").unwrap_or(10_000.0);
    let scaling = match facts.metadata.text(&format!("{model_type}.rope.scaling.type")) {
        None | Some("none") => Json::Null,
        Some(kind) => json!({
            "rope_type": kind,
            "factor": facts.number("rope.scaling.factor"),
            "original_max_position_embeddings": facts.number("rope.scaling.original_context_length"),
        }),
    };
    json!({
        "model_type": model_type,
        "hidden_size": facts.number("embedding_length"),
        "intermediate_size": facts.number("feed_forward_length"),
        "num_hidden_layers": facts.number("block_count"),
        "num_attention_heads": facts.number("attention.head_count"),
        "num_key_value_heads": facts.number("attention.head_count_kv"),
        "head_dim": head_dim,
        "vocab_size": facts.rows("model.embed_tokens.weight"),
        "max_position_embeddings": facts.number("context_length"),
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "attention_bias": facts.has("model.layers.0.self_attn.q_proj.bias"),
        "mlp_bias": facts.has("model.layers.0.mlp.gate_proj.bias"),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
    })
}

fn llama(facts: &Facts<'_>) -> Json {
    transformer(facts, "llama")
}

fn qwen2(facts: &Facts<'_>) -> Json {
    transformer(facts, "qwen2")
}

fn qwen3(facts: &Facts<'_>) -> Json {
    transformer(facts, "qwen3")
}

fn jamba(facts: &Facts<'_>) -> Json {
    let (kv_heads, kinds) = facts.kinds("mamba", "attention");
    // Which layers have experts is told by their tensors alone.
    let layers = facts.each_layer("attention.head_count_kv").len();
    let routed = |i: &usize| facts.has(&format!("model.layers.{i}.feed_forward.router.weight"));
    let mut routers = (0..layers).filter(routed);
    let (first, second) = (routers.next(), routers.next());
    let offset = first.unwrap_or(0);
    json!({
        "model_type": "jamba",
        "hidden_size": facts.number("embedding_length"),
        "intermediate_size": facts.number("feed_forward_length"),
        "num_hidden_layers": facts.number("block_count"),
        "num_attention_heads": facts.number("attention.head_count"),
        "num_key_value_heads": kv_heads,
        "layers_block_type": kinds,
        "num_experts": if first.is_some() { facts.number("expert_count") } else { json!(1) },
        "num_experts_per_tok": if first.is_some() { facts.number("expert_used_count") } else { json!(1) },
        "expert_layer_offset": offset,
        "expert_layer_period": second.map_or(layers.max(1), |second| second - offset),
        "vocab_size": facts.rows("model.embed_tokens.weight"),
        "mamba_d_state": facts.number("ssm.state_size"),
        "mamba_d_conv": facts.number("ssm.conv_kernel"),
        "mamba_expand": facts.quotient("ssm.inner_size", "embedding_length"),
        "mamba_dt_rank": facts.number("ssm.time_step_rank"),
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
    })
}

fn lfm2(facts: &Facts<'_>) -> Json {
    let (kv_heads, kinds) = facts.kinds("conv", "full_attention");
    json!({
        "model_type": "lfm2",
        "hidden_size": facts.number("embedding_length"),
        "intermediate_size": facts.number("feed_forward_length"),
        "block_auto_adjust_ff_dim": false,
        "num_hidden_layers": facts.number("block_count"),
        "num_attention_heads": facts.number("attention.head_count"),
        "num_key_value_heads": kv_heads,
        "layer_types": kinds,
        "conv_L_cache": facts.number("shortconv.l_cache"),
        "conv_bias": facts.has("model.layers.0.conv.in_proj.bias"),
        "vocab_size": facts.rows("model.embed_tokens.weight"),
        "norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": facts.metadata.number("rope.freq_base").unwrap_or(10_000.0),
        "tie_word_embeddings": !facts.has("lm_head.weight"),
    })
}
