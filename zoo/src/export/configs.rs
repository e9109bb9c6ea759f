//! Configurations of public families, written for any model that they can express.
//!
//! A writer says what it can; what it leaves out is found out by reading it back with the family's importer and comparing
//! the two architectures.

use semisep_core::NormKind;
use semisep_models::normal::{Architecture, Layer, Merge, Stage};
use serde_json::{Map, Value, json};

/// Writes a configuration, or says why it cannot.
type Config = fn(&Architecture) -> Result<Value, String>;

/// Families by their importers' names.
pub(super) const CONFIGS: &[(&str, Config)] = &[
    ("deltanet-fla", |a| fla(a, "delta_net", "deltanet")),
    ("gated-deltanet-fla", |a| fla(a, "gated_deltanet", "gated_deltanet")),
    ("gla-fla", |a| fla(a, "gla", "gla")),
    ("mamba", mamba),
    ("mamba2", mamba2),
    ("retnet-fla", |a| fla(a, "retnet", "retnet")),
    ("state-spaces", state_spaces),
];

/// A mixer's kind and its configuration.
type Mixer = (&'static str, Map<String, Value>);

/// The mixer of a stage that is nothing but one mixer after a norm.
fn simple(stage: &Stage) -> Option<Mixer> {
    let [branch] = &stage.branches[..] else { return None };
    let plain = branch.post_norm.is_none()
        && branch.pre_norm.is_some()
        && (branch.input_multiplier, branch.output_multiplier) == (1.0, 1.0)
        && stage.merge == Merge::Sum;
    let Value::Object(config) = branch.mixer.to_json() else { return None };
    plain.then(|| (branch.mixer.kind(), config))
}

/// The mixer of each layer and the perceptron after it, if there is one.
fn layers(architecture: &Architecture) -> Result<Vec<(Mixer, Option<Mixer>)>, String> {
    let of = |(i, layer): (usize, &Layer)| {
        let mixers = layer.stages.iter().map(simple).collect::<Option<Vec<_>>>();
        let mut mixers = mixers.filter(|m| layer.share.is_none() && (1..=2).contains(&m.len()));
        let mlp = mixers.as_mut().and_then(|m| if m.len() == 2 { m.pop() } else { None });
        let mixer = mixers.and_then(|mut m| m.pop());
        mixer.map(|mixer| (mixer, mlp)).ok_or_else(|| format!("layer {i} is not a mixer and a perceptron"))
    };
    architecture.layers.iter().enumerate().map(of).collect()
}

/// The one mixer and the one perceptron of all layers.
fn uniform(architecture: &Architecture, kind: &str) -> Result<(Map<String, Value>, Option<Mixer>), String> {
    let mut layers = layers(architecture)?;
    let (first, mlp) = layers.pop().ok_or("it has no layers")?;
    if first.0 != kind || layers.iter().any(|layer| *layer != (first.clone(), mlp.clone())) {
        return Err(format!("its layers are not all {kind}, and all alike"));
    }
    Ok((first.1, mlp))
}

/// These keys of an object under their names there.
fn keys(config: &Map<String, Value>, names: &[(&str, &str)]) -> Map<String, Value> {
    let value = |(ours, theirs): &(&str, &str)| {
        Some(((*theirs).to_owned(), config.get(*ours).filter(|v| !v.is_null())?.clone()))
    };
    names.iter().filter_map(value).collect()
}

/// `dt_limit` where both ends are numbers: an infinite one has no place in JSON.
fn limits(config: &Map<String, Value>) -> Option<Value> {
    let limits = config.get("dt_limit")?;
    limits.as_array()?.iter().all(Value::is_number).then(|| limits.clone())
}

/// state-spaces: `MambaConfig`.
fn state_spaces(architecture: &Architecture) -> Result<Value, String> {
    let (model, layers) = (&architecture.model, layers(architecture)?);
    let (mut ssm, mut attention, mut at) = (None, None, Vec::new());
    for (i, ((kind, config), _)) in layers.iter().enumerate() {
        match *kind {
            "attention" => {
                at.push(i);
                attention.get_or_insert_with(|| attn_cfg(config));
            }
            "mamba1" | "mamba2" => {
                ssm.get_or_insert_with(|| ssm_cfg(kind, config));
            }
            other => return Err(format!("it has no layer like {other}")),
        }
    }
    let mlp = layers.first().and_then(|(_, mlp)| mlp.as_ref());
    let d_intermediate = mlp.and_then(|(_, config)| config.get("d_intermediate")).cloned();
    Ok(json!({
        "d_model": model.d_model,
        "d_intermediate": d_intermediate.unwrap_or(0.into()),
        "n_layer": layers.len(),
        "vocab_size": model.vocab_size,
        "ssm_cfg": ssm.unwrap_or_else(|| json!({})),
        "attn_layer_idx": at,
        "attn_cfg": attention.unwrap_or_else(|| json!({})),
        "rms_norm": model.norm.kind == NormKind::Rms,
        "residual_in_fp32": model.residual_in_fp32,
        "fused_add_norm": true,
        "pad_vocab_size_multiple": model.pad_vocab_size_multiple,
        "tie_embeddings": model.tie_embeddings,
    }))
}

fn ssm_cfg(kind: &str, config: &Map<String, Value>) -> Value {
    let same = |name| (name, name);
    let mut cfg = match kind {
        "mamba1" => keys(config, &["d_state", "d_conv", "expand", "dt_rank", "bias", "conv_bias"].map(same)),
        _ => {
            let mut cfg = keys(
                config,
                &[
                    "d_state",
                    "d_conv",
                    "expand",
                    "d_ssm",
                    "headdim",
                    "ngroups",
                    "chunk_size",
                    "bias",
                    "conv_bias",
                    "rmsnorm",
                    "norm_before_gate",
                    "D_has_hdim",
                ]
                .map(same),
            );
            cfg.extend(limits(config).map(|limits| ("dt_limit".to_owned(), limits)));
            cfg
        }
    };
    cfg.insert("layer".into(), if kind == "mamba1" { "Mamba1" } else { "Mamba2" }.into());
    cfg.into()
}

fn attn_cfg(config: &Map<String, Value>) -> Value {
    let mut cfg = keys(
        config,
        &[
            ("n_heads", "num_heads"),
            ("n_kv_heads", "num_heads_kv"),
            ("head_dim", "head_dim"),
            ("d_conv", "d_conv"),
            ("qkv_bias", "qkv_proj_bias"),
            ("out_bias", "out_proj_bias"),
            ("scale", "softmax_scale"),
            ("causal", "causal"),
        ],
    );
    if let Some(Value::Object(rope)) = config.get("rope") {
        let names = [
            ("dim", "rotary_emb_dim"),
            ("theta", "rotary_emb_base"),
            ("interleaved", "rotary_emb_interleaved"),
        ];
        cfg.extend(keys(rope, &names));
    }
    cfg.into()
}

/// What transformers' and fla's configurations have in common.
fn common(architecture: &Architecture, model_type: &str, class: &str) -> Map<String, Value> {
    let model = &architecture.model;
    let value = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_size": model.d_model,
        "num_hidden_layers": architecture.layers.len(),
        "vocab_size": model.padded_vocab(),
        "tie_word_embeddings": model.tie_embeddings,
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// transformers: `MambaConfig`.
fn mamba(architecture: &Architecture) -> Result<Value, String> {
    let (mixer, mlp) = uniform(architecture, "mamba1")?;
    no_mlp(mlp)?;
    let mut config = common(architecture, "mamba", "MambaForCausalLM");
    let names = [
        ("d_state", "state_size"),
        ("d_conv", "conv_kernel"),
        ("expand", "expand"),
        ("dt_rank", "time_step_rank"),
        ("bias", "use_bias"),
        ("conv_bias", "use_conv_bias"),
    ];
    config.extend(keys(&mixer, &names));
    config.entry("time_step_rank").or_insert("auto".into());
    let width = mixer.get("expand").and_then(Value::as_u64).map(|e| e * architecture.model.d_model as u64);
    config.insert("intermediate_size".into(), json!(width));
    hugging_face(config, architecture)
}

/// transformers: `Mamba2Config`.
fn mamba2(architecture: &Architecture) -> Result<Value, String> {
    let (mixer, mlp) = uniform(architecture, "mamba2")?;
    no_mlp(mlp)?;
    let mut config = common(architecture, "mamba2", "Mamba2ForCausalLM");
    let names = [
        ("d_state", "state_size"),
        ("d_conv", "conv_kernel"),
        ("expand", "expand"),
        ("headdim", "head_dim"),
        ("ngroups", "n_groups"),
        ("chunk_size", "chunk_size"),
        ("bias", "use_bias"),
        ("conv_bias", "use_conv_bias"),
    ];
    config.extend(keys(&mixer, &names));
    config.extend(limits(&mixer).map(|limits| ("time_step_limit".to_owned(), limits)));
    let number = |key: &str| mixer.get(key).and_then(Value::as_u64);
    let heads = number("expand")
        .zip(number("headdim"))
        .map(|(e, p)| e * architecture.model.d_model as u64 / p.max(1));
    config.insert("num_heads".into(), json!(heads));
    hugging_face(config, architecture)
}

fn no_mlp(mlp: Option<Mixer>) -> Result<(), String> {
    mlp.map_or(Ok(()), |_| Err("it has no perceptrons".into()))
}

fn hugging_face(mut config: Map<String, Value>, architecture: &Architecture) -> Result<Value, String> {
    config.insert("hidden_act".into(), "silu".into());
    config.insert("layer_norm_epsilon".into(), json!(architecture.model.norm.eps));
    config.insert("residual_in_fp32".into(), json!(architecture.model.residual_in_fp32));
    Ok(config.into())
}

/// flash-linear-attention: the mixers' keys are its own.
fn fla(architecture: &Architecture, model_type: &str, kind: &str) -> Result<Value, String> {
    let (mixer, mlp) = uniform(architecture, kind)?;
    let Some(("mlp", mlp)) = mlp else { return Err("every layer has a gated perceptron".into()) };
    let class = match kind {
        "deltanet" => "DeltaNetForCausalLM",
        "gated_deltanet" => "GatedDeltaNetForCausalLM",
        "gla" => "GLAForCausalLM",
        _ => "RetNetForCausalLM",
    };
    let mut config = common(architecture, model_type, class);
    let others = mixer.into_iter().filter(|(key, value)| !value.is_null() && key != "gate_fn");
    config.extend(others);
    config.insert("norm_eps".into(), json!(architecture.model.norm.eps));
    config.extend(keys(&mlp, &[("d_intermediate", "intermediate_size"), ("activation", "hidden_act")]));
    if config.get("hidden_act").is_some_and(|act| act == "silu") {
        config.insert("hidden_act".into(), "swish".into());
    }
    Ok(config.into())
}
