//! `mixer = "moe"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Activation, Issue, Mixer, MixerConfig, MlpConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::{KIND, Moe};

/// How logits become scores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scoring {
    /// Over all experts.
    #[default]
    Softmax,
    /// Each for itself.
    Sigmoid,
}

/// Sizes and options of a mixture of experts; names as in transformers' configurations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MoeConfig {
    /// Experts.
    pub num_experts: usize,
    /// Experts that a token passes through (k).
    pub num_experts_per_tok: usize,
    /// Hidden width of an expert.
    pub d_intermediate: usize,
    /// Width in which experts work, if it is another than the model's: a map leads there and one back (Nemotron 3 Super).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent_size: Option<usize>,
    /// Whether half of an expert's first map gates the other half.
    pub gated: bool,
    /// Whether value and gate of an expert are one map, `fc1`; otherwise the maps are `up_proj`, `gate_proj`, `down_proj`.
    #[serde(skip_serializing_if = "Clone::clone")]
    pub fused: bool,
    /// The experts' activation.
    pub activation: Activation,
    /// How logits become scores.
    pub scoring: Scoring,
    /// Whether the weights of a token's experts sum to one.
    pub norm_topk_prob: bool,
    /// Added to the sum that they are divided by, with sigmoid scores.
    pub norm_topk_eps: f64,
    /// A bias that takes part in the choice of experts, not in their weights.
    pub expert_bias: bool,
    /// Groups of experts, of which the best are chosen first.
    pub n_group: usize,
    /// Groups that a token's experts may come from.
    pub topk_group: usize,
    /// Factor on the weights.
    pub routed_scaling_factor: f64,
    /// Hidden width of an expert that every token passes through, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_d_intermediate: Option<usize>,
    /// A sigmoid gate, one number a token, on that expert.
    pub shared_gate: bool,
}

impl Default for MoeConfig {
    fn default() -> Self {
        Self {
            num_experts: 8,
            num_experts_per_tok: 2,
            d_intermediate: 1024,
            latent_size: None,
            gated: true,
            fused: true,
            activation: Activation::Silu,
            scoring: Scoring::Softmax,
            norm_topk_prob: false,
            norm_topk_eps: 1e-20,
            expert_bias: false,
            n_group: 1,
            topk_group: 1,
            routed_scaling_factor: 1.0,
            shared_d_intermediate: None,
            shared_gate: false,
        }
    }
}

/// More experts than any model has.
const MAX_EXPERTS: usize = 1 << 14;

impl MoeConfig {
    /// An expert of this hidden width.
    pub(crate) fn mlp(&self, hidden: usize) -> MlpConfig {
        MlpConfig {
            d_intermediate: Some(hidden),
            gated: self.gated,
            fused: self.fused,
            activation: self.activation,
            ..MlpConfig::default()
        }
    }

    fn counts(&self) -> Vec<Issue> {
        let (e, k) = (self.num_experts, self.num_experts_per_tok);
        let mut issues = Vec::new();
        if !(1..=MAX_EXPERTS).contains(&e) {
            issues.push(Issue::new("num_experts", format!("expected 1 to {MAX_EXPERTS}, found {e}")));
            return issues;
        }
        issues.extend(divides("n_group", self.n_group, "num_experts", e));
        if !(1..=self.n_group.max(1)).contains(&self.topk_group) {
            let found = format!("expected 1 to n_group = {}, found {}", self.n_group, self.topk_group);
            issues.push(Issue::new("topk_group", found));
        }
        if issues.is_empty() {
            let reach = e / self.n_group * self.topk_group;
            if !(1..=reach).contains(&k) {
                let what = if self.n_group > 1 { "the experts of topk_group groups" } else { "num_experts" };
                let issue =
                    Issue::new("num_experts_per_tok", format!("expected 1 to {what}, {reach}, found {k}"));
                issues.push(issue.help("a token passes through each expert once at most"));
            }
        }
        issues
    }
}

impl MixerConfig for MoeConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, _: usize) -> Vec<Issue> {
        let mut issues = self.counts();
        issues.extend(in_range("d_intermediate", self.d_intermediate, 1));
        issues.extend(self.latent_size.and_then(|width| in_range("latent_size", width, 1)));
        issues.extend(
            self.shared_d_intermediate.and_then(|hidden| in_range("shared_d_intermediate", hidden, 1)),
        );
        if self.shared_gate && self.shared_d_intermediate.is_none() {
            let issue = Issue::new("shared_gate", "expected shared_d_intermediate beside it, found none");
            issues.push(issue.help("name the shared expert's hidden width, or set shared_gate = false"));
        }
        for (key, value) in
            [("norm_topk_eps", self.norm_topk_eps), ("routed_scaling_factor", self.routed_scaling_factor)]
        {
            if !(value >= 0.0 && value.is_finite()) {
                issues.push(Issue::new(key, format!("expected a number >= 0, found {value}")));
            }
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Moe::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
