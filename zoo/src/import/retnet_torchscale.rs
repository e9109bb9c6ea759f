//! torchscale's `RetNetDecoder`: its arguments as `config.json`, its tensors, below `decoder.` in fairseq's files.

use std::sync::Arc;

use semisep_core::{Activation, MixerConfig, MlpConfig, NormConfig, NormKind};
use semisep_models::normal::{Architecture, ModelConfig};
use semisep_retnet::{RetNetConfig, Rotation};

use super::activation::activation;
use super::{Fields, Folder, Import, Importer, MAX_LAYERS, Names, layer, residual};
use crate::Result;

/// Told by `decoder_retention_heads`.
pub(super) const RETNET: Importer = Importer {
    family: "retnet-torchscale",
    detects: |config| config.get("model_type").is_none() && config.get("decoder_retention_heads").is_some(),
    import,
};

/// Options that would make another model, at their only supported value.
const OFF: [&str; 3] = ["deepnorm", "layernorm_embedding", "multiway"];

fn import(folder: &Folder<'_>) -> Result<Import> {
    let config = &folder.config;
    let d_model = config.size("decoder_embed_dim");
    let n_layer = config.size_up_to("decoder_layers", MAX_LAYERS);
    let eps = config.number("layernorm_eps").unwrap_or(1e-6);
    unsupported(config);
    let mixer: Arc<dyn MixerConfig> = Arc::new(mixer(config, d_model, eps));
    let mlp: Arc<dyn MixerConfig> = Arc::new(MlpConfig {
        d_intermediate: Some(config.size("decoder_ffn_embed_dim")),
        fused: false,
        activation: activation(config, "activation_fn", Activation::Gelu),
        ..MlpConfig::default()
    });
    if config.ok() {
        config.issues(mixer.check(d_model));
        config.issues(mlp.check(d_model));
    }
    let tie_embeddings = config.flag_or("share_decoder_input_output_embed", false);
    let scaled = !config.flag_or("no_scale_embedding", true);
    let model = ModelConfig {
        d_model,
        vocab_size: config.size("vocab_size"),
        pad_vocab_size_multiple: 1,
        tie_embeddings,
        norm: NormConfig { kind: NormKind::Rms, eps },
        residual_in_fp32: true,
        embedding_multiplier: if scaled { (d_model as f64).sqrt() } else { 1.0 },
        ..ModelConfig::new(d_model, 1)
    };
    let prefixed = folder.checkpoint.get("decoder.embed_tokens.weight").is_some();
    let embedding = if prefixed { "decoder.embed_tokens.weight" } else { "embed_tokens.weight" };
    folder.check_embedding(embedding, model.vocab_size, ("decoder_embed_dim", d_model));
    let stages = || vec![residual(mixer.clone(), "mixer", "norm"), residual(mlp.clone(), "mlp", "norm2")];
    let layers = (0..n_layer).map(|_| layer("retention", stages())).collect();
    let names = names(prefixed);
    Ok(Import {
        family: RETNET.family,
        architecture: Architecture { name: folder.name(), model, layers },
        names: if tie_embeddings { names.tie("lm_head.weight", "backbone.embedding.weight") } else { names },
        notes: Vec::new(),
    })
}

fn unsupported(config: &Fields) {
    for key in OFF {
        if config.flag_or(key, false) {
            config.problem(key, "expected false (the other is not supported), found true");
        }
    }
    if !config.flag_or("decoder_normalize_before", true) {
        config.problem(
            "decoder_normalize_before",
            "expected true (norms after are not supported), found false",
        );
    }
    if let Some(experts) = config.size_from("moe_freq", 0).filter(|&freq| freq > 0) {
        config.problem("moe_freq", format!("expected 0 (experts are not supported), found {experts}"));
    }
}

fn mixer(config: &Fields, d_model: usize, eps: f64) -> RetNetConfig {
    let values = config.size("decoder_value_embed_dim");
    RetNetConfig {
        num_heads: config.size("decoder_retention_heads"),
        expand_v: values as f64 / d_model as f64,
        rotation: Rotation::Interleaved,
        decay_norm: true,
        elementwise_affine: false,
        norm_eps: eps,
        ..RetNetConfig::default()
    }
}

/// The activated one of the MLP's maps is `fc1`, the one beside it `gate`. Tables of positions and decays are computed.
fn names(prefixed: bool) -> Names {
    if prefixed {
        return Names::new()
            .rename("decoder.embed_tokens", "backbone.embedding")
            .rename("decoder.layers.*.retention_layer_norm", "backbone.layers.*.norm")
            .rename("decoder.layers.*.final_layer_norm", "backbone.layers.*.norm2")
            .rename("decoder.layers.*.retention.out_proj", "backbone.layers.*.mixer.o_proj")
            .rename("decoder.layers.*.retention", "backbone.layers.*.mixer")
            .rename("decoder.layers.*.ffn.fc1", "backbone.layers.*.mlp.gate_proj")
            .rename("decoder.layers.*.ffn.gate", "backbone.layers.*.mlp.up_proj")
            .rename("decoder.layers.*.ffn.fc2", "backbone.layers.*.mlp.down_proj")
            .rename("decoder.layer_norm", "backbone.norm_f")
            .rename("decoder.output_projection", "lm_head")
            .ignore("decoder.retnet_rel_pos");
    }
    Names::new()
        .rename("embed_tokens", "backbone.embedding")
        .rename("layers.*.retention_layer_norm", "backbone.layers.*.norm")
        .rename("layers.*.final_layer_norm", "backbone.layers.*.norm2")
        .rename("layers.*.retention.out_proj", "backbone.layers.*.mixer.o_proj")
        .rename("layers.*.retention", "backbone.layers.*.mixer")
        .rename("layers.*.ffn.fc1", "backbone.layers.*.mlp.gate_proj")
        .rename("layers.*.ffn.gate", "backbone.layers.*.mlp.up_proj")
        .rename("layers.*.ffn.fc2", "backbone.layers.*.mlp.down_proj")
        .rename("layer_norm", "backbone.norm_f")
        .rename("output_projection", "lm_head")
        .ignore("retnet_rel_pos")
}
