//! Decoders without state spaces, to transformers' names.

use super::Rule;
use super::change::Change::{Experts, GateAndUp, Nothing, Paired, Qkv, Trio};

pub(super) const LLAMA: &[Rule] = &[
    ("token_embd", "model.embed_tokens", Nothing),
    ("output_norm", "model.norm", Nothing),
    ("output", "lm_head", Nothing),
    ("blk.*.attn_norm", "model.layers.*.input_layernorm", Nothing),
    ("blk.*.attn_q", "model.layers.*.self_attn.q_proj", Paired("attention.head_count")),
    ("blk.*.attn_k", "model.layers.*.self_attn.k_proj", Paired("attention.head_count_kv")),
    ("blk.*.attn_v", "model.layers.*.self_attn.v_proj", Nothing),
    ("blk.*.attn_qkv", "model.layers.*.self_attn.%", Qkv { paired: true }),
    // Factors of frequencies: the configuration says what they are made of.
    ("rope_freqs", "model.layers.0.self_attn.rotary_emb.inv_freq", Nothing),
    ("blk.*.attn_output", "model.layers.*.self_attn.o_proj", Nothing),
    ("blk.*.ffn_norm", "model.layers.*.post_attention_layernorm", Nothing),
    ("blk.*.ffn_gate", "model.layers.*.mlp.gate_proj", Nothing),
    ("blk.*.ffn_up", "model.layers.*.mlp.up_proj", Nothing),
    ("blk.*.ffn_down", "model.layers.*.mlp.down_proj", Nothing),
];

/// Qwen 2 and 3, with experts and without.
pub(super) const QWEN3: &[Rule] = &[
    ("token_embd", "model.embed_tokens", Nothing),
    ("output_norm", "model.norm", Nothing),
    ("output", "lm_head", Nothing),
    ("blk.*.attn_norm", "model.layers.*.input_layernorm", Nothing),
    ("blk.*.attn_q", "model.layers.*.self_attn.q_proj", Nothing),
    ("blk.*.attn_k", "model.layers.*.self_attn.k_proj", Nothing),
    ("blk.*.attn_v", "model.layers.*.self_attn.v_proj", Nothing),
    ("blk.*.attn_qkv", "model.layers.*.self_attn.%", Qkv { paired: false }),
    ("blk.*.attn_output", "model.layers.*.self_attn.o_proj", Nothing),
    ("blk.*.attn_q_norm", "model.layers.*.self_attn.q_norm", Nothing),
    ("blk.*.attn_k_norm", "model.layers.*.self_attn.k_norm", Nothing),
    ("blk.*.ffn_norm", "model.layers.*.post_attention_layernorm", Nothing),
    ("blk.*.ffn_gate", "model.layers.*.mlp.gate_proj", Nothing),
    ("blk.*.ffn_up", "model.layers.*.mlp.up_proj", Nothing),
    ("blk.*.ffn_down", "model.layers.*.mlp.down_proj", Nothing),
    ("blk.*.ffn_gate_inp", "model.layers.*.mlp.gate", Nothing),
    ("blk.*.ffn_gate_exps", "model.layers.*.mlp.experts.%.gate_proj", Experts),
    ("blk.*.ffn_up_exps", "model.layers.*.mlp.experts.%.up_proj", Experts),
    ("blk.*.ffn_gate_up_exps", "model.layers.*.mlp.experts.%", GateAndUp),
    ("blk.*.ffn_down_exps", "model.layers.*.mlp.experts.%.down_proj", Experts),
];

pub(super) const OLMO2: &[Rule] = &[
    ("token_embd", "model.embed_tokens", Nothing),
    ("output_norm", "model.norm", Nothing),
    ("output", "lm_head", Nothing),
    ("blk.*.attn_q", "model.layers.*.self_attn.q_proj", Nothing),
    ("blk.*.attn_k", "model.layers.*.self_attn.k_proj", Nothing),
    ("blk.*.attn_v", "model.layers.*.self_attn.v_proj", Nothing),
    ("blk.*.attn_qkv", "model.layers.*.self_attn.%", Qkv { paired: false }),
    ("blk.*.attn_output", "model.layers.*.self_attn.o_proj", Nothing),
    ("blk.*.attn_q_norm", "model.layers.*.self_attn.q_norm", Nothing),
    ("blk.*.attn_k_norm", "model.layers.*.self_attn.k_norm", Nothing),
    ("blk.*.post_attention_norm", "model.layers.*.post_attention_layernorm", Nothing),
    ("blk.*.post_ffw_norm", "model.layers.*.post_feedforward_layernorm", Nothing),
    ("blk.*.ffn_gate", "model.layers.*.mlp.gate_proj", Nothing),
    ("blk.*.ffn_up", "model.layers.*.mlp.up_proj", Nothing),
    ("blk.*.ffn_down", "model.layers.*.mlp.down_proj", Nothing),
];

pub(super) const GPT_NEOX: &[Rule] = &[
    ("token_embd", "gpt_neox.embed_in", Nothing),
    ("output_norm", "gpt_neox.final_layer_norm", Nothing),
    ("output", "embed_out", Nothing),
    ("blk.*.attn_norm", "gpt_neox.layers.*.input_layernorm", Nothing),
    ("blk.*.attn_qkv", "gpt_neox.layers.*.attention.query_key_value", Trio),
    ("blk.*.attn_output", "gpt_neox.layers.*.attention.dense", Nothing),
    ("blk.*.ffn_norm", "gpt_neox.layers.*.post_attention_layernorm", Nothing),
    ("blk.*.ffn_up", "gpt_neox.layers.*.mlp.dense_h_to_4h", Nothing),
    ("blk.*.ffn_down", "gpt_neox.layers.*.mlp.dense_4h_to_h", Nothing),
];
