//! Attention.

use semisep_attention::{AttentionConfig, QkNorm};
use semisep_core::{MixerConfig, RotaryConfig};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let attention = AttentionConfig { head_dim: Some(8), ..AttentionConfig::new(2) };
    let rope = |dim, interleaved| Some(RotaryConfig { dim, theta: 100.0, interleaved });
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
            qk_norm: Some(QkNorm { eps: 1e-6 }),
            rope: rope(None, true),
            ..attention.clone()
        }),
    );
    add(
        "attention window",
        Box::new(AttentionConfig { window: Some(5), softcap: Some(2.0), scale: Some(0.5), ..attention }),
    );
    cases
}
