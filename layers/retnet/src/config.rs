//! `mixer = "retnet"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{
    Activation, Issue, Mixer, MixerConfig, VarBuilder, check_expand, divides, head_width, in_range,
};
use serde::{Deserialize, Serialize};

use crate::{KIND, RetNet};

/// The rotation of queries and keys by their position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// Feature i with feature i + n/2, angles 10000^(-2i/n): flash-linear-attention.
    #[default]
    Half,
    /// Feature 2i with feature 2i + 1, angles 10000^(-i/(n/2 - 1)), from 1 to 1/10000: torchscale.
    Interleaved,
    /// None.
    None,
}

/// Sizes and options of a multi-scale retention layer; names and defaults as in flash-linear-attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetNetConfig {
    /// Heads (h); head i decays by 1 - 2^(-5-i) a token.
    pub num_heads: usize,
    /// Heads of keys and values; each serves h / num_kv_heads heads. Default: num_heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_kv_heads: Option<usize>,
    /// Width of all queries over d_model.
    pub expand_k: f64,
    /// Width of all values over d_model.
    pub expand_v: f64,
    /// Activation on queries and keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature_map: Option<Activation>,
    /// How queries and keys turn with the position.
    pub rotation: Rotation,
    /// Divides each output by √(Σ_{s≤t} γ^(t-s)), as torchscale does; the head norm takes most of it away again.
    pub decay_norm: bool,
    /// Short convolutions, with a SiLU, over queries, keys and values.
    pub use_short_conv: bool,
    /// Taps of the short convolutions.
    pub conv_size: usize,
    /// Biases of the short convolutions.
    pub conv_bias: bool,
    /// Whether the normed output is gated.
    pub use_output_gate: bool,
    /// The gate's activation.
    pub gate_fn: Activation,
    /// Whether the norm of the heads has a weight.
    pub elementwise_affine: bool,
    /// Added under the root of that norm.
    pub norm_eps: f64,
}

impl Default for RetNetConfig {
    fn default() -> Self {
        Self {
            num_heads: 8,
            num_kv_heads: None,
            expand_k: 1.0,
            expand_v: 2.0,
            feature_map: None,
            rotation: Rotation::Half,
            decay_norm: false,
            use_short_conv: false,
            conv_size: 4,
            conv_bias: false,
            use_output_gate: true,
            gate_fn: Activation::Silu,
            elementwise_affine: true,
            norm_eps: 1e-5,
        }
    }
}

impl RetNetConfig {
    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.num_kv_heads.unwrap_or(self.num_heads)
    }

    /// Features a head of a query (n) and of a value (p), at this model width.
    pub fn head_dims(&self, d_model: usize) -> (usize, usize) {
        let h = self.num_heads;
        (head_width(d_model, self.expand_k, h), head_width(d_model, self.expand_v, h))
    }
}

impl MixerConfig for RetNetConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let sizes =
            [("num_heads", self.num_heads), ("num_kv_heads", self.kv_heads()), ("conv_size", self.conv_size)];
        let mut issues: Vec<Issue> = sizes.iter().filter_map(|&(key, v)| in_range(key, v, 1)).collect();
        if !(self.norm_eps >= 0.0 && self.norm_eps.is_finite()) {
            issues.push(Issue::new("norm_eps", format!("expected a number >= 0, found {}", self.norm_eps)));
        }
        if issues.iter().any(|issue| issue.key.starts_with("num")) {
            return issues;
        }
        issues.extend(divides("num_kv_heads", self.kv_heads(), "the number of heads", self.num_heads));
        for (key, expand) in [("expand_k", self.expand_k), ("expand_v", self.expand_v)] {
            issues.extend(check_expand(key, expand, d_model, self.num_heads));
        }
        let (n, _) = self.head_dims(d_model);
        if issues.is_empty() && self.rotation != Rotation::None && !n.is_multiple_of(2) {
            let message = format!("expected an even number of query features a head to turn, found {n}");
            issues.push(Issue::new("num_heads", message).help("rotation = \"none\" turns nothing"));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(RetNet::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
