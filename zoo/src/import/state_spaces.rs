//! The layout of state-spaces/mamba: Mamba, Mamba-2, their hybrids with attention, with and without MLPs.
//!
//! Keys are those of `MambaConfig`; `ssm_cfg` and `attn_cfg` are arguments of the layers' constructors, with their
//! defaults.

use std::sync::Arc;

use semisep_attention::AttentionConfig;
use semisep_core::{MAX_WIDTH, MixerConfig, MlpConfig, NormConfig, NormKind, RotaryConfig};
use semisep_mamba1::Mamba1Config;
use semisep_mamba2::Mamba2Config;
use semisep_models::normal::{Architecture, ModelConfig};

use super::{Fields, Folder, Import, Importer, MAX_LAYERS, Names, layer, residual};
use crate::Result;

/// The family.
pub(super) const STATE_SPACES: Importer = Importer { family: "state-spaces", detects, import };

const EMBEDDING: &str = "backbone.embedding.weight";
/// Arguments that choose implementations or initial values, or belong to sharded training.
const NO_EFFECT: [&str; 11] = [
    "dt_min",
    "dt_max",
    "dt_init",
    "dt_scale",
    "dt_init_floor",
    "conv_init",
    "A_init_range",
    "use_fast_path",
    "use_mem_eff_path",
    "process_group",
    "sequence_parallel",
];

fn detects(config: &Fields) -> bool {
    let signs = ["ssm_cfg", "attn_cfg", "attn_layer_idx", "fused_add_norm"];
    config.get("model_type").is_none() && signs.iter().any(|key| config.get(key).is_some())
}

fn import(folder: &Folder<'_>) -> Result<Import> {
    let config = &folder.config;
    let (d_model, n_layer) = (config.size("d_model"), config.size_up_to("n_layer", MAX_LAYERS));
    let kind = if config.flag_or("rms_norm", true) { NormKind::Rms } else { NormKind::Layer };
    let (tie_embeddings, note) = folder.tied(config.flag("tie_embeddings"), true, EMBEDDING);
    let model = ModelConfig {
        d_model,
        vocab_size: config.size("vocab_size"),
        pad_vocab_size_multiple: config.size_or("pad_vocab_size_multiple", 8),
        tie_embeddings,
        norm: NormConfig { kind, eps: 1e-5 },
        residual_in_fp32: config.flag_or("residual_in_fp32", true),
        ..ModelConfig::new(d_model, 1)
    };
    folder.check_embedding(EMBEDDING, model.padded_vocab(), ("d_model", d_model));
    let attention_layers = config.indices("attn_layer_idx", n_layer);
    let ssm = (attention_layers.len() < n_layer).then(|| ssm(&config.section("ssm_cfg"), d_model));
    let attention = (!attention_layers.is_empty()).then(|| attention(&config.section("attn_cfg"), d_model));
    let mlp = config.size_from("d_intermediate", 0).filter(|&d| d > 0).map(mlp);
    let mut layers = Vec::with_capacity(n_layer);
    for i in 0..n_layer {
        let chosen = if attention_layers.contains(&i) { ("attn", &attention) } else { ("ssm", &ssm) };
        let (block, Some(mixer)) = chosen else { continue };
        let mut stages = vec![residual(mixer.clone(), "mixer", "norm")];
        stages.extend(mlp.iter().map(|mlp| residual(mlp.clone(), "mlp", "norm2")));
        layers.push(layer(block, stages));
    }
    let names = if tie_embeddings { Names::new().tie("lm_head.weight", EMBEDDING) } else { Names::new() };
    Ok(Import {
        family: STATE_SPACES.family,
        architecture: Architecture { name: folder.name(), model, layers },
        names,
        notes: note.into_iter().collect(),
    })
}

fn ssm(cfg: &Fields, d_model: usize) -> Arc<dyn MixerConfig> {
    cfg.ignore(&NO_EFFECT);
    let mixer: Arc<dyn MixerConfig> = match cfg.text("layer").unwrap_or("Mamba1") {
        "Mamba1" => Arc::new(mamba1(cfg)),
        "Mamba2" => Arc::new(mamba2(cfg)),
        other => {
            cfg.problem("layer", format!("expected \"Mamba1\" or \"Mamba2\", found {other:?}"));
            return Arc::new(Mamba1Config::default());
        }
    };
    cfg.refuse_others();
    if cfg.ok() {
        cfg.issues(mixer.check(d_model));
    }
    mixer
}

fn mamba1(cfg: &Fields) -> Mamba1Config {
    let default = Mamba1Config::default();
    let auto = cfg.get("dt_rank").is_some_and(|rank| rank.as_str() == Some("auto"));
    Mamba1Config {
        d_state: cfg.size_or("d_state", default.d_state),
        d_conv: cfg.size_or("d_conv", default.d_conv),
        expand: cfg.size_or("expand", default.expand),
        dt_rank: if auto { None } else { cfg.size_from("dt_rank", 1) },
        bias: cfg.flag_or("bias", default.bias),
        conv_bias: cfg.flag_or("conv_bias", default.conv_bias),
        ..default
    }
}

fn mamba2(cfg: &Fields) -> Mamba2Config {
    let default = Mamba2Config::default();
    Mamba2Config {
        d_state: cfg.size_or("d_state", default.d_state),
        d_conv: cfg.size_or("d_conv", default.d_conv),
        expand: cfg.size_or("expand", default.expand),
        d_ssm: cfg.size_from("d_ssm", 1),
        headdim: cfg.size_or("headdim", default.headdim),
        ngroups: cfg.size_or("ngroups", default.ngroups),
        chunk_size: cfg.size_or("chunk_size", default.chunk_size),
        bias: cfg.flag_or("bias", default.bias),
        conv_bias: cfg.flag_or("conv_bias", default.conv_bias),
        rmsnorm: cfg.flag_or("rmsnorm", default.rmsnorm),
        norm_before_gate: cfg.flag_or("norm_before_gate", default.norm_before_gate),
        d_has_hdim: cfg.flag_or("D_has_hdim", default.d_has_hdim),
        dt_limit: cfg.limits("dt_limit"),
        ..default
    }
}

fn attention(cfg: &Fields, d_model: usize) -> Arc<dyn MixerConfig> {
    cfg.ignore(&["layer_idx"]);
    let parallel_mlp = cfg.size_from("mlp_dim", 0).unwrap_or(0);
    if parallel_mlp > 0 {
        cfg.problem(
            "mlp_dim",
            format!("expected 0 (an MLP inside of attention is not supported), found {parallel_mlp}"),
        );
    }
    let rope = cfg.size_from("rotary_emb_dim", 0).filter(|&dim| dim > 0).map(|dim| RotaryConfig {
        dim: Some(dim),
        theta: cfg.number("rotary_emb_base").unwrap_or(10_000.0),
        interleaved: cfg.flag_or("rotary_emb_interleaved", false),
        scaling: None,
    });
    cfg.ignore(&["rotary_emb_base", "rotary_emb_interleaved"]);
    let config = AttentionConfig {
        n_kv_heads: cfg.size_from("num_heads_kv", 1),
        head_dim: cfg.size_from("head_dim", 1),
        d_conv: cfg.size_from("d_conv", 0).unwrap_or(0),
        rope,
        qkv_bias: cfg.flag_or("qkv_proj_bias", true),
        out_bias: cfg.flag_or("out_proj_bias", true),
        scale: cfg.number("softmax_scale"),
        causal: cfg.flag_or("causal", false),
        ..AttentionConfig::new(cfg.size("num_heads"))
    };
    cfg.refuse_others();
    if cfg.ok() {
        cfg.issues(config.check(d_model));
    }
    Arc::new(config)
}

/// `GatedMLP` rounds its width up to a multiple of 128.
fn mlp(d_intermediate: usize) -> Arc<dyn MixerConfig> {
    const MULTIPLE: usize = 128;
    let d_intermediate = d_intermediate.next_multiple_of(MULTIPLE).min(MAX_WIDTH);
    Arc::new(MlpConfig {
        d_intermediate: Some(d_intermediate),
        multiple_of: MULTIPLE,
        ..MlpConfig::default()
    })
}
