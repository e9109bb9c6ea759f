//! `mixer = "gla"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{
    Activation, Issue, Mixer, MixerConfig, VarBuilder, check_expand, divides, head_width, in_range,
};
use serde::{Deserialize, Serialize};

use super::{Gla, KIND};

/// Sizes and options of a gated linear attention layer; names and defaults as in flash-linear-attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GlaConfig {
    /// Heads (h).
    pub num_heads: usize,
    /// Heads of keys, values and decays; each serves h / num_kv_heads heads. Default: num_heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_kv_heads: Option<usize>,
    /// Width of all queries over d_model.
    pub expand_k: f64,
    /// Width of all values over d_model.
    pub expand_v: f64,
    /// Activation on queries and keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature_map: Option<Activation>,
    /// Short convolutions, with a SiLU, over queries, keys and values.
    pub use_short_conv: bool,
    /// Taps of the short convolutions.
    pub conv_size: usize,
    /// Biases of the short convolutions.
    pub conv_bias: bool,
    /// Whether the normed output is gated.
    pub use_output_gate: bool,
    /// The output gate's activation.
    pub gate_fn: Activation,
    /// Whether the norm of the heads has a weight.
    pub elementwise_affine: bool,
    /// Added under the root of that norm.
    pub norm_eps: f64,
    /// The log decays are divided by this, so that they start slow.
    pub gate_logit_normalizer: f64,
    /// Rank of the map to the decays.
    pub gate_low_rank_dim: usize,
    /// Lower bound of the log decays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clamp_min: Option<f64>,
}

impl Default for GlaConfig {
    fn default() -> Self {
        Self {
            num_heads: 4,
            num_kv_heads: None,
            expand_k: 0.5,
            expand_v: 1.0,
            feature_map: None,
            use_short_conv: false,
            conv_size: 4,
            conv_bias: false,
            use_output_gate: true,
            gate_fn: Activation::Silu,
            elementwise_affine: true,
            norm_eps: 1e-5,
            gate_logit_normalizer: 16.0,
            gate_low_rank_dim: 16,
            clamp_min: None,
        }
    }
}

impl GlaConfig {
    /// Heads of keys, values and decays.
    pub fn kv_heads(&self) -> usize {
        self.num_kv_heads.unwrap_or(self.num_heads)
    }

    /// Features a head of a query (n) and of a value (p), at this model width.
    pub fn head_dims(&self, d_model: usize) -> (usize, usize) {
        let h = self.num_heads;
        (head_width(d_model, self.expand_k, h), head_width(d_model, self.expand_v, h))
    }

    fn ranges(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !(self.norm_eps >= 0.0 && self.norm_eps.is_finite()) {
            issues.push(Issue::new("norm_eps", format!("expected a number >= 0, found {}", self.norm_eps)));
        }
        if !(self.gate_logit_normalizer > 0.0 && self.gate_logit_normalizer.is_finite()) {
            let message = format!("expected a number > 0, found {}", self.gate_logit_normalizer);
            issues.push(Issue::new("gate_logit_normalizer", message).help("16 is usual"));
        }
        if let Some(min) = self.clamp_min.filter(|min| min.is_nan() || *min >= 0.0) {
            let message = format!("expected a negative logarithm of a decay, found {min}");
            issues.push(Issue::new("clamp_min", message).help("leave it out to clamp nothing"));
        }
        issues
    }
}

impl MixerConfig for GlaConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let sizes = [
            ("num_heads", self.num_heads),
            ("num_kv_heads", self.kv_heads()),
            ("conv_size", self.conv_size),
            ("gate_low_rank_dim", self.gate_low_rank_dim),
        ];
        let mut issues: Vec<Issue> = sizes.iter().filter_map(|&(key, v)| in_range(key, v, 1)).collect();
        let sizes_fit = issues.is_empty();
        issues.extend(self.ranges());
        if !sizes_fit {
            return issues;
        }
        issues.extend(divides("num_kv_heads", self.kv_heads(), "the number of heads", self.num_heads));
        for (key, expand) in [("expand_k", self.expand_k), ("expand_v", self.expand_v)] {
            issues.extend(check_expand(key, expand, d_model, self.num_heads));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Gla::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
