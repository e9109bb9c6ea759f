//! DeltaNet and gated DeltaNet.

use semisep_core::MixerConfig;
use semisep_deltanet::{DeltaNetConfig, GatedDeltaNetConfig, QkActivation, QkNorm};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let gated = GatedDeltaNetConfig { num_heads: 2, head_dim: 6, dt_max: 0.5, ..Default::default() };
    let plain = DeltaNetConfig { num_heads: 2, ..Default::default() };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("gated deltanet", Box::new(gated.clone()));
    add(
        "gated deltanet olmo",
        Box::new(GatedDeltaNetConfig { allow_neg_eigval: true, conv_bias: true, ..gated.clone() }),
    );
    add(
        "gated deltanet bare",
        Box::new(GatedDeltaNetConfig { use_gate: false, use_short_conv: false, ..gated.clone() }),
    );
    add(
        "gated deltanet groups",
        Box::new(GatedDeltaNetConfig { num_v_heads: Some(4), expand_v: 0.5, ..gated.clone() }),
    );
    let qwen = GatedDeltaNetConfig { num_v_heads: Some(4), head_v_dim: Some(5), fused_proj: true, ..gated };
    add("gated deltanet qwen3-next", Box::new(GatedDeltaNetConfig { conv_size: 3, ..qwen }));
    add("deltanet", Box::new(plain.clone()));
    add(
        "deltanet gate",
        Box::new(DeltaNetConfig { use_gate: true, expand_v: 1.5, conv_bias: true, ..plain.clone() }),
    );
    let elu = DeltaNetConfig { qk_activation: QkActivation::Elu, qk_norm: QkNorm::Sum, ..plain.clone() };
    add("deltanet elu sum", Box::new(DeltaNetConfig { allow_neg_eigval: true, ..elu }));
    let bare = DeltaNetConfig { use_short_conv: false, use_beta: false, expand_k: 0.5, ..plain.clone() };
    add("deltanet bare", Box::new(bare.clone()));
    add("deltanet relu", Box::new(DeltaNetConfig { qk_activation: QkActivation::Relu, ..bare }));
    let free = DeltaNetConfig { qk_activation: QkActivation::Identity, qk_norm: QkNorm::None, ..plain };
    add("deltanet identity", Box::new(free));
    cases
}
