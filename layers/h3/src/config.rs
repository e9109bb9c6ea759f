//! `mixer = "h3"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Discretization, Issue, Mixer, MixerConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::{H3, KIND};

/// First values of the diagonal system's A.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum H3Init {
    /// `-1/2 + iπn`
    #[default]
    DiagLin,
    /// `-1/2 + i N/π (N/(2n+1) - 1)`
    DiagInv,
}

/// Sizes and options of an H3 layer; names and defaults as in HazyResearch/H3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct H3Config {
    /// Tokens that the shift system remembers, and real state dimensions of a diagonal system (N).
    pub d_state: usize,
    /// Features a head: each head keeps `head_dim²` products of keys and values.
    pub head_dim: usize,
    /// From continuous time to steps.
    pub disc: Discretization,
    /// First values of A.
    pub init: H3Init,
    /// Systems (A, B) that the heads share, head i having system i mod n_ssm. Default: one a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_ssm: Option<usize>,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// Learning rate of A, B and dt over the model's.
    pub lr_scale: f64,
}

impl Default for H3Config {
    fn default() -> Self {
        Self {
            d_state: 64,
            head_dim: 1,
            disc: Discretization::Bilinear,
            init: H3Init::DiagLin,
            n_ssm: None,
            dt_min: 0.001,
            dt_max: 0.1,
            lr_scale: 0.1,
        }
    }
}

impl H3Config {
    /// Heads (h).
    pub fn n_heads(&self, d_model: usize) -> usize {
        d_model / self.head_dim.max(1)
    }
}

impl MixerConfig for H3Config {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let mut issues: Vec<Issue> = in_range("d_state", self.d_state, 2).into_iter().collect();
        if self.d_state % 2 == 1 {
            let found = format!("expected an even number, found {}", self.d_state);
            issues.push(Issue::new("d_state", found).help("states come in pairs of conjugates"));
        }
        let heads = divides("head_dim", self.head_dim, "d_model", d_model);
        if let (None, Some(n_ssm)) = (&heads, self.n_ssm) {
            issues.extend(divides("n_ssm", n_ssm, "the number of heads", self.n_heads(d_model)));
        }
        issues.extend(heads);
        let (lo, hi) = (self.dt_min, self.dt_max);
        if !(lo > 0.0 && hi >= lo && hi.is_finite()) {
            let found = format!("expected 0 < dt_min <= dt_max, found {lo} and {hi}");
            issues.push(Issue::new("dt_min", found).help("H3 uses 0.001 and 0.1"));
        }
        if !(self.lr_scale > 0.0 && self.lr_scale.is_finite()) {
            let found = format!("expected a positive number, found {}", self.lr_scale);
            issues.push(Issue::new("lr_scale", found));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(H3::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
