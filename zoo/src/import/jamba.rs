//! transformers' `JambaForCausalLM`: Mamba layers with normed step sizes, B and C, attention without positions, and after
//! each an MLP or a mixture of experts.

use std::collections::BTreeSet;

use semisep_mamba1::{Mamba1Config, ParameterNorms};
use semisep_moe::MoeConfig;

use super::hybrid::{Hybrid, Whole, attention_names};
use super::{Folder, Import, Importer, MAX_LAYERS, Names, is_type, layer, layout, residual};
use crate::Result;

/// `model_type` "jamba".
pub(super) const JAMBA: Importer =
    Importer { family: "jamba", detects: |config| is_type(config, "jamba", "JambaForCausalLM"), import };

/// transformers knows the number of experts by both names.
const EXPERTS: &[&str] = &["num_experts", "num_local_experts"];

fn import(folder: &Folder<'_>) -> Result<Import> {
    let mut hybrid = Hybrid::new(folder);
    let config = &folder.config;
    let n_layer = config.size_up_to("num_hidden_layers", MAX_LAYERS);
    let eps = hybrid.eps("rms_norm_eps", 1e-6);
    if config.get("sliding_window").is_some() {
        hybrid.notes.push("sliding_window has no effect: attention sees all tokens".into());
    }
    let (attention_layers, expert_layers) = layers(&mut hybrid, n_layer);
    let mut attention = hybrid.attention(|_| None);
    if let Some(first) = attention_layers.first() {
        hybrid.stored_bias(&mut attention, &format!("model.layers.{first}.self_attn.q_proj"));
    }
    let names = names(attention_names(
        Names::new(),
        &attention,
        hybrid.d_model,
        attention_layers.iter().copied(),
        ("model.layers.*.self_attn", "backbone.layers.*.mixer"),
    ));
    let (attention, ssm) = (hybrid.checked(attention), hybrid.checked(mamba(&hybrid, eps)));
    let mlp = hybrid.mlp("intermediate_size");
    let experts = (!expert_layers.is_empty()).then(|| {
        hybrid.checked(MoeConfig {
            num_experts: config.size_or(config.first_of(EXPERTS), 16),
            num_experts_per_tok: config.size_or("num_experts_per_tok", 2),
            d_intermediate: config.size("intermediate_size"),
            fused: false,
            activation: mlp.activation,
            ..MoeConfig::default()
        })
    });
    let mlp = hybrid.checked(mlp);
    let layers = (0..n_layer).map(|i| {
        let (block, mixer) = if attention_layers.contains(&i) { ("attn", &attention) } else { ("ssm", &ssm) };
        let (block, ffn) = match experts.as_ref().filter(|_| expert_layers.contains(&i)) {
            Some(experts) => (format!("{block}_moe"), experts),
            None => (block.into(), &mlp),
        };
        layer(&block, vec![residual(mixer.clone(), "mixer", "norm"), residual(ffn.clone(), "mlp", "norm2")])
    });
    let layers = layers.collect();
    hybrid.import(Whole::new(JAMBA.family, eps), layers, names)
}

/// The layers of attention, and those of experts.
fn layers(hybrid: &mut Hybrid<'_>, n_layer: usize) -> (BTreeSet<usize>, BTreeSet<usize>) {
    let Hybrid { config, notes, .. } = hybrid;
    let kinds =
        [("mamba", false), ("linear_attention", false), ("attention", true), ("full_attention", true)];
    let keys = ("attn_layer_period", "attn_layer_offset");
    let mut listed = |key| layout::types(config, key, n_layer, &kinds, notes);
    let attention = match listed("layers_block_type").or_else(|| listed("layer_types")) {
        Some(kinds) => {
            kinds.iter().enumerate().filter(|(_, attention)| **attention).map(|(i, _)| i).collect()
        }
        None => layout::periodic(config, keys, (8, 4), n_layer, notes),
    };
    if config.size_or(config.first_of(EXPERTS), 16) == 1 {
        return (attention, BTreeSet::new());
    }
    let keys = ("expert_layer_period", "expert_layer_offset");
    (attention, layout::periodic(config, keys, (2, 1), n_layer, notes))
}

fn mamba(hybrid: &Hybrid<'_>, eps: f64) -> Mamba1Config {
    let config = hybrid.config;
    hybrid.silu("hidden_act");
    let auto = config.get("mamba_dt_rank").is_some_and(|rank| rank.as_str() == Some("auto"));
    Mamba1Config {
        d_state: config.size_or("mamba_d_state", 16),
        d_conv: config.size_or("mamba_d_conv", 4),
        expand: config.size_or("mamba_expand", 2),
        dt_rank: if auto { None } else { config.size_from("mamba_dt_rank", 1) },
        bias: config.flag_or("mamba_proj_bias", false),
        conv_bias: config.flag_or("mamba_conv_bias", true),
        norms: Some(ParameterNorms { eps, weighted: true }),
        ..Mamba1Config::default()
    }
}

fn names(names: Names) -> Names {
    names
        .rename("model.embed_tokens", "backbone.embedding")
        .rename("model.final_layernorm", "backbone.norm_f")
        .rename("model.layers.*.input_layernorm", "backbone.layers.*.norm")
        .rename("model.layers.*.pre_ff_layernorm", "backbone.layers.*.norm2")
        .rename("model.layers.*.mamba", "backbone.layers.*.mixer")
        .rename("model.layers.*.feed_forward.router", "backbone.layers.*.mlp.gate")
        .rename("model.layers.*.feed_forward", "backbone.layers.*.mlp")
}
