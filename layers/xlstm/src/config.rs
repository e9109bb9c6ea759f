//! `mixer = "mlstm"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, check_expand, head_width, in_range};
use serde::{Deserialize, Serialize};

use crate::{KIND, Mlstm};

/// Sizes and options of xLSTM's matrix memory; names and defaults as in xLSTM-7B.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MlstmConfig {
    /// Heads (h).
    pub num_heads: usize,
    /// Width of all queries, and of all keys, over d_model.
    pub qk_dim_factor: f64,
    /// Width of all values over d_model.
    pub v_dim_factor: f64,
    /// The logits of both gates are `cap · tanh(logit / cap)`; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate_soft_cap: Option<f64>,
    /// Biases of the maps (the gates always have one) and of the head norm.
    pub use_bias: bool,
    /// Initial bias of the input gate.
    pub input_gate_bias_init: f64,
    /// Added to the variance in the head norm.
    pub norm_eps: f64,
    /// Added to the normaliser.
    pub eps: f64,
}

impl Default for MlstmConfig {
    fn default() -> Self {
        Self {
            num_heads: 8,
            qk_dim_factor: 0.5,
            v_dim_factor: 1.0,
            gate_soft_cap: Some(15.0),
            use_bias: false,
            input_gate_bias_init: -10.0,
            norm_eps: 1e-6,
            eps: 1e-6,
        }
    }
}

impl MlstmConfig {
    /// Features a head of a query (n) and of a value (p), at this model width.
    pub fn head_dims(&self, d_model: usize) -> (usize, usize) {
        let width = |factor| head_width(d_model, factor, self.num_heads);
        (width(self.qk_dim_factor), width(self.v_dim_factor))
    }
}

impl MixerConfig for MlstmConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let mut issues: Vec<Issue> = in_range("num_heads", self.num_heads, 1).into_iter().collect();
        if issues.is_empty() {
            let factors = [("qk_dim_factor", self.qk_dim_factor), ("v_dim_factor", self.v_dim_factor)];
            issues
                .extend(factors.iter().filter_map(|&(key, f)| check_expand(key, f, d_model, self.num_heads)));
        }
        for (key, eps) in [("norm_eps", self.norm_eps), ("eps", self.eps)] {
            if !(eps >= 0.0 && eps.is_finite()) {
                issues.push(Issue::new(key, format!("expected a number >= 0, found {eps}")));
            }
        }
        if let Some(cap) = self.gate_soft_cap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
            let issue = Issue::new("gate_soft_cap", format!("expected a number > 0, found {cap}"));
            issues.push(issue.help("15 is usual; leave it out to cap nothing"));
        }
        if !self.input_gate_bias_init.is_finite() {
            let found = self.input_gate_bias_init;
            issues
                .push(Issue::new("input_gate_bias_init", format!("expected a finite number, found {found}")));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Mlstm::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
