//! StripedHyena (togethercomputer/stripedhyena, Evo): pole-residue convolutions and attention, each with a gated MLP.
//!
//! The rotary frequencies on disk are those of the base, rounded to bf16 in public files: they are computed anew.

use std::collections::BTreeSet;
use std::sync::Arc;

use semisep_attention::AttentionConfig;
use semisep_core::{Activation, MixerConfig, MlpConfig, NormConfig, NormKind, RotaryConfig};
use semisep_hyena::StripedHyenaConfig;
use semisep_models::normal::{Architecture, ModelConfig};

use super::{Fields, Folder, Import, Importer, MAX_LAYERS, Names, is_type, layer, residual};
use crate::Result;

/// `model_type` "stripedhyena".
pub(super) const STRIPED_HYENA: Importer = Importer {
    family: "stripedhyena",
    detects: |config| is_type(config, "stripedhyena", "StripedHyenaModelForCausalLM"),
    import,
};

const EMBEDDING: &str = "backbone.embedding_layer.weight";

fn import(folder: &Folder<'_>) -> Result<Import> {
    let config = &folder.config;
    let (d_model, n_layer) = (config.size("hidden_size"), config.size_up_to("num_layers", MAX_LAYERS));
    let attention_layers = config.indices("attn_layer_idxs", MAX_LAYERS);
    let hyena_layers = config.indices("hyena_layer_idxs", MAX_LAYERS);
    let mut notes = check_layers(config, n_layer, &attention_layers, &hyena_layers);
    if !config.flag_or("final_norm", true) {
        config.problem(
            "final_norm",
            "expected true (models without a final norm are not supported), found false",
        );
    }
    let (attention, convolution, mlp) =
        (attention(config), convolution(config, d_model), mlp(config, d_model));
    if config.ok() {
        config.issues(convolution.check(d_model));
        config.issues(attention.check(d_model));
        config.issues(mlp.check(d_model));
    }
    let tie_embeddings = config.flag_or("tie_embeddings", false);
    let stored = folder.checkpoint.get("backbone.unembed.weight").is_some();
    let stored = stored || folder.checkpoint.is_empty() && !tie_embeddings;
    if !stored && !tie_embeddings {
        notes.push("backbone.unembed.weight is not there: the head is the embedding".into());
    }
    let tie_embeddings = tie_embeddings || !stored;
    let model = ModelConfig {
        pad_vocab_size_multiple: 1,
        tie_embeddings,
        norm: NormConfig { kind: NormKind::RmsOutside, eps: config.number("eps").unwrap_or(1e-5) },
        ..ModelConfig::new(d_model, config.size("vocab_size"))
    };
    folder.check_embedding(EMBEDDING, model.vocab_size, ("hidden_size", d_model));
    let layers = (0..n_layer).map(|i| {
        let (block, mixer) =
            if attention_layers.contains(&i) { ("attn", &attention) } else { ("hyena", &convolution) };
        layer(block, vec![residual(mixer.clone(), "mixer", "norm"), residual(mlp.clone(), "mlp", "norm2")])
    });
    let architecture = Architecture { name: folder.name(), model, layers: layers.collect() };
    let names = names();
    Ok(Import {
        family: STRIPED_HYENA.family,
        architecture,
        names: if tie_embeddings { names.tie("lm_head.weight", "backbone.embedding.weight") } else { names },
        notes,
    })
}

/// Every layer is of one kind. Public configurations name a layer past the last (32 of 32): a note, no problem.
fn check_layers(
    config: &Fields,
    n_layer: usize,
    attention: &BTreeSet<usize>,
    hyena: &BTreeSet<usize>,
) -> Vec<String> {
    if !config.ok() {
        return Vec::new();
    }
    if let Some(both) = attention.intersection(hyena).next() {
        config.problem("hyena_layer_idxs", format!("layer {both} is among attn_layer_idxs as well"));
    }
    if let Some(i) = (0..n_layer).find(|i| !attention.contains(i) && !hyena.contains(i)) {
        config.problem(
            "hyena_layer_idxs",
            format!("layer {i} of {n_layer} is neither here nor in attn_layer_idxs"),
        );
    }
    let past = attention.union(hyena).filter(|&&i| i >= n_layer);
    past.map(|i| format!("the configuration speaks of layer {i}, and has {n_layer}, from 0: passed over"))
        .collect()
}

fn attention(config: &Fields) -> Arc<dyn MixerConfig> {
    if config.flag_or("use_interpolated_rotary_pos_emb", false) {
        let message = "expected false (interpolated rotary positions are not supported), found true";
        config.problem("use_interpolated_rotary_pos_emb", message);
    }
    if config.flag_or("smeared_gqa", false) {
        config.problem("smeared_gqa", "expected false (not supported), found true");
    }
    let (heads, groups) = (config.size("num_attention_heads"), config.size_or("proj_groups", 1));
    if config.ok() && !heads.is_multiple_of(groups) {
        config.problem("proj_groups", format!("{groups} does not divide num_attention_heads = {heads}"));
    }
    Arc::new(AttentionConfig {
        n_kv_heads: Some((heads / groups).max(1)),
        rope: Some(RotaryConfig {
            theta: config.number("rotary_emb_base").unwrap_or(10_000.0),
            ..RotaryConfig::default()
        }),
        qkv_bias: config.flag_or("qkv_proj_bias", true),
        out_bias: config.flag_or("mha_out_proj_bias", true),
        ..AttentionConfig::new(heads)
    })
}

fn convolution(config: &Fields, d_model: usize) -> Arc<dyn MixerConfig> {
    let default = StripedHyenaConfig::default();
    Arc::new(StripedHyenaConfig {
        state_size: config.size("state_size"),
        // Without a word of it, one filter serves all channels.
        hyena_filter_groups: config.size_or("hyena_filter_groups", d_model),
        short_filter_length: config.size_or("short_filter_length", default.short_filter_length),
        short_filter_bias: config.flag_or("short_filter_bias", true),
        column_split_hyena: config.flag_or("column_split_hyena", true),
        num_attention_heads: config.size("num_attention_heads"),
    })
}

/// `l3 (act(l1 x) ⊙ l2 x)`, two thirds of 4 d wide unless it is said.
fn mlp(config: &Fields, d_model: usize) -> Arc<dyn MixerConfig> {
    let multiple =
        config.size_or("inner_size_multiple_of", 64).saturating_mul(config.size_or("model_parallel_size", 1));
    let default = (d_model * 8 / 3).next_multiple_of(multiple.max(1));
    let activation = match config.text("mlp_activation").unwrap_or("silu") {
        "gelu" => Activation::Gelu,
        "silu" => Activation::Silu,
        other => {
            config.problem("mlp_activation", format!("expected \"silu\" or \"gelu\", found {other:?}"));
            Activation::Silu
        }
    };
    Arc::new(MlpConfig {
        d_intermediate: Some(config.size_or("inner_mlp_size", default)),
        fused: false,
        activation,
        ..MlpConfig::default()
    })
}

fn names() -> Names {
    Names::new()
        .rename("backbone.embedding_layer", "backbone.embedding")
        .rename("backbone.unembed", "lm_head")
        .rename("backbone.norm.scale", "backbone.norm_f.weight")
        .rename("backbone.blocks.*.pre_norm.scale", "backbone.layers.*.norm.weight")
        .rename("backbone.blocks.*.post_norm.scale", "backbone.layers.*.norm2.weight")
        .rename("backbone.blocks.*.filter", "backbone.layers.*.mixer.filter")
        .rename("backbone.blocks.*.projections", "backbone.layers.*.mixer.projections")
        .rename("backbone.blocks.*.out_filter_dense", "backbone.layers.*.mixer.out_filter_dense")
        .rename("backbone.blocks.*.inner_mha_cls.Wqkv", "backbone.layers.*.mixer.in_proj")
        .rename("backbone.blocks.*.inner_mha_cls", "backbone.layers.*.mixer")
        .rename("backbone.blocks.*.mlp.l1", "backbone.layers.*.mlp.gate_proj")
        .rename("backbone.blocks.*.mlp.l2", "backbone.layers.*.mlp.up_proj")
        .rename("backbone.blocks.*.mlp.l3", "backbone.layers.*.mlp.down_proj")
        .ignore("backbone.blocks.*.inner_mha_cls.rotary_emb.inv_freq")
        .ignore("backbone.blocks.*.filter.t")
}
