//! `mixer = "hgrn2"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::{Hgrn2, KIND};

/// Sizes and options of an HGRN2 layer; names and defaults as in flash-linear-attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hgrn2Config {
    /// Rows of a head's state (n); d_model / expand_ratio is the number of heads.
    pub expand_ratio: usize,
    /// Whether forget gates have learned lower bounds, which grow from layer to layer: `lower_bounds`, one parameter of
    /// all layers. The first layer has none.
    pub use_lower_bound: bool,
    /// Short convolutions over queries, gates and inputs.
    pub use_short_conv: bool,
    /// Taps of the short convolutions.
    pub conv_size: usize,
    /// Biases of the short convolutions.
    pub conv_bias: bool,
    /// Weight of the norm of the outputs.
    pub elementwise_affine: bool,
    /// Added under the root of that norm.
    pub norm_eps: f64,
}

impl Default for Hgrn2Config {
    fn default() -> Self {
        Self {
            expand_ratio: 128,
            use_lower_bound: true,
            use_short_conv: false,
            conv_size: 4,
            conv_bias: false,
            elementwise_affine: true,
            norm_eps: 1e-5,
        }
    }
}

impl MixerConfig for Hgrn2Config {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let sizes = [("expand_ratio", self.expand_ratio), ("conv_size", self.conv_size)];
        let mut issues: Vec<Issue> = sizes.iter().filter_map(|&(key, v)| in_range(key, v, 1)).collect();
        if issues.is_empty() {
            issues.extend(divides("expand_ratio", self.expand_ratio, "d_model", d_model));
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps.is_finite()) {
            issues.push(Issue::new("norm_eps", format!("expected a number >= 0, found {}", self.norm_eps)));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Hgrn2::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
