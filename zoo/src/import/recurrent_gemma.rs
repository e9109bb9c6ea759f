//! transformers' `RecurrentGemmaForCausalLM` (Griffin): RG-LRU blocks and local attention, each with a gated MLP.
//!
//! `intermediate_size` is the width of gate and value together, and the embedding's factor is √d rounded to bf16. Norm
//! weights are stored less one. A query sees `attention_window_size` tokens, itself included.

use std::sync::Arc;

use semisep_attention::AttentionConfig;
use semisep_core::{Activation, MixerConfig, MlpConfig, NormConfig, NormKind};
use semisep_griffin::RgLruConfig;
use semisep_models::normal::{Architecture, ModelConfig};

use super::{
    Fields, Folder, Import, Importer, MAX_LAYERS, Names, Piece, is_type, layer, layout, residual, rope,
};
use crate::Result;

/// `model_type` "recurrent_gemma".
pub(super) const RECURRENT_GEMMA: Importer = Importer {
    family: "recurrent_gemma",
    detects: |config| is_type(config, "recurrent_gemma", "RecurrentGemmaForCausalLM"),
    import,
};

const EMBEDDING: &str = "model.embed_tokens.weight";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Recurrent,
    Attention,
}

fn import(folder: &Folder<'_>) -> Result<Import> {
    let config = &folder.config;
    let (d_model, n_layer) = (config.size("hidden_size"), config.size_up_to("num_hidden_layers", MAX_LAYERS));
    let kinds = [("recurrent", Kind::Recurrent), ("attention", Kind::Attention)];
    let kinds = layout::cycled(config, "block_types", n_layer, &kinds);
    let usual = [Kind::Recurrent, Kind::Recurrent, Kind::Attention];
    let kinds = kinds.unwrap_or_else(|| usual.into_iter().cycle().take(n_layer).collect());
    let heads = config.size_or("num_attention_heads", 10);
    let act = activation(config);
    let (recurrent, attention, mlp) =
        (recurrent(config, heads, act), attention(config, d_model, heads), mlp(config, d_model, act));
    if config.ok() {
        for mixer in [&recurrent, &attention, &mlp] {
            config.issues(mixer.check(d_model));
        }
    }
    let (tie_embeddings, note) = folder.tied(config.flag("tie_word_embeddings"), true, EMBEDDING);
    let model = ModelConfig {
        tie_embeddings,
        pad_vocab_size_multiple: 1,
        norm: NormConfig { kind: NormKind::Rms, eps: config.number("rms_norm_eps").unwrap_or(1e-6) },
        embedding_multiplier: bf16((d_model as f64).sqrt()),
        logits_soft_cap: soft_cap(config),
        ..ModelConfig::new(d_model, config.size("vocab_size"))
    };
    folder.check_embedding(EMBEDDING, model.vocab_size, ("hidden_size", d_model));
    let layers = kinds.into_iter().map(|kind| {
        let (block, mixer) = match kind {
            Kind::Recurrent => ("recurrent", &recurrent),
            Kind::Attention => ("attention", &attention),
        };
        layer(block, vec![residual(mixer.clone(), "mixer", "norm"), residual(mlp.clone(), "mlp", "norm2")])
    });
    let head_dim = config.size_or("head_dim", (d_model / heads).max(1));
    let kv_heads = config.size_or("num_key_value_heads", heads);
    let names = names((heads.saturating_mul(head_dim), kv_heads.saturating_mul(head_dim)));
    Ok(Import {
        family: RECURRENT_GEMMA.family,
        architecture: Architecture { name: folder.name(), model, layers: layers.collect() },
        names: if tie_embeddings { names.tie("lm_head.weight", "backbone.embedding.weight") } else { names },
        notes: note.into_iter().collect(),
    })
}

/// The nearest bf16: the upper half of the f32, ties to even.
fn bf16(value: f64) -> f64 {
    let bits = (value as f32).to_bits();
    f64::from(f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000))
}

fn activation(config: &Fields) -> Activation {
    match config.text("hidden_activation").unwrap_or("gelu_pytorch_tanh") {
        "gelu_pytorch_tanh" | "gelu_new" => Activation::GeluTanh,
        "gelu" => Activation::Gelu,
        "silu" => Activation::Silu,
        "relu" => Activation::Relu,
        other => {
            let message =
                format!("expected \"gelu_pytorch_tanh\", \"gelu\", \"silu\" or \"relu\", found {other:?}");
            config.problem("hidden_activation", message);
            Activation::GeluTanh
        }
    }
}

fn soft_cap(config: &Fields) -> Option<f64> {
    let key = "logits_soft_cap";
    let cap = if config.is_null(key) { None } else { Some(config.number(key).unwrap_or(30.0)) };
    if let Some(found) = cap.filter(|cap| *cap <= 0.0) {
        config.problem(key, format!("expected a number > 0, or null, found {found}"));
    }
    cap
}

fn recurrent(config: &Fields, heads: usize, activation: Activation) -> Arc<dyn MixerConfig> {
    let default = RgLruConfig::default();
    Arc::new(RgLruConfig {
        lru_width: config.size_from("lru_width", 1),
        num_blocks: heads,
        conv1d_width: config.size_or("conv1d_width", default.conv1d_width),
        activation,
        ..default
    })
}

fn attention(config: &Fields, d_model: usize, heads: usize) -> Arc<dyn MixerConfig> {
    let head_dim = config.size_or("head_dim", (d_model / heads).max(1));
    Arc::new(AttentionConfig {
        n_kv_heads: Some(config.size_or("num_key_value_heads", heads)),
        head_dim: Some(head_dim),
        rope: Some(rope::rope(config, head_dim, 10_000.0, 0.5)),
        window: Some(config.size_or("attention_window_size", 2048)),
        qkv_bias: config.flag_or("attention_bias", false),
        out_bias: true,
        ..AttentionConfig::new(heads)
    })
}

fn mlp(config: &Fields, d_model: usize, activation: Activation) -> Arc<dyn MixerConfig> {
    let both = config.size_or("intermediate_size", 3 * d_model);
    Arc::new(MlpConfig {
        d_intermediate: Some((both / 2).max(1)),
        fused: false,
        activation,
        bias: true,
        ..MlpConfig::default()
    })
}

/// Queries, keys and values of so many rows each.
fn names((q, k): (usize, usize)) -> Names {
    let part =
        |name: &str, rows| Piece::of(format!("model.layers.*.temporal_block.{name}")).split(0, &[rows]);
    Names::new()
        .rename("model.embed_tokens", "backbone.embedding")
        .plus("model.final_norm", "backbone.norm_f", 1.0)
        .plus("model.layers.*.temporal_pre_norm", "backbone.layers.*.norm", 1.0)
        .plus("model.layers.*.channel_pre_norm", "backbone.layers.*.norm2", 1.0)
        .join("backbone.layers.*.mixer.in_proj", [part("q_proj", q), part("k_proj", k), part("v_proj", k)])
        .rename("model.layers.*.temporal_block.o_proj", "backbone.layers.*.mixer.out_proj")
        .rename("model.layers.*.temporal_block", "backbone.layers.*.mixer")
        .rename("model.layers.*.mlp_block", "backbone.layers.*.mlp")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedding_is_scaled_in_bf16() {
        assert_eq!(bf16(2560f64.sqrt()), 50.5);
        assert_eq!(bf16(4096f64.sqrt()), 64.0);
        assert_eq!(bf16(48f64.sqrt()), 6.9375);
    }
}
