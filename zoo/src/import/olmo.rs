//! Ai2's OLMo 2, and OLMo-Hybrid, which has gated DeltaNet in most layers.
//!
//! Attention and MLP of an attention layer are normed after, not before them, and queries and keys over all heads together;
//! layers of gated DeltaNet are normed before, as Llama's are. OLMo-Hybrid's public files call the norms before a layer's
//! parts `attention_layer_norm` and `feedforward_layer_norm`, transformers `input_layernorm` and `post_attention_layernorm`;
//! what transformers writes has the first of these pairs in all layers.

use std::sync::Arc;

use semisep_attention::{AttentionConfig, QkNorm};
use semisep_core::{MixerConfig, RotaryConfig};
use semisep_deltanet::GatedDeltaNetConfig;
use semisep_models::normal::{Branch, Layer, Stage};

use super::decoder::{Decoder, Family, check_divides, names};
use super::{Fields, Folder, Import, Importer, Names, Piece, is_type, layer, layout, residual};
use crate::Result;

/// `model_type` "olmo2".
pub(super) const OLMO2: Importer = Importer {
    family: "olmo2",
    detects: |config| is_type(config, "olmo2", "Olmo2ForCausalLM"),
    import: |folder| {
        let decoder = Decoder::new(folder);
        let attends = vec![true; decoder.n_layer];
        let rope = decoder.rope();
        import(decoder, OLMO2.family, Some(rope), &attends, None, Vec::new())
    },
};

/// `model_type` "olmo_hybrid".
pub(super) const OLMO_HYBRID: Importer = Importer {
    family: "olmo_hybrid",
    detects: |config| is_type(config, "olmo_hybrid", "OlmoHybridForCausalLM"),
    import: hybrid,
};

fn hybrid(folder: &Folder<'_>) -> Result<Import> {
    let (config, decoder, mut notes) = (&folder.config, Decoder::new(folder), Vec::new());
    // Initial values.
    config.ignore(&[
        "linear_a_log_max",
        "linear_a_log_min",
        "linear_dt_init_floor",
        "linear_dt_max",
        "linear_dt_min",
    ]);
    let linear = linear(&decoder);
    let kinds = [("full_attention", true), ("linear_attention", false)];
    let n_layer = decoder.n_layer;
    let attends = layout::types(config, "layer_types", n_layer, &kinds, &mut notes)
        .unwrap_or_else(|| (0..n_layer).map(|i| i % 4 == 3 || (n_layer < 4 && i + 1 == n_layer)).collect());
    let rope = positions(config).then(|| decoder.rope());
    import(decoder, OLMO_HYBRID.family, rope, &attends, Some(linear), notes)
}

/// Whether there are any: a base that is `null`, not one that is absent, says that there are none.
fn positions(config: &Fields) -> bool {
    let inner = config.section("rope_parameters");
    let none =
        inner.is_null("rope_theta") || (inner.get("rope_theta").is_none() && config.is_null("rope_theta"));
    config.ignore(&["rope_scaling", "rope_theta"]);
    !none
}

/// Its output norm adds 1e-5 whatever the configuration says.
fn linear(decoder: &Decoder<'_>) -> GatedDeltaNetConfig {
    let config = decoder.config();
    decoder.silu();
    let heads = config.size_or("linear_num_key_heads", decoder.heads);
    let value_heads = config.size_or("linear_num_value_heads", decoder.heads);
    check_divides(config, ("linear_num_key_heads", heads), ("linear_num_value_heads", value_heads));
    let keys = config.size_or("linear_key_head_dim", (3 * decoder.d_model / 4 / heads).max(1));
    GatedDeltaNetConfig {
        num_heads: heads,
        num_v_heads: Some(value_heads),
        head_dim: keys,
        head_v_dim: Some(config.size_or("linear_value_head_dim", 2 * keys)),
        conv_size: config.size_or("linear_conv_kernel_dim", 4),
        allow_neg_eigval: config.flag_or("linear_allow_neg_eigval", true),
        norm_eps: 1e-5,
        ..GatedDeltaNetConfig::default()
    }
}

fn import(
    decoder: Decoder<'_>,
    family: &'static str,
    rope: Option<RotaryConfig>,
    attends: &[bool],
    linear: Option<GatedDeltaNetConfig>,
    notes: Vec<String>,
) -> Result<Import> {
    let config = decoder.config();
    let eps = config.number("rms_norm_eps").unwrap_or(if linear.is_some() { 1e-6 } else { 1e-5 });
    let bias = config.flag_or("attention_bias", false);
    let attention = decoder.checked(AttentionConfig {
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: Some(QkNorm { across_heads: true, ..QkNorm::new(eps) }),
        ..decoder.attention(rope)
    });
    let mlp = decoder.checked(decoder.mlp("intermediate_size"));
    // The first of several names is the one to write.
    let mut names = names()
        .first("model.layers.*.attention_layer_norm", "backbone.layers.*.norm")
        .first("model.layers.*.feedforward_layer_norm", "backbone.layers.*.norm2")
        .rename("model.layers.*.post_feedforward_layernorm", "backbone.layers.*.post_norm2");
    for (i, _) in attends.iter().enumerate().filter(|(_, attends)| **attends) {
        for stored in ["feedforward_layer_norm", "post_attention_layernorm"] {
            let place = format!("backbone.layers.{i}.post_norm");
            names = names.first(format!("model.layers.{i}.{stored}"), place);
        }
    }
    if let Some(linear) = &linear {
        names = thirds(&decoder, linear, names);
    }
    let linear = linear.map(|linear| decoder.checked(linear));
    let layers: Vec<Layer> = attends
        .iter()
        .map(|attends| match &linear {
            Some(linear) if !attends => layer(
                "linear",
                vec![residual(linear.clone(), "mixer", "norm"), residual(mlp.clone(), "mlp", "norm2")],
            ),
            _ => layer(
                "attn",
                vec![after(attention.clone(), "mixer", "post_norm"), after(mlp.clone(), "mlp", "post_norm2")],
            ),
        })
        .collect();
    let names = decoder.hybrid_names(names, attends, "linear_attn", 1);
    decoder.import(Family::llama(config, family, eps), layers, names, notes)
}

/// One mixer before its norm.
fn after(mixer: Arc<dyn MixerConfig>, path: &str, norm: &str) -> Stage {
    let stage = residual(mixer, path, norm);
    let branches = stage.branches.into_iter();
    let branches = branches.map(|b| Branch { pre_norm: None, post_norm: b.pre_norm, ..b }).collect();
    Stage { branches, ..stage }
}

/// transformers holds the three convolutions as one, and writes its thirds under their names whatever their widths.
fn thirds(decoder: &Decoder<'_>, linear: &GatedDeltaNetConfig, names: Names) -> Names {
    const CONVS: [&str; 3] = ["q_conv1d", "k_conv1d", "v_conv1d"];
    let tensor = |conv: &str| format!(".linear_attn.{conv}.weight");
    let mut stored = decoder.folder.checkpoint.tensors().filter(|t| t.name.ends_with(&tensor(CONVS[0])));
    let keys = linear.num_heads.saturating_mul(linear.head_dim);
    let values = linear.value_heads().saturating_mul(linear.value_dim());
    let total = values.saturating_add(keys.saturating_mul(2));
    let third = total.div_ceil(3);
    let rows = stored.next().and_then(|t| t.shape.first().copied());
    if !decoder.config().ok() || keys == third || rows != Some(third) {
        return names;
    }
    let mut start = 0;
    CONVS.into_iter().zip([keys, keys, values]).fold(names, |names, (conv, width)| {
        let (from, to) = (start, start + width);
        start = to;
        let pieces: Vec<Piece> = CONVS
            .into_iter()
            .enumerate()
            .filter_map(|(i, stored)| {
                let (first, last) = (from.max(i * third), to.min((i + 1) * third));
                let piece = Piece::of(format!("model.layers.*.linear_attn.{stored}"));
                (first < last).then(|| piece.take(0, first - i * third, last - first))
            })
            .collect();
        names.join(format!("backbone.layers.*.mixer.{conv}"), pieces)
    })
}
