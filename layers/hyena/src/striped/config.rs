//! `mixer = "stripedhyena"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use super::{KIND, StripedHyena};

/// Sizes and options of a StripedHyena convolution layer; names as in its configurations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StripedHyenaConfig {
    /// Modes of a filter (n).
    pub state_size: usize,
    /// Channels that share a filter.
    pub hyena_filter_groups: usize,
    /// Taps of the short convolution.
    pub short_filter_length: usize,
    /// Bias of the short convolution.
    pub short_filter_bias: bool,
    /// Whether the projections lie head by head, `[x2, x1, v]` in each, instead of one after the other.
    pub column_split_hyena: bool,
    /// These heads; no head mixes otherwise than another.
    pub num_attention_heads: usize,
}

impl Default for StripedHyenaConfig {
    fn default() -> Self {
        Self {
            state_size: 8,
            hyena_filter_groups: 1,
            short_filter_length: 3,
            short_filter_bias: true,
            column_split_hyena: false,
            num_attention_heads: 1,
        }
    }
}

impl MixerConfig for StripedHyenaConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let mut issues: Vec<Issue> = [
            in_range("state_size", self.state_size, 1),
            in_range("short_filter_length", self.short_filter_length, 1),
            in_range("state_size", self.state_size.saturating_mul(d_model), 1),
            divides("hyena_filter_groups", self.hyena_filter_groups, "d_model", d_model),
        ]
        .into_iter()
        .flatten()
        .collect();
        if self.column_split_hyena {
            issues.extend(divides("num_attention_heads", self.num_attention_heads, "d_model", d_model));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(StripedHyena::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
