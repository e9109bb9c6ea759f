//! transformers' `GraniteMoeHybridForCausalLM` (Granite 4): Mamba-2 layers and a few of attention, after each an MLP that all
//! tokens share, beside experts or alone.
//!
//! Every block's output is scaled before it joins the stream, scores by `attention_multiplier` itself, and logits are
//! divided by `logits_scaling`. Experts are stored as stacks, each with its gate before its value.

use std::sync::Arc;

use semisep_core::{Activation, MixerConfig, MlpConfig};
use semisep_moe::MoeConfig;

use super::activation::activation;
use super::hybrid::{Hybrid, Whole, attention_names, branch, stage};
use super::rope::rope;
use super::{Folder, Import, Importer, MAX_LAYERS, Names, Piece, is_type, layer, layout};
use crate::Result;

/// `model_type` "granitemoehybrid".
pub(super) const GRANITE: Importer = Importer {
    family: "granitemoehybrid",
    detects: |config| is_type(config, "granitemoehybrid", "GraniteMoeHybridForCausalLM"),
    import,
};

const KINDS: [(&str, bool); 4] =
    [("mamba", false), ("linear_attention", false), ("attention", true), ("full_attention", true)];

fn import(folder: &Folder<'_>) -> Result<Import> {
    let mut hybrid = Hybrid::new(folder);
    let config = &folder.config;
    let n_layer = config.size_up_to("num_hidden_layers", MAX_LAYERS);
    let eps = hybrid.eps("rms_norm_eps", 1e-6);
    let mut listed = |key| layout::types(config, key, n_layer, &KINDS, &mut hybrid.notes);
    let kinds = listed("layer_types").or_else(|| listed("layers_block_type"));
    let kinds = kinds.unwrap_or_else(|| vec![false; n_layer]);
    let mut attention = hybrid.attention(|head_dim| {
        (config.text("position_embedding_type") == Some("rope")).then(|| rope(config, head_dim, 1e4, 1.0))
    });
    attention.scale = Some(hybrid.factor("attention_multiplier"));
    let mamba = hybrid.mamba2(None, eps);
    let names = attention_names(
        Names::new(),
        &attention,
        hybrid.d_model,
        kinds.iter().enumerate().filter(|(_, is_attention)| **is_attention).map(|(i, _)| i),
        ("model.layers.*.self_attn", "backbone.layers.*.mixer"),
    );
    let (ffn, names) = ffn(&hybrid, names);
    let (attention, ssm) = (hybrid.checked(attention), hybrid.checked(mamba));
    let scale = (1.0, hybrid.factor("residual_multiplier"));
    let layers = kinds.into_iter().map(|is_attention| {
        let (block, mixer) = if is_attention { ("attn", &attention) } else { ("ssm", &ssm) };
        let stages = [(mixer, "mixer", "norm"), (&ffn, "mlp", "norm2")]
            .map(|(mixer, path, norm)| stage(vec![branch(mixer.clone(), path, norm, scale)]));
        layer(block, stages.into())
    });
    let layers = layers.collect();
    let divisor = hybrid.factor("logits_scaling");
    if divisor == 0.0 {
        config.problem("logits_scaling", "expected a number other than 0, found 0");
    }
    let whole = Whole {
        multipliers: (hybrid.factor("embedding_multiplier"), 1.0 / divisor),
        ..Whole::new(GRANITE.family, eps)
    };
    hybrid.import(whole, layers, self::names(names))
}

/// What follows each mixer, and where its tensors are.
fn ffn(hybrid: &Hybrid<'_>, names: Names) -> (Arc<dyn MixerConfig>, Names) {
    let config = hybrid.config;
    let shared = config.size_or("shared_intermediate_size", 1024);
    let act = activation(config, "hidden_act", Activation::Silu);
    let experts = config.size_from("num_local_experts", 0).unwrap_or(8);
    if experts == 0 {
        let mlp = MlpConfig { d_intermediate: Some(shared), activation: act, ..MlpConfig::default() };
        return (hybrid.checked(mlp), shared_names(names, "backbone.layers.*.mlp", shared));
    }
    let moe = MoeConfig {
        num_experts: experts,
        num_experts_per_tok: config.size_or("num_experts_per_tok", 2),
        d_intermediate: config.size("intermediate_size"),
        activation: act,
        norm_topk_prob: true,
        shared_d_intermediate: Some(shared),
        ..MoeConfig::default()
    };
    let hidden = moe.d_intermediate;
    let moe = hybrid.checked(moe);
    let mut names = shared_names(names, "backbone.layers.*.mlp.shared_expert", shared)
        .rename("model.layers.*.block_sparse_moe.router.layer", "backbone.layers.*.mlp.gate");
    // Not before it is known that the number of experts is one that there may be.
    for e in 0..if config.ok() { experts } else { 0 } {
        let expert = |map| {
            Piece::of(format!("model.layers.*.block_sparse_moe.{map}.weight"))
                .split(0, &[experts])
                .take(0, e, 1)
        };
        let rows = |start| expert("input_linear").split(1, &[2, hidden]).take(1, start, 1);
        names = names
            .join(format!("backbone.layers.*.mlp.experts.{e}.fc1.weight"), [rows(1), rows(0)])
            .join(format!("backbone.layers.*.mlp.experts.{e}.fc2.weight"), [expert("output_linear")]);
    }
    (moe, names)
}

/// The MLP that all tokens pass through: its gate is stored before its value.
fn shared_names(names: Names, to: &str, hidden: usize) -> Names {
    let rows =
        |start| Piece::of("model.layers.*.shared_mlp.input_linear").split(0, &[2, hidden]).take(0, start, 1);
    names
        .join(format!("{to}.fc1"), [rows(1), rows(0)])
        .rename("model.layers.*.shared_mlp.output_linear", format!("{to}.fc2"))
}

fn names(names: Names) -> Names {
    names
        .rename("model.embed_tokens", "backbone.embedding")
        .rename("model.norm", "backbone.norm_f")
        .rename("model.layers.*.input_layernorm", "backbone.layers.*.norm")
        .rename("model.layers.*.post_attention_layernorm", "backbone.layers.*.norm2")
        .rename("model.layers.*.mamba", "backbone.layers.*.mixer")
}
