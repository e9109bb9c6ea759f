//! `mixer = "rg_lru"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Activation, Issue, Mixer, MixerConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::{KIND, RgLruBlock};

/// Sizes and options of Griffin's recurrent block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RgLruConfig {
    /// Channels of the recurrence (e). Default: d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lru_width: Option<usize>,
    /// Blocks of the gates' maps; divides lru_width.
    pub num_blocks: usize,
    /// Taps of the short convolution.
    pub conv1d_width: usize,
    /// Factor on the recurrence gate.
    pub c: f64,
    /// What the gating branch goes through.
    pub activation: Activation,
    /// Variance times inputs of the initial output map.
    pub final_w_init_variance_scale: f64,
    /// `exp(-softplus(Λ))`, whose c-th power an open gate keeps, starts between these.
    pub a_init_range: (f64, f64),
}

impl Default for RgLruConfig {
    fn default() -> Self {
        Self {
            lru_width: None,
            num_blocks: 8,
            conv1d_width: 4,
            c: 8.0,
            activation: Activation::GeluTanh,
            final_w_init_variance_scale: 1.0,
            a_init_range: (0.9, 0.999),
        }
    }
}

impl RgLruConfig {
    pub(crate) fn width(&self, d_model: usize) -> usize {
        self.lru_width.unwrap_or(d_model)
    }
}

impl MixerConfig for RgLruConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let width = self.width(d_model);
        let sizes =
            [("lru_width", width), ("num_blocks", self.num_blocks), ("conv1d_width", self.conv1d_width)];
        let mut issues: Vec<Issue> = sizes.iter().filter_map(|&(key, v)| in_range(key, v, 1)).collect();
        if issues.is_empty() {
            issues.extend(divides("num_blocks", self.num_blocks, "lru_width", width));
        }
        let scale = self.final_w_init_variance_scale;
        for (key, value) in [("c", self.c), ("final_w_init_variance_scale", scale)] {
            if !(value > 0.0 && value.is_finite()) {
                issues.push(Issue::new(key, format!("expected a number > 0, found {value}")));
            }
        }
        let (lo, hi) = self.a_init_range;
        if !(lo > 0.0 && lo <= hi && hi < 1.0) {
            let found = format!("expected 0 < low <= high < 1, found {lo} and {hi}");
            issues.push(Issue::new("a_init_range", found).help("(0.9, 0.999) as in the paper"));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(RgLruBlock::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
