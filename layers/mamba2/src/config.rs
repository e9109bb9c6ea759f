//! `mixer = "mamba2"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Init, Issue, Mixer, MixerConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::{KIND, Mamba2};

/// Sizes and options of a Mamba-2 layer; names and defaults as in mamba_ssm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mamba2Config {
    /// State elements a head feature (n).
    pub d_state: usize,
    /// Taps of the short convolution (k).
    pub d_conv: usize,
    /// Inner width over d_model.
    pub expand: usize,
    /// Inner width, where it is not `expand` times d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_inner: Option<usize>,
    /// Width of the SSM part; the rest of d_inner is a gated MLP. Default: d_inner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_ssm: Option<usize>,
    /// Features a head (p).
    pub headdim: usize,
    /// Groups of heads that share B and C (g).
    pub ngroups: usize,
    /// Tokens a chunk of the scan.
    pub chunk_size: usize,
    /// Biases on in_proj and out_proj.
    pub bias: bool,
    /// Bias on out_proj, where it is not that of in_proj.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_bias: Option<bool>,
    /// Bias of the convolution.
    pub conv_bias: bool,
    /// The gated norm before out_proj; without it the output is only gated.
    pub rmsnorm: bool,
    /// `norm(y) · silu(z)` instead of `norm(y · silu(z))`.
    pub norm_before_gate: bool,
    /// Factors on what in_proj gives of z, x, B, C and dt (Falcon-H1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssm_multipliers: Option<[f64; 5]>,
    /// Added under the root of the gated norm.
    pub norm_eps: f64,
    /// One skip weight a feature instead of one a head.
    #[serde(rename = "D_has_hdim")]
    pub d_has_hdim: bool,
    /// Bounds of dt after the softplus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dt_limit: Option<(f64, Option<f64>)>,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// -A starts uniform in this range.
    #[serde(rename = "A_init_range")]
    pub a_init_range: (f64, f64),
}

impl Default for Mamba2Config {
    fn default() -> Self {
        Self {
            d_state: 128,
            d_conv: 4,
            expand: 2,
            d_inner: None,
            d_ssm: None,
            headdim: 64,
            ngroups: 1,
            chunk_size: 256,
            bias: false,
            out_bias: None,
            conv_bias: true,
            rmsnorm: true,
            norm_before_gate: false,
            ssm_multipliers: None,
            norm_eps: 1e-5,
            d_has_hdim: false,
            dt_limit: None,
            dt_min: 0.001,
            dt_max: 0.1,
            a_init_range: (1.0, 16.0),
        }
    }
}

impl Mamba2Config {
    /// Inner width at this model width.
    pub fn d_inner(&self, d_model: usize) -> usize {
        self.d_inner.unwrap_or(self.expand.saturating_mul(d_model))
    }

    /// Width of the SSM part.
    pub fn d_ssm(&self, d_model: usize) -> usize {
        self.d_ssm.unwrap_or(self.d_inner(d_model))
    }

    /// Heads (h).
    pub fn n_heads(&self, d_model: usize) -> usize {
        self.d_ssm(d_model) / self.headdim.max(1)
    }

    /// Features that the gated norm takes by themselves.
    pub fn norm_group(&self, d_model: usize) -> usize {
        self.d_ssm(d_model) / self.ngroups.max(1)
    }

    /// Bounds of dt, (0, ∞) where there are none.
    pub fn dt_limit(&self) -> (f64, f64) {
        self.dt_limit.map_or((0.0, f64::INFINITY), |(lo, hi)| (lo, hi.unwrap_or(f64::INFINITY)))
    }

    pub(crate) fn a_init(&self) -> Init {
        let (lo, hi) = self.a_init_range;
        Init::custom(move |shape, rng| (0..shape[0]).map(|_| rng.uniform(lo, hi).ln() as f32).collect())
    }

    fn ranges(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !(self.dt_min > 0.0 && self.dt_max >= self.dt_min && self.dt_max.is_finite()) {
            let found = format!("expected 0 < dt_min <= dt_max, found {} and {}", self.dt_min, self.dt_max);
            issues.push(Issue::new("dt_min", found).help("mamba_ssm uses 0.001 and 0.1"));
        }
        let (lo, hi) = self.dt_limit();
        if !(lo >= 0.0 && lo <= hi) {
            issues.push(Issue::new("dt_limit", format!("expected 0 <= low <= high, found {lo} and {hi}")));
        }
        let (lo, hi) = self.a_init_range;
        if !(lo > 0.0 && lo <= hi && hi.is_finite()) {
            issues.push(Issue::new("A_init_range", format!("expected 0 < low <= high, found {lo} and {hi}")));
        }
        if let Some(factor) = self.ssm_multipliers.iter().flatten().find(|f| !f.is_finite()) {
            issues.push(Issue::new("ssm_multipliers", format!("expected five numbers, found {factor}")));
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps.is_finite()) {
            issues.push(Issue::new("norm_eps", format!("expected a number >= 0, found {}", self.norm_eps)));
        }
        issues
    }
}

impl MixerConfig for Mamba2Config {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let sizes = [
            ("d_state", self.d_state),
            ("d_conv", self.d_conv),
            ("expand", self.expand),
            ("headdim", self.headdim),
            ("ngroups", self.ngroups),
            ("chunk_size", self.chunk_size),
        ];
        let mut issues: Vec<Issue> = sizes.iter().filter_map(|&(key, v)| in_range(key, v, 1)).collect();
        let sizes_fit = issues.is_empty();
        issues.extend(self.ranges());
        if !sizes_fit {
            return issues;
        }
        let (d_inner, d_ssm) = (self.d_inner(d_model), self.d_ssm(d_model));
        let width_key = if self.d_inner.is_some() { "d_inner" } else { "expand" };
        if let Some(issue) = in_range(width_key, d_inner, 1).or_else(|| in_range("d_ssm", d_ssm, 1)) {
            issues.push(issue);
            return issues;
        }
        if d_ssm > d_inner {
            issues.push(Issue::new("d_ssm", format!("expected at most d_inner = {d_inner}, found {d_ssm}")));
        }
        issues.extend(divides("headdim", self.headdim, "the SSM width", d_ssm));
        if issues.is_empty() {
            issues.extend(divides("ngroups", self.ngroups, "the number of heads", self.n_heads(d_model)));
            issues.extend(in_range("d_state", self.d_state.saturating_mul(self.ngroups), 1));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Mamba2::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
