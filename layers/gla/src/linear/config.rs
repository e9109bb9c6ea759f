//! `mixer = "linear_attention"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, check_expand, divides, head_width, in_range};
use serde::{Deserialize, Serialize};

use super::{FeatureMap, KIND, LinearAttention};

/// The norm of the heads' outputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutputNorm {
    /// RMS over each head's features.
    #[default]
    RmsNorm,
    /// None.
    Identity,
}

/// Sizes and options of a linear attention layer; names and defaults as in flash-linear-attention, but for the feature
/// map and the division by its sum, which are those of the paper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LinearAttentionConfig {
    /// Heads (h).
    pub num_heads: usize,
    /// Heads of keys and values; each serves h / num_kv_heads heads. Default: num_heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_kv_heads: Option<usize>,
    /// Width of all queries over d_model.
    pub expand_k: f64,
    /// Width of all values over d_model.
    pub expand_v: f64,
    /// φ, on each head's query and key.
    pub feature_map: FeatureMap,
    /// Whether queries and keys share the parameters of φ, where it has any.
    pub tie_feature_map_qk: bool,
    /// Whether outputs are divided by `φ(q_t) · Σ_{s≤t} φ(k_s)`.
    pub do_feature_map_norm: bool,
    /// Divides `φ(q)` by the sum of its features.
    pub norm_q: bool,
    /// Divides `φ(k)` by the sum of its features.
    pub norm_k: bool,
    /// The norm of the heads' outputs.
    pub output_norm: OutputNorm,
    /// Whether that norm has a weight.
    pub elementwise_affine: bool,
    /// Added under the root of that norm.
    pub norm_eps: f64,
}

impl Default for LinearAttentionConfig {
    fn default() -> Self {
        Self {
            num_heads: 8,
            num_kv_heads: None,
            expand_k: 1.0,
            expand_v: 1.0,
            feature_map: FeatureMap::Elu,
            tie_feature_map_qk: false,
            do_feature_map_norm: true,
            norm_q: false,
            norm_k: false,
            output_norm: OutputNorm::RmsNorm,
            elementwise_affine: true,
            norm_eps: 1e-5,
        }
    }
}

impl LinearAttentionConfig {
    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.num_kv_heads.unwrap_or(self.num_heads)
    }

    /// Features a head of a query, before φ, and of a value (p), at this model width.
    pub fn head_dims(&self, d_model: usize) -> (usize, usize) {
        let h = self.num_heads;
        (head_width(d_model, self.expand_k, h), head_width(d_model, self.expand_v, h))
    }
}

impl MixerConfig for LinearAttentionConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let sizes = [("num_heads", self.num_heads), ("num_kv_heads", self.kv_heads())];
        let mut issues: Vec<Issue> = sizes.iter().filter_map(|&(key, v)| in_range(key, v, 1)).collect();
        let sizes_fit = issues.is_empty();
        if !(self.norm_eps >= 0.0 && self.norm_eps.is_finite()) {
            issues.push(Issue::new("norm_eps", format!("expected a number >= 0, found {}", self.norm_eps)));
        }
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
        Ok(Box::new(LinearAttention::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
