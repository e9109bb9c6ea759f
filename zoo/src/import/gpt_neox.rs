//! GPT-NeoX (EleutherAI's Pythia and GPT-NeoX-20B): layer norms, biases, rotary positions on a part of each head, attention
//! and MLP in parallel or in series.
//!
//! The rows of `query_key_value` are ordered by head, then query, key and value. Old files hold masks and frequencies, which
//! take no part.

use semisep_attention::AttentionConfig;
use semisep_core::{Activation, MlpConfig, NormConfig, NormKind};
use semisep_models::normal::{Merge, Stage};

use super::activation::activation;
use super::decoder::{Decoder, Family};
use super::rope::rope;
use super::{Folder, Import, Importer, Names, Piece, is_type, layer, residual};
use crate::Result;

/// `model_type` "gpt_neox".
pub(super) const GPT_NEOX: Importer = Importer {
    family: "gpt_neox",
    detects: |config| is_type(config, "gpt_neox", "GPTNeoXForCausalLM"),
    import,
};

fn import(folder: &Folder<'_>) -> Result<Import> {
    let (config, decoder) = (&folder.config, Decoder::new(folder));
    config.ignore(&["attention_probs_dropout_prob", "hidden_dropout_prob"]);
    let (theta, partial) = (config.number("rotary_emb_base"), config.number("rotary_pct"));
    let rope = rope(config, decoder.head_dim, theta.unwrap_or(10_000.0), partial.unwrap_or(0.25));
    if let Some(part) = partial.filter(|part| !(*part > 0.0 && *part <= 1.0)) {
        config.problem("rotary_pct", format!("expected a number in (0, 1], found {part}"));
    }
    let bias = config.flag_or("attention_bias", true);
    let attention =
        decoder.checked(AttentionConfig { qkv_bias: bias, out_bias: bias, ..decoder.attention(Some(rope)) });
    let mlp = decoder.checked(MlpConfig {
        d_intermediate: Some(config.size("intermediate_size")),
        gated: false,
        activation: activation(config, "hidden_act", Activation::Gelu),
        bias: true,
        ..MlpConfig::default()
    });
    let stages = [residual(attention, "mixer", "norm"), residual(mlp, "mlp", "norm2")];
    let stages = if config.flag_or("use_parallel_residual", true) {
        let branches = stages.into_iter().flat_map(|stage| stage.branches).collect();
        vec![Stage { branches, merge: Merge::Sum }]
    } else {
        stages.into()
    };
    let layers = (0..decoder.n_layer).map(|_| layer("attn", stages.clone())).collect();
    let family = Family {
        name: GPT_NEOX.family,
        norm: NormConfig { kind: NormKind::Layer, eps: config.number("layer_norm_eps").unwrap_or(1e-5) },
        embedding: "gpt_neox.embed_in.weight",
        head: "embed_out.weight",
        tied: (config.flag("tie_word_embeddings"), false),
    };
    let names = names(&decoder);
    decoder.import(family, layers, names, Vec::new())
}

fn names(decoder: &Decoder<'_>) -> Names {
    let part = |i| {
        Piece::of("gpt_neox.layers.*.attention.query_key_value")
            .split(0, &[decoder.heads, 3, decoder.head_dim])
            .take(1, i, 1)
    };
    Names::new()
        .rename("gpt_neox.embed_in", "backbone.embedding")
        .rename("embed_out", "lm_head")
        .rename("gpt_neox.final_layer_norm", "backbone.norm_f")
        .rename("gpt_neox.layers.*.input_layernorm", "backbone.layers.*.norm")
        .rename("gpt_neox.layers.*.post_attention_layernorm", "backbone.layers.*.norm2")
        .rename("gpt_neox.layers.*.attention.dense", "backbone.layers.*.mixer.out_proj")
        .rename("gpt_neox.layers.*.mlp.dense_h_to_4h", "backbone.layers.*.mlp.fc1")
        .rename("gpt_neox.layers.*.mlp.dense_4h_to_h", "backbone.layers.*.mlp.fc2")
        .join("backbone.layers.*.mixer.in_proj", [part(0), part(1), part(2)])
        .ignore("gpt_neox.layers.*.attention.bias")
        .ignore("gpt_neox.layers.*.attention.masked_bias")
        .ignore("gpt_neox.layers.*.attention.rotary_emb.inv_freq")
}
