//! transformers' `BambaForCausalLM`: Mamba-2 layers and a few of attention, an MLP after each.
//!
//! Half of each head's features turn, whatever `attn_rotary_emb` says.

use super::hybrid::{Hybrid, Whole, attention_names};
use super::rope::rope;
use super::{Folder, Import, Importer, MAX_LAYERS, Names, is_type, layer, layout, residual};
use crate::Result;

/// `model_type` "bamba".
pub(super) const BAMBA: Importer =
    Importer { family: "bamba", detects: |config| is_type(config, "bamba", "BambaForCausalLM"), import };

fn import(folder: &Folder<'_>) -> Result<Import> {
    let mut hybrid = Hybrid::new(folder);
    let config = &folder.config;
    let n_layer = config.size_up_to("num_hidden_layers", MAX_LAYERS);
    let eps = hybrid.eps("rms_norm_eps", 1e-5);
    let attention_layers = layout::indices(config, "attn_layer_indices", n_layer, &mut hybrid.notes);
    let attention = hybrid.attention(|head_dim| Some(rope(config, head_dim, 1e4, 0.5)));
    if let Some((said, turned)) =
        config.size_from("attn_rotary_emb", 0).zip(attention.rope.and_then(|rope| rope.dim))
        && said != turned
    {
        hybrid
            .notes
            .push(format!("attn_rotary_emb = {said} has no effect: {turned} features of a head turn"));
    }
    let mamba = hybrid.mamba2(None, eps);
    let names = names(attention_names(
        Names::new(),
        &attention,
        hybrid.d_model,
        attention_layers.iter().copied(),
        ("model.layers.*.self_attn", "backbone.layers.*.mixer"),
    ));
    let (attention, ssm) = (hybrid.checked(attention), hybrid.checked(mamba));
    let mlp = hybrid.checked(hybrid.mlp("intermediate_size"));
    let layers = (0..n_layer).map(|i| {
        let (block, mixer) = if attention_layers.contains(&i) { ("attn", &attention) } else { ("ssm", &ssm) };
        layer(block, vec![residual(mixer.clone(), "mixer", "norm"), residual(mlp.clone(), "mlp", "norm2")])
    });
    let layers = layers.collect();
    hybrid.import(Whole::new(BAMBA.family, eps), layers, names)
}

fn names(names: Names) -> Names {
    names
        .rename("model.embed_tokens", "backbone.embedding")
        .rename("model.final_layernorm", "backbone.norm_f")
        .rename("model.layers.*.input_layernorm", "backbone.layers.*.norm")
        .rename("model.layers.*.pre_ff_layernorm", "backbone.layers.*.norm2")
        .rename("model.layers.*.mamba", "backbone.layers.*.mixer")
        .rename("model.layers.*.feed_forward", "backbone.layers.*.mlp")
}
