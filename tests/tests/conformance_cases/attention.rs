//! Attention.

use semisep_attention::{AttentionConfig, ConcatEmbedding, CopeConfig, QkNorm};
use semisep_core::{MixerConfig, RelBiasConfig, RotaryConfig, WindowMode};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let attention = AttentionConfig { head_dim: Some(8), ..AttentionConfig::new(2) };
    let rope = |dim, interleaved| Some(RotaryConfig { dim, theta: 100.0, interleaved, scaling: None });
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("attention", Box::new(attention.clone()));
    add(
        "attention hybrid",
        Box::new(AttentionConfig { d_conv: 4, rope: rope(Some(4), false), ..attention.clone() }),
    );
    add(
        "attention grouped",
        Box::new(AttentionConfig {
            n_heads: 4,
            n_kv_heads: Some(2),
            qkv_bias: true,
            out_bias: true,
            qk_norm: Some(QkNorm::new(1e-6)),
            rope: rope(None, true),
            ..attention.clone()
        }),
    );
    add(
        "attention window",
        Box::new(AttentionConfig {
            window: Some(5),
            softcap: Some(2.0),
            scale: Some(0.5),
            ..attention.clone()
        }),
    );
    let block = AttentionConfig { window: Some(5), window_mode: WindowMode::Block, ..attention.clone() };
    add("attention blocks", Box::new(block.clone()));
    add("attention alibi", Box::new(AttentionConfig { n_heads: 3, alibi: true, ..attention.clone() }));
    add(
        "attention alibi blocks",
        Box::new(AttentionConfig { alibi: true, n_kv_heads: Some(1), ..block.clone() }),
    );
    let rel_bias = Some(RelBiasConfig { buckets: 6, max_distance: 9 });
    add("attention t5", Box::new(AttentionConfig { rel_bias, ..attention.clone() }));
    let grouped = AttentionConfig { n_heads: 4, n_kv_heads: Some(2), ..attention.clone() };
    add("attention t5 window", Box::new(AttentionConfig { rel_bias, window: Some(7), ..grouped.clone() }));
    add("attention nope", Box::new(AttentionConfig { nope: true, ..attention.clone() }));
    let cope = |npos_max, per_head| Some(CopeConfig { npos_max, per_head });
    add("attention cope", Box::new(AttentionConfig { cope: cope(6, false), ..attention }));
    add(
        "attention cope heads",
        Box::new(AttentionConfig { cope: cope(30, true), window: Some(9), ..grouped.clone() }),
    );
    add(
        "attention normed across heads",
        Box::new(AttentionConfig {
            qk_norm: Some(QkNorm { across_heads: true, ..QkNorm::new(1e-6) }),
            rope: rope(None, false),
            ..grouped.clone()
        }),
    );
    add(
        "attention gated",
        Box::new(AttentionConfig {
            output_gate: true,
            qk_norm: Some(QkNorm { unit_offset: true, ..QkNorm::new(1e-6) }),
            rope: rope(Some(2), false),
            qkv_bias: true,
            ..grouped
        }),
    );
    let concat = AttentionConfig {
        head_dim: None,
        concat_embedding: Some(ConcatEmbedding { norm_eps: 1e-5 }),
        rope: rope(None, false),
        ..AttentionConfig::new(4)
    };
    add("attention with the embedding", Box::new(concat.clone()));
    add(
        "attention adapters",
        Box::new(AttentionConfig { adapter_rank: Some(3), n_kv_heads: Some(2), qkv_bias: true, ..concat }),
    );
    cases
}
