//! Tensors of GGUF files as their families' own checkpoints have them.
//!
//! Source: llama.cpp's `conversion/*.py` and `gguf-py/gguf/tensor_mapping.py`, read for what they do to each tensor.

use super::Metadata;
use crate::checkpoint::{Stored, View};

/// A tensor's name in the file, with `*` for the layer, its own name, and what was done to it.
type Rule = (&'static str, &'static str, Change);

/// What llama.cpp did to a tensor, to be undone.
#[derive(Debug, Clone, Copy)]
enum Change {
    Nothing,
    /// `-exp(x)` in the stead of x.
    NegativeExp,
    /// Two axes of one.
    Flat,
    /// Heads and their features in one axis.
    Heads,
    /// The last two axes in the other order.
    Transposed,
    /// Queries or keys, whose features i and i + p/2 were put side by side for another kind of rotation; the number of heads
    /// is at this key.
    Paired(&'static str),
    /// Several vectors in one tensor, under these names in the stead of the `%`.
    Several(&'static [&'static str]),
    /// Matrices of experts in one tensor, by number in the stead of the `%`.
    Experts,
}

use Change::{Experts, Flat, Heads, NegativeExp, Nothing, Paired, Several, Transposed};

const MAMBA: &[Rule] = &[
    ("token_embd", "backbone.embeddings", Nothing),
    ("output_norm", "backbone.norm_f", Nothing),
    ("output", "lm_head", Nothing),
    ("blk.*.attn_norm", "backbone.layers.*.norm", Nothing),
    ("blk.*.ssm_in", "backbone.layers.*.mixer.in_proj", Nothing),
    ("blk.*.ssm_conv1d", "backbone.layers.*.mixer.conv1d", Nothing),
    ("blk.*.ssm_x", "backbone.layers.*.mixer.x_proj", Nothing),
    ("blk.*.ssm_dt", "backbone.layers.*.mixer.dt_proj", Nothing),
    ("blk.*.ssm_a", "backbone.layers.*.mixer.A_log", NegativeExp),
    ("blk.*.ssm_d", "backbone.layers.*.mixer.D", Nothing),
    ("blk.*.ssm_out", "backbone.layers.*.mixer.out_proj", Nothing),
];

const MAMBA2: &[Rule] = &[
    ("token_embd", "backbone.embeddings", Nothing),
    ("output_norm", "backbone.norm_f", Nothing),
    ("output", "lm_head", Nothing),
    ("blk.*.attn_norm", "backbone.layers.*.norm", Nothing),
    ("blk.*.ssm_in", "backbone.layers.*.mixer.in_proj", Nothing),
    ("blk.*.ssm_conv1d", "backbone.layers.*.mixer.conv1d", Nothing),
    ("blk.*.ssm_dt.bias", "backbone.layers.*.mixer.dt_bias", Nothing),
    ("blk.*.ssm_a", "backbone.layers.*.mixer.A_log", NegativeExp),
    ("blk.*.ssm_d", "backbone.layers.*.mixer.D", Nothing),
    ("blk.*.ssm_norm", "backbone.layers.*.mixer.norm", Flat),
    ("blk.*.ssm_out", "backbone.layers.*.mixer.out_proj", Nothing),
];

/// To the names of the original files.
const RWKV6: &[Rule] = &[
    ("token_embd", "emb", Nothing),
    ("token_embd_norm", "blocks.0.ln0", Nothing),
    ("output_norm", "ln_out", Nothing),
    ("output", "head", Nothing),
    ("blk.*.attn_norm", "blocks.*.ln1", Nothing),
    ("blk.*.attn_norm_2", "blocks.*.ln2", Nothing),
    ("blk.*.time_mix_first.weight", "blocks.*.att.time_faaaa", Nothing),
    ("blk.*.time_mix_w1.weight", "blocks.*.att.time_maa_w1", Transposed),
    ("blk.*.time_mix_w2.weight", "blocks.*.att.time_maa_w2", Transposed),
    ("blk.*.time_mix_lerp_x.weight", "blocks.*.att.time_maa_x", Nothing),
    ("blk.*.time_mix_lerp_w.weight", "blocks.*.att.time_maa_w", Nothing),
    ("blk.*.time_mix_lerp_k.weight", "blocks.*.att.time_maa_k", Nothing),
    ("blk.*.time_mix_lerp_v.weight", "blocks.*.att.time_maa_v", Nothing),
    ("blk.*.time_mix_lerp_r.weight", "blocks.*.att.time_maa_r", Nothing),
    ("blk.*.time_mix_lerp_g.weight", "blocks.*.att.time_maa_g", Nothing),
    ("blk.*.time_mix_lerp_fused.weight", "blocks.*.att.time_maa_%", Several(&["w", "k", "v", "r", "g"])),
    ("blk.*.time_mix_decay.weight", "blocks.*.att.time_decay", Nothing),
    ("blk.*.time_mix_decay_w1.weight", "blocks.*.att.time_decay_w1", Transposed),
    ("blk.*.time_mix_decay_w2.weight", "blocks.*.att.time_decay_w2", Transposed),
    ("blk.*.time_mix_key", "blocks.*.att.key", Nothing),
    ("blk.*.time_mix_value", "blocks.*.att.value", Nothing),
    ("blk.*.time_mix_receptance", "blocks.*.att.receptance", Nothing),
    ("blk.*.time_mix_gate", "blocks.*.att.gate", Nothing),
    ("blk.*.time_mix_output", "blocks.*.att.output", Nothing),
    ("blk.*.time_mix_ln", "blocks.*.att.ln_x", Nothing),
    ("blk.*.channel_mix_lerp_k.weight", "blocks.*.ffn.time_maa_k", Nothing),
    ("blk.*.channel_mix_lerp_r.weight", "blocks.*.ffn.time_maa_r", Nothing),
    ("blk.*.channel_mix_key", "blocks.*.ffn.key", Nothing),
    ("blk.*.channel_mix_receptance", "blocks.*.ffn.receptance", Nothing),
    ("blk.*.channel_mix_value", "blocks.*.ffn.value", Nothing),
];

const RWKV7: &[Rule] = &[
    ("token_embd", "emb", Nothing),
    ("token_embd_norm", "blocks.0.ln0", Nothing),
    ("output_norm", "ln_out", Nothing),
    ("output", "head", Nothing),
    ("blk.*.attn_norm", "blocks.*.ln1", Nothing),
    ("blk.*.attn_norm_2", "blocks.*.ln2", Nothing),
    ("blk.*.time_mix_lerp_fused.weight", "blocks.*.att.x_%", Several(&["r", "w", "k", "v", "a", "g"])),
    ("blk.*.time_mix_w0.weight", "blocks.*.att.w0", Nothing),
    ("blk.*.time_mix_w1.weight", "blocks.*.att.w1", Transposed),
    ("blk.*.time_mix_w2.weight", "blocks.*.att.w2", Transposed),
    ("blk.*.time_mix_a0.weight", "blocks.*.att.a0", Nothing),
    ("blk.*.time_mix_a1.weight", "blocks.*.att.a1", Transposed),
    ("blk.*.time_mix_a2.weight", "blocks.*.att.a2", Transposed),
    ("blk.*.time_mix_v0.weight", "blocks.*.att.v0", Nothing),
    ("blk.*.time_mix_v1.weight", "blocks.*.att.v1", Transposed),
    ("blk.*.time_mix_v2.weight", "blocks.*.att.v2", Transposed),
    ("blk.*.time_mix_g1.weight", "blocks.*.att.g1", Transposed),
    ("blk.*.time_mix_g2.weight", "blocks.*.att.g2", Transposed),
    ("blk.*.time_mix_k_k.weight", "blocks.*.att.k_k", Nothing),
    ("blk.*.time_mix_k_a.weight", "blocks.*.att.k_a", Nothing),
    ("blk.*.time_mix_r_k.weight", "blocks.*.att.r_k", Heads),
    ("blk.*.time_mix_key", "blocks.*.att.key", Nothing),
    ("blk.*.time_mix_value", "blocks.*.att.value", Nothing),
    ("blk.*.time_mix_receptance", "blocks.*.att.receptance", Nothing),
    ("blk.*.time_mix_output", "blocks.*.att.output", Nothing),
    ("blk.*.time_mix_ln", "blocks.*.att.ln_x", Nothing),
    ("blk.*.channel_mix_lerp_k.weight", "blocks.*.ffn.x_k", Nothing),
    ("blk.*.channel_mix_key", "blocks.*.ffn.key", Nothing),
    ("blk.*.channel_mix_value", "blocks.*.ffn.value", Nothing),
];

const LLAMA: &[Rule] = &[
    ("token_embd", "model.embed_tokens", Nothing),
    ("output_norm", "model.norm", Nothing),
    ("output", "lm_head", Nothing),
    ("blk.*.attn_norm", "model.layers.*.input_layernorm", Nothing),
    ("blk.*.attn_q", "model.layers.*.self_attn.q_proj", Paired("attention.head_count")),
    ("blk.*.attn_k", "model.layers.*.self_attn.k_proj", Paired("attention.head_count_kv")),
    ("blk.*.attn_v", "model.layers.*.self_attn.v_proj", Nothing),
    ("blk.*.attn_output", "model.layers.*.self_attn.o_proj", Nothing),
    ("blk.*.ffn_norm", "model.layers.*.post_attention_layernorm", Nothing),
    ("blk.*.ffn_gate", "model.layers.*.mlp.gate_proj", Nothing),
    ("blk.*.ffn_up", "model.layers.*.mlp.up_proj", Nothing),
    ("blk.*.ffn_down", "model.layers.*.mlp.down_proj", Nothing),
];

const QWEN3: &[Rule] = &[
    ("token_embd", "model.embed_tokens", Nothing),
    ("output_norm", "model.norm", Nothing),
    ("output", "lm_head", Nothing),
    ("blk.*.attn_norm", "model.layers.*.input_layernorm", Nothing),
    ("blk.*.attn_q", "model.layers.*.self_attn.q_proj", Nothing),
    ("blk.*.attn_k", "model.layers.*.self_attn.k_proj", Nothing),
    ("blk.*.attn_v", "model.layers.*.self_attn.v_proj", Nothing),
    ("blk.*.attn_output", "model.layers.*.self_attn.o_proj", Nothing),
    ("blk.*.attn_q_norm", "model.layers.*.self_attn.q_norm", Nothing),
    ("blk.*.attn_k_norm", "model.layers.*.self_attn.k_norm", Nothing),
    ("blk.*.ffn_norm", "model.layers.*.post_attention_layernorm", Nothing),
    ("blk.*.ffn_gate", "model.layers.*.mlp.gate_proj", Nothing),
    ("blk.*.ffn_up", "model.layers.*.mlp.up_proj", Nothing),
    ("blk.*.ffn_down", "model.layers.*.mlp.down_proj", Nothing),
];

const JAMBA: &[Rule] = &[
    ("token_embd", "model.embed_tokens", Nothing),
    ("output_norm", "model.final_layernorm", Nothing),
    ("output", "lm_head", Nothing),
    ("blk.*.attn_norm", "model.layers.*.input_layernorm", Nothing),
    ("blk.*.attn_q", "model.layers.*.self_attn.q_proj", Nothing),
    ("blk.*.attn_k", "model.layers.*.self_attn.k_proj", Nothing),
    ("blk.*.attn_v", "model.layers.*.self_attn.v_proj", Nothing),
    ("blk.*.attn_output", "model.layers.*.self_attn.o_proj", Nothing),
    ("blk.*.ssm_in", "model.layers.*.mamba.in_proj", Nothing),
    ("blk.*.ssm_conv1d", "model.layers.*.mamba.conv1d", Nothing),
    ("blk.*.ssm_x", "model.layers.*.mamba.x_proj", Nothing),
    ("blk.*.ssm_dt", "model.layers.*.mamba.dt_proj", Nothing),
    ("blk.*.ssm_dt_norm", "model.layers.*.mamba.dt_layernorm", Nothing),
    ("blk.*.ssm_b_norm", "model.layers.*.mamba.b_layernorm", Nothing),
    ("blk.*.ssm_c_norm", "model.layers.*.mamba.c_layernorm", Nothing),
    ("blk.*.ssm_a", "model.layers.*.mamba.A_log", NegativeExp),
    ("blk.*.ssm_d", "model.layers.*.mamba.D", Nothing),
    ("blk.*.ssm_out", "model.layers.*.mamba.out_proj", Nothing),
    ("blk.*.ffn_norm", "model.layers.*.pre_ff_layernorm", Nothing),
    ("blk.*.ffn_gate", "model.layers.*.feed_forward.gate_proj", Nothing),
    ("blk.*.ffn_up", "model.layers.*.feed_forward.up_proj", Nothing),
    ("blk.*.ffn_down", "model.layers.*.feed_forward.down_proj", Nothing),
    ("blk.*.ffn_gate_inp", "model.layers.*.feed_forward.router", Nothing),
    ("blk.*.ffn_gate_exps", "model.layers.*.feed_forward.experts.%.gate_proj", Experts),
    ("blk.*.ffn_up_exps", "model.layers.*.feed_forward.experts.%.up_proj", Experts),
    ("blk.*.ffn_down_exps", "model.layers.*.feed_forward.experts.%.down_proj", Experts),
];

const LFM2: &[Rule] = &[
    ("token_embd", "model.embed_tokens", Nothing),
    // Which of the two names the last norm has depends on the version that wrote the file.
    ("token_embd_norm", "model.embedding_norm", Nothing),
    ("output_norm", "model.embedding_norm", Nothing),
    ("output", "lm_head", Nothing),
    ("blk.*.attn_norm", "model.layers.*.operator_norm", Nothing),
    ("blk.*.shortconv.in_proj", "model.layers.*.conv.in_proj", Nothing),
    ("blk.*.shortconv.conv", "model.layers.*.conv.conv", Nothing),
    ("blk.*.shortconv.out_proj", "model.layers.*.conv.out_proj", Nothing),
    ("blk.*.attn_q", "model.layers.*.self_attn.q_proj", Nothing),
    ("blk.*.attn_k", "model.layers.*.self_attn.k_proj", Nothing),
    ("blk.*.attn_v", "model.layers.*.self_attn.v_proj", Nothing),
    ("blk.*.attn_output", "model.layers.*.self_attn.out_proj", Nothing),
    ("blk.*.attn_q_norm", "model.layers.*.self_attn.q_layernorm", Nothing),
    ("blk.*.attn_k_norm", "model.layers.*.self_attn.k_layernorm", Nothing),
    ("blk.*.ffn_norm", "model.layers.*.ffn_norm", Nothing),
    ("blk.*.ffn_gate", "model.layers.*.feed_forward.w1", Nothing),
    ("blk.*.ffn_down", "model.layers.*.feed_forward.w2", Nothing),
    ("blk.*.ffn_up", "model.layers.*.feed_forward.w3", Nothing),
];

fn rules(architecture: &str) -> &'static [Rule] {
    match architecture {
        "mamba" => MAMBA,
        "mamba2" => MAMBA2,
        "rwkv6" => RWKV6,
        "rwkv7" => RWKV7,
        "llama" => LLAMA,
        "qwen2" | "qwen3" => QWEN3,
        "jamba" => JAMBA,
        "lfm2" => LFM2,
        _ => &[],
    }
}

/// The tensors under their families' names; those that the family does not have keep theirs.
pub(super) fn translate(metadata: &Metadata, tensors: Vec<Stored>) -> Result<Vec<Stored>, String> {
    let rules = rules(metadata.architecture());
    let mut translated = Vec::with_capacity(tensors.len());
    for stored in tensors {
        match rules
            .iter()
            .find_map(|(foreign, own, change)| Some((renamed(&stored.name, foreign, own)?, change)))
        {
            None => translated.push(stored),
            Some((name, change)) => {
                let (foreign, shape) = (stored.name.clone(), stored.shape.clone());
                let undone = undo(metadata, stored, name, *change);
                translated.extend(undone.ok_or_else(|| {
                    format!(
                        "{foreign}: expected the shape that {} gives it, found {shape:?}",
                        metadata.architecture()
                    )
                })?);
            }
        }
    }
    Ok(translated)
}

/// The name with its beginning in the stead of the pattern's; at a dot, or whole.
fn renamed(name: &str, foreign: &str, own: &str) -> Option<String> {
    let (rest, layer) = match foreign.split_once('*') {
        None => (name.strip_prefix(foreign)?, None),
        Some((before, after)) => {
            let (layer, rest) = name.strip_prefix(before)?.split_once('.')?;
            (rest.strip_prefix(after.strip_prefix('.')?)?, Some(layer))
        }
    };
    if !rest.is_empty() && !rest.starts_with('.') {
        return None;
    }
    // Vectors without a matrix have no `.weight` to their name in their own files; in these some do.
    Some(layer.map_or_else(|| own.to_string(), |layer| own.replacen('*', layer, 1)) + rest)
}

/// The tensor as it was; `None` if its shape does not allow it.
fn undo(metadata: &Metadata, stored: Stored, name: String, change: Change) -> Option<Vec<Stored>> {
    let stored = Stored { name, ..stored };
    let whole = View::whole(&stored.shape);
    let ordered = |view: View, shape: Vec<usize>| vec![Stored { shape, order: Some(view), ..stored.clone() }];
    Some(match change {
        Nothing => vec![stored],
        NegativeExp => vec![Stored { log_negative: true, ..stored }],
        Flat => vec![Stored { shape: vec![stored.elements], ..stored }],
        Heads => {
            let size = size(metadata, "wkv.head_size")?;
            let heads = stored.elements.checked_div(size).filter(|h| h * size == stored.elements)?;
            vec![Stored { shape: vec![heads, size], ..stored }]
        }
        Transposed => {
            let rank = stored.shape.len().checked_sub(2)?;
            let view = whole.swap(rank, rank + 1)?;
            let shape = view.shape.clone();
            ordered(view, shape)
        }
        Paired(key) => {
            let heads = size(metadata, key).or_else(|| size(metadata, "attention.head_count"))?;
            let half = stored.shape.first()?.checked_div(2 * heads)?;
            let shape = stored.shape.clone();
            ordered(whole.split(0, &[heads, half, 2])?.swap(1, 2)?, shape)
        }
        Several(names) => {
            let each = stored.elements / names.len();
            if each * names.len() != stored.elements {
                return None;
            }
            let part = |(i, part): (usize, &&str)| {
                let order = View { start: i * each, ..View::whole(&[each]) };
                let name = stored.name.replacen('%', part, 1);
                Stored { name, shape: vec![each], elements: each, order: Some(order), ..stored.clone() }
            };
            names.iter().enumerate().map(part).collect()
        }
        Experts => {
            let (&experts, matrix) = stored.shape.split_first().filter(|(_, matrix)| matrix.len() == 2)?;
            let each: usize = matrix.iter().product();
            let part = |i: usize| {
                let order = View { start: i * each, ..View::whole(matrix) };
                let name = stored.name.replacen('%', &i.to_string(), 1);
                Stored { name, shape: matrix.into(), elements: each, order: Some(order), ..stored.clone() }
            };
            (0..experts).map(part).collect()
        }
    })
}

fn size(metadata: &Metadata, key: &str) -> Option<usize> {
    metadata.number(key).filter(|n| *n >= 1.0 && n.fract() == 0.0 && *n < 1e6).map(|n| n as usize)
}
