//! Mixtures of experts, a case for each family's way to route.

use semisep_core::{Activation, MixerConfig};
use semisep_moe::{MoeConfig, Scoring};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let base = MoeConfig { num_experts: 4, d_intermediate: 12, ..Default::default() };
    let normed = MoeConfig { norm_topk_prob: true, shared_d_intermediate: Some(10), ..base.clone() };
    let sigmoid =
        MoeConfig { scoring: Scoring::Sigmoid, expert_bias: true, norm_topk_prob: true, ..base.clone() };
    let lfm2 = MoeConfig { norm_topk_eps: 1e-6, ..sigmoid.clone() };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("moe jamba", Box::new(base));
    add("moe granite", Box::new(normed.clone()));
    add("moe qwen3-next", Box::new(MoeConfig { shared_gate: true, fused: false, ..normed }));
    add("moe lfm2", Box::new(lfm2));
    let nemotron = MoeConfig {
        gated: false,
        activation: Activation::Relu2,
        n_group: 2,
        topk_group: 1,
        routed_scaling_factor: 2.5,
        shared_d_intermediate: Some(10),
        ..sigmoid
    };
    add("moe nemotron", Box::new(nemotron.clone()));
    add("moe nemotron latent", Box::new(MoeConfig { latent_size: Some(6), ..nemotron }));
    cases
}
