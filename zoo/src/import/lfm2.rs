//! Liquid AI's LFM2: gated short convolutions and a few attention layers, with gated MLPs or (LFM2-MoE) experts.

use std::sync::Arc;

use semisep_attention::{AttentionConfig, QkNorm};
use semisep_core::{Activation, MAX_WIDTH, MixerConfig, MlpConfig};
use semisep_models::normal::Layer;
use semisep_moe::{MoeConfig, Scoring};
use semisep_short_conv::ShortConvConfig;

use super::decoder::{Decoder, Family};
use super::rope::rope;
use super::{Fields, Import, Importer, Names, is_type, layer, layout, residual};
use crate::Result;

/// `model_type` "lfm2".
pub(super) const LFM2: Importer = Importer {
    family: "lfm2",
    detects: |config| is_type(config, "lfm2", "Lfm2ForCausalLM"),
    import: |folder| {
        let decoder = Decoder::new(folder);
        let mlp = decoder.checked(mlp(adjusted(decoder.config())));
        let channel = vec![mlp; decoder.n_layer];
        import(decoder, LFM2.family, channel)
    },
};

/// `model_type` "lfm2_moe": the first layers have MLPs, the others experts.
pub(super) const LFM2_MOE: Importer = Importer {
    family: "lfm2_moe",
    detects: |config| is_type(config, "lfm2_moe", "Lfm2MoeForCausalLM"),
    import: |folder| {
        let (decoder, config) = (Decoder::new(folder), &folder.config);
        let dense = config.size_from("num_dense_layers", 0).unwrap_or(2);
        let mlp = decoder.checked(mlp(config.size_or("intermediate_size", 7168)));
        let experts = decoder.checked(MoeConfig {
            num_experts: config.size_or("num_experts", 32),
            num_experts_per_tok: config.size_or("num_experts_per_tok", 4),
            d_intermediate: config.size_or("moe_intermediate_size", 1792),
            fused: false,
            scoring: Scoring::Sigmoid,
            norm_topk_prob: config.flag_or("norm_topk_prob", true),
            norm_topk_eps: 1e-6,
            expert_bias: config.flag_or("use_expert_bias", true),
            routed_scaling_factor: config.number("routed_scaling_factor").unwrap_or(1.0),
            ..MoeConfig::default()
        });
        let channel = (0..decoder.n_layer).map(|i| if i < dense { mlp.clone() } else { experts.clone() });
        let channel = channel.collect();
        import(decoder, LFM2_MOE.family, channel)
    },
};

/// Keys of the first files without a say, or that repeat others.
const NO_EFFECT: [&str; 7] = [
    "block_mlp_init_scale",
    "block_norm_eps",
    "block_out_init_scale",
    "block_use_xavier_init",
    "conv_use_xavier_init",
    "full_attn_idxs",
    "num_heads",
];

fn import(decoder: Decoder<'_>, family: &'static str, channel: Vec<Arc<dyn MixerConfig>>) -> Result<Import> {
    let (config, mut notes) = (decoder.config(), Vec::new());
    refuse(config, decoder.d_model);
    let eps = config.number("norm_eps").unwrap_or(1e-5);
    let theta = config.number("theta").unwrap_or(1e6);
    let attention = decoder.checked(AttentionConfig {
        qk_norm: Some(QkNorm::new(eps)),
        ..decoder.attention(Some(rope(config, decoder.head_dim, theta, 1.0)))
    });
    let conv = decoder.checked(ShortConvConfig {
        d_conv: config.size_or("conv_L_cache", 3),
        bias: config.flag_or("conv_bias", false),
    });
    let attends = attends(config, decoder.n_layer, &mut notes);
    let names = decoder.hybrid_names(names(&attends), &attends, "conv", 1);
    let layers: Vec<Layer> = attends
        .into_iter()
        .zip(channel)
        .map(|(attends, channel)| {
            let (block, mixer) = if attends { ("attn", &attention) } else { ("conv", &conv) };
            layer(block, vec![residual(mixer.clone(), "mixer", "norm"), residual(channel, "mlp", "norm2")])
        })
        .collect();
    let family = Family {
        tied: (config.flag("tie_embedding").or_else(|| config.flag("tie_word_embeddings")), true),
        ..Family::llama(config, family, eps)
    };
    config.ignore(&NO_EFFECT);
    decoder.import(family, layers, names, notes)
}

/// Keys of the first files at other values than the only one that any program computes with.
fn refuse(config: &Fields, d_model: usize) {
    for key in ["block_dim", "conv_dim", "conv_dim_out"] {
        if let Some(other) = config.size_from(key, 1).filter(|&width| config.ok() && width != d_model) {
            config.problem(key, format!("expected hidden_size = {d_model}, found {other}"));
        }
    }
    for key in ["block_use_swiglu", "use_pos_enc"] {
        if !config.flag_or(key, true) {
            config.problem(key, "expected true (other models are not supported), found false");
        }
    }
}

/// Which layers attend: by `layer_types`, else those of `full_attn_idxs`, else all.
fn attends(config: &Fields, n_layer: usize, notes: &mut Vec<String>) -> Vec<bool> {
    let kinds = [("conv", false), ("full_attention", true)];
    layout::types(config, "layer_types", n_layer, &kinds, notes).unwrap_or_else(|| {
        let said = config.get("full_attn_idxs").is_some();
        let chosen = layout::indices(config, "full_attn_idxs", n_layer, notes);
        (0..n_layer).map(|i| !said || chosen.contains(&i)).collect()
    })
}

fn mlp(d_intermediate: usize) -> MlpConfig {
    MlpConfig {
        d_intermediate: Some(d_intermediate),
        fused: false,
        activation: Activation::Silu,
        ..MlpConfig::default()
    }
}

/// The width of the MLPs: `block_ff_dim`, or `intermediate_size`; two thirds of it, times a factor, rounded up, unless the
/// configuration says that it is meant as it stands.
fn adjusted(config: &Fields) -> usize {
    let width = config.size_or("intermediate_size", 12_288);
    let width = config.size_or("block_ff_dim", width);
    let multiple = config.size_or("block_multiple_of", 256);
    let factor = config.number("block_ffn_dim_multiplier").unwrap_or(1.0);
    if factor <= 0.0 {
        config.problem("block_ffn_dim_multiplier", format!("expected a number > 0, found {factor}"));
    }
    if !config.flag_or("block_auto_adjust_ff_dim", true) {
        return width;
    }
    let scaled = (factor * (2 * width / 3) as f64) as usize;
    scaled.min(MAX_WIDTH).next_multiple_of(multiple)
}

fn names(attends: &[bool]) -> Names {
    let mut names = Names::new();
    for (i, _) in attends.iter().enumerate().filter(|(_, attends)| **attends) {
        for (from, to) in [("q_layernorm", "q_norm"), ("k_layernorm", "k_norm"), ("out_proj", "out_proj")] {
            let to = format!("backbone.layers.{i}.mixer.{to}");
            names = names.rename(format!("model.layers.{i}.self_attn.{from}"), to);
        }
    }
    for (from, to) in [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")] {
        names = names
            .rename(format!("model.layers.*.feed_forward.{from}"), format!("backbone.layers.*.mlp.{to}"))
            .rename(
                format!("model.layers.*.feed_forward.experts.*.{from}"),
                format!("backbone.layers.*.mlp.experts.*.{to}"),
            );
    }
    names
        .rename("model.embed_tokens", "backbone.embedding")
        .rename("model.embedding_norm", "backbone.norm_f")
        .rename("model.layers.*.operator_norm", "backbone.layers.*.norm")
        .rename("model.layers.*.ffn_norm", "backbone.layers.*.norm2")
        .rename(
            "model.layers.*.feed_forward.expert_bias",
            "backbone.layers.*.mlp.gate.e_score_correction_bias",
        )
        .rename("model.layers.*.feed_forward.gate", "backbone.layers.*.mlp.gate")
}
