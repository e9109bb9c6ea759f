//! Qwen's mixtures of experts: Qwen3-MoE, and Qwen3-Next, which has gated DeltaNet in most layers, attention with gated
//! outputs in the others, and an expert that every token passes through.
//!
//! Qwen3-Next's norms hold what is added to one, but for the norm inside of the gated DeltaNet. The layers that predict
//! several tokens at once (`mtp`) take no part.

use std::sync::Arc;

use semisep_attention::{AttentionConfig, QkNorm};
use semisep_core::MixerConfig;
use semisep_deltanet::GatedDeltaNetConfig;
use semisep_models::normal::Layer;
use semisep_moe::MoeConfig;

use super::activation::activation;
use super::decoder::{Decoder, Family, check_divides, names};
use super::rope::rope;
use super::{Folder, Import, Importer, Names, is_type, layer, layout, residual};
use crate::Result;

/// `model_type` "qwen3_moe".
pub(super) const QWEN3_MOE: Importer = Importer {
    family: "qwen3_moe",
    detects: |config| is_type(config, "qwen3_moe", "Qwen3MoeForCausalLM"),
    import: qwen3_moe,
};

/// `model_type` "qwen3_next".
pub(super) const QWEN3_NEXT: Importer = Importer {
    family: "qwen3_next",
    detects: |config| is_type(config, "qwen3_next", "Qwen3NextForCausalLM"),
    import: qwen3_next,
};

fn qwen3_moe(folder: &Folder<'_>) -> Result<Import> {
    let (config, decoder) = (&folder.config, Decoder::new(folder));
    config.ignore(&["max_window_layers"]);
    let windowed = config.flag_or("use_sliding_window", false);
    // All layers, unlike Qwen2's and Qwen3's.
    let window =
        config.size_from("sliding_window", 1).or((!config.is_null("sliding_window")).then_some(4096));
    let window = window.filter(|_| windowed);
    let eps = config.number("rms_norm_eps").unwrap_or(1e-6);
    let bias = config.flag_or("attention_bias", false);
    let attention = decoder.checked(AttentionConfig {
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: Some(QkNorm::new(eps)),
        window,
        ..decoder.attention(Some(decoder.rope()))
    });
    let experts = MoeConfig {
        // transformers 5 writes the other name.
        num_experts: config.size_or(config.first_of(&["num_experts", "num_local_experts"]), 128),
        num_experts_per_tok: config.size_or("num_experts_per_tok", 8),
        d_intermediate: config.size_or("moe_intermediate_size", 768),
        norm_topk_prob: config.flag_or("norm_topk_prob", false),
        ..MoeConfig::default()
    };
    let mut notes = Vec::new();
    let channel = channel_mixers(&decoder, experts, &mut notes);
    let layers = channel.into_iter().map(|channel| {
        layer("attn", vec![residual(attention.clone(), "mixer", "norm"), residual(channel, "mlp", "norm2")])
    });
    let layers = layers.collect();
    let names = decoder.attention_names(names(), "*", 1);
    decoder.import(Family::llama(config, QWEN3_MOE.family, eps), layers, names, notes)
}

fn qwen3_next(folder: &Folder<'_>) -> Result<Import> {
    let (config, decoder) = (&folder.config, Decoder::new(folder));
    config.ignore(&["max_window_layers", "sliding_window", "use_sliding_window"]);
    let mut notes = Vec::new();
    let eps = config.number("rms_norm_eps").unwrap_or(1e-6);
    let bias = config.flag_or("attention_bias", false);
    let attention = decoder.checked(AttentionConfig {
        qkv_bias: bias,
        out_bias: bias,
        output_gate: true,
        qk_norm: Some(QkNorm { unit_offset: true, ..QkNorm::new(eps) }),
        ..decoder.attention(Some(rope(config, decoder.head_dim, 10_000.0, 0.25)))
    });
    let key_heads = config.size_or("linear_num_key_heads", 16);
    let value_heads = config.size_or("linear_num_value_heads", 32);
    check_divides(config, ("linear_num_key_heads", key_heads), ("linear_num_value_heads", value_heads));
    decoder.silu();
    let linear = decoder.checked(GatedDeltaNetConfig {
        num_heads: key_heads,
        num_v_heads: Some(value_heads),
        head_dim: config.size_or("linear_key_head_dim", 128),
        head_v_dim: Some(config.size_or("linear_value_head_dim", 128)),
        conv_size: config.size_or("linear_conv_kernel_dim", 4),
        fused_proj: true,
        norm_eps: eps,
        ..GatedDeltaNetConfig::default()
    });
    let experts = MoeConfig {
        num_experts: config.size_or("num_experts", 512),
        num_experts_per_tok: config.size_or("num_experts_per_tok", 10),
        d_intermediate: config.size_or("moe_intermediate_size", 512),
        norm_topk_prob: config.flag_or("norm_topk_prob", true),
        shared_d_intermediate: Some(config.size_or("shared_expert_intermediate_size", 512)),
        shared_gate: true,
        ..MoeConfig::default()
    };
    let channel = channel_mixers(&decoder, experts, &mut notes);
    let kinds = [("full_attention", true), ("linear_attention", false)];
    let interval = config.size_or("full_attention_interval", 4);
    let attends = layout::types(config, "layer_types", decoder.n_layer, &kinds, &mut notes)
        .unwrap_or_else(|| (1..=decoder.n_layer).map(|i| i.is_multiple_of(interval)).collect());
    let names = decoder.hybrid_names(next_names(), &attends, "linear_attn", 2);
    let layers: Vec<Layer> = attends
        .into_iter()
        .zip(channel)
        .map(|(attends, channel)| {
            let (block, mixer) = if attends { ("attn", &attention) } else { ("linear", &linear) };
            layer(block, vec![residual(mixer.clone(), "mixer", "norm"), residual(channel, "mlp", "norm2")])
        })
        .collect();
    decoder.import(Family::llama(config, QWEN3_NEXT.family, eps), layers, names, notes)
}

/// The experts, or an MLP in the layers of `mlp_only_layers` and in those that `decoder_sparse_step` passes over.
fn channel_mixers(
    decoder: &Decoder<'_>,
    experts: MoeConfig,
    notes: &mut Vec<String>,
) -> Vec<Arc<dyn MixerConfig>> {
    let config = decoder.config();
    let step = config.size_or("decoder_sparse_step", 1);
    let plain = layout::indices(config, "mlp_only_layers", decoder.n_layer, notes);
    let sparse: Vec<bool> =
        (0..decoder.n_layer).map(|i| (i + 1).is_multiple_of(step) && !plain.contains(&i)).collect();
    let activation = activation(config, "hidden_act", Default::default());
    config.ignore(&["intermediate_size"]);
    let mlp = sparse.contains(&false).then(|| decoder.checked(decoder.mlp("intermediate_size")));
    let experts = decoder.checked(MoeConfig { fused: false, activation, ..experts });
    let chosen = |sparse| if sparse { &experts } else { mlp.as_ref().unwrap_or(&experts) };
    sparse.into_iter().map(|sparse| chosen(sparse).clone()).collect()
}

fn next_names() -> Names {
    names()
        .plus("model.layers.*.input_layernorm", "backbone.layers.*.norm", 1.0)
        .plus("model.layers.*.post_attention_layernorm", "backbone.layers.*.norm2", 1.0)
        .plus("model.norm", "backbone.norm_f", 1.0)
        .ignore("mtp")
}
