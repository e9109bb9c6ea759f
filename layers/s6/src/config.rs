//! `mixer = "s6"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, in_range};
use serde::{Deserialize, Serialize};

use crate::{KIND, S6};

/// Sizes and options of a selective state space; names and defaults as in mamba_ssm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct S6Config {
    /// State elements a channel (n).
    pub d_state: usize,
    /// Rank of dt (r). Default: d_model / 16, rounded up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dt_rank: Option<usize>,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// A linear map before the scan.
    pub in_proj: bool,
    /// A linear map after the scan.
    pub out_proj: bool,
}

impl Default for S6Config {
    fn default() -> Self {
        Self { d_state: 16, dt_rank: None, dt_min: 0.001, dt_max: 0.1, in_proj: false, out_proj: false }
    }
}

impl S6Config {
    /// Rank of dt (r) at this model width.
    pub fn dt_rank(&self, d_model: usize) -> usize {
        self.dt_rank.unwrap_or(d_model.div_ceil(16))
    }
}

impl MixerConfig for S6Config {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let sizes = [in_range("d_state", self.d_state, 1), in_range("dt_rank", self.dt_rank(d_model), 1)];
        let mut issues: Vec<Issue> = sizes.into_iter().flatten().collect();
        if issues.is_empty() {
            issues.extend(in_range("d_state", d_model.saturating_mul(self.d_state), 1));
        }
        if !(self.dt_min > 0.0 && self.dt_max >= self.dt_min && self.dt_max.is_finite()) {
            let found = format!("expected 0 < dt_min <= dt_max, found {} and {}", self.dt_min, self.dt_max);
            issues.push(Issue::new("dt_min", found).help("mamba_ssm uses 0.001 and 0.1"));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(S6::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
