//! `mixer = "mamba1"` in a blueprint.

use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use semisep_core::{Init, Issue, Mixer, MixerConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::{KIND, Mamba1};

/// Sizes and options of a Mamba-1 layer; names and defaults as in mamba_ssm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mamba1Config {
    /// State elements a channel (n).
    pub d_state: usize,
    /// Taps of the short convolution (k).
    pub d_conv: usize,
    /// Inner width over d_model.
    pub expand: usize,
    /// Inner width (e), where it is not `expand` times d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_inner: Option<usize>,
    /// Rank of dt (r). Default: d_model / 16, rounded up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dt_rank: Option<usize>,
    /// Heads (h): each has its own maps to dt, B and C, from its own channels (Zamba).
    #[serde(skip_serializing_if = "is_one")]
    pub n_mamba_heads: usize,
    /// Biases on in_proj and out_proj.
    pub bias: bool,
    /// Bias of the convolution.
    pub conv_bias: bool,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// RMS norms on dt, B and C (Jamba, FalconMamba).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norms: Option<ParameterNorms>,
}

/// `norms = { eps = 1e-6, weighted = true }`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParameterNorms {
    /// Added under the root.
    pub eps: f64,
    /// With weights (Jamba) or without (FalconMamba).
    pub weighted: bool,
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

impl Default for Mamba1Config {
    fn default() -> Self {
        Self {
            d_state: 16,
            d_conv: 4,
            expand: 2,
            d_inner: None,
            dt_rank: None,
            n_mamba_heads: 1,
            bias: false,
            conv_bias: true,
            dt_min: 0.001,
            dt_max: 0.1,
            norms: None,
        }
    }
}

impl Mamba1Config {
    /// Inner width (e) at this model width.
    pub fn d_inner(&self, d_model: usize) -> usize {
        self.d_inner.unwrap_or(self.expand.saturating_mul(d_model))
    }

    /// Rank of dt (r) at this model width.
    pub fn dt_rank(&self, d_model: usize) -> usize {
        self.dt_rank.unwrap_or(d_model.div_ceil(16))
    }

    /// Weights of the norms on dt, B and C, where they have any.
    pub(crate) fn norm_weights(&self, r: usize, vb: &VarBuilder) -> Result<[Option<Tensor>; 3]> {
        let weighted = self.norms.as_ref().is_some_and(|n| n.weighted);
        let get = |name: &str, len: usize| {
            weighted.then(|| vb.pp(name).get_f32(len, "weight", Init::ONES)).transpose()
        };
        let n = self.d_state;
        Ok([get("dt_layernorm", r)?, get("b_layernorm", n)?, get("c_layernorm", n)?])
    }
}

impl MixerConfig for Mamba1Config {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let mut issues: Vec<Issue> = [
            in_range("d_state", self.d_state, 1),
            in_range("d_conv", self.d_conv, 1),
            in_range("expand", self.expand, 1),
            in_range("dt_rank", self.dt_rank(d_model), 1),
            in_range("n_mamba_heads", self.n_mamba_heads, 1),
        ]
        .into_iter()
        .flatten()
        .collect();
        if let Some(norms) = self.norms.as_ref().filter(|n| !(n.eps >= 0.0 && n.eps.is_finite())) {
            issues.push(Issue::new("norms", format!("expected eps >= 0, found {}", norms.eps)));
        }
        let key = if self.d_inner.is_some() { "d_inner" } else { "expand" };
        if issues.is_empty() {
            issues.extend(in_range(key, self.d_inner(d_model), 1));
            let width = self.d_inner(d_model);
            issues.extend(divides("n_mamba_heads", self.n_mamba_heads, "the inner width", width));
        }
        if !(self.dt_min > 0.0 && self.dt_max >= self.dt_min && self.dt_max.is_finite()) {
            let found = format!("expected 0 < dt_min <= dt_max, found {} and {}", self.dt_min, self.dt_max);
            issues.push(Issue::new("dt_min", found).help("mamba_ssm uses 0.001 and 0.1"));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Mamba1::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
