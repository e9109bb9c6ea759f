//! `mixer = "mamba3"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::{KIND, Mamba3};

/// Sizes and options of a Mamba-3 layer; names and defaults as in mamba_ssm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mamba3Config {
    /// State elements a head feature (n).
    pub d_state: usize,
    /// Inner width over d_model.
    pub expand: usize,
    /// Features a head (p).
    pub headdim: usize,
    /// Groups of heads that share B and C before their biases (g).
    pub ngroups: usize,
    /// Part of the state's features that turn.
    pub rope_fraction: f64,
    /// -A is at least this.
    #[serde(rename = "A_floor")]
    pub a_floor: f64,
    /// An RMS norm a head before the gate.
    pub is_outproj_norm: bool,
    /// Several inputs and outputs a head (MIMO).
    pub is_mimo: bool,
    /// How many (r), with `is_mimo`.
    pub mimo_rank: usize,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// Added under the roots of the norms.
    pub norm_eps: f64,
}

impl Default for Mamba3Config {
    fn default() -> Self {
        Self {
            d_state: 128,
            expand: 2,
            headdim: 64,
            ngroups: 1,
            rope_fraction: 0.5,
            a_floor: 1e-4,
            is_outproj_norm: false,
            is_mimo: false,
            mimo_rank: 4,
            dt_min: 0.001,
            dt_max: 0.1,
            norm_eps: 1e-5,
        }
    }
}

impl Mamba3Config {
    /// Inner width (h p) at this model width.
    pub fn d_inner(&self, d_model: usize) -> usize {
        self.expand.saturating_mul(d_model)
    }

    /// Heads (h).
    pub fn n_heads(&self, d_model: usize) -> usize {
        self.d_inner(d_model) / self.headdim.max(1)
    }

    /// Inputs and outputs a head: 1 without `is_mimo`.
    pub fn rank(&self) -> usize {
        if self.is_mimo { self.mimo_rank } else { 1 }
    }

    /// Angles a head (s): pairs among the first `rope_fraction` of the state's features.
    pub fn num_rope_angles(&self) -> usize {
        (self.d_state as f64 * self.rope_fraction) as usize / 2
    }

    fn numbers(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !(self.dt_min > 0.0 && self.dt_max >= self.dt_min && self.dt_max.is_finite()) {
            let found = format!("expected 0 < dt_min <= dt_max, found {} and {}", self.dt_min, self.dt_max);
            issues.push(Issue::new("dt_min", found).help("mamba_ssm uses 0.001 and 0.1"));
        }
        if !(self.rope_fraction > 0.0 && self.rope_fraction <= 1.0) {
            let found = format!("expected more than 0 and at most 1, found {}", self.rope_fraction);
            issues.push(Issue::new("rope_fraction", found).help("mamba_ssm knows 0.5 and 1.0"));
        } else if self.num_rope_angles() == 0 {
            let message = format!("leaves no pair of the {} features of the state to turn", self.d_state);
            issues.push(Issue::new("rope_fraction", message).help("raise it, or d_state"));
        }
        for (key, value) in [("A_floor", self.a_floor), ("norm_eps", self.norm_eps)] {
            if !(value >= 0.0 && value.is_finite()) {
                issues.push(Issue::new(key, format!("expected a number >= 0, found {value}")));
            }
        }
        issues
    }
}

impl MixerConfig for Mamba3Config {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let sizes = [
            ("d_state", self.d_state),
            ("expand", self.expand),
            ("headdim", self.headdim),
            ("ngroups", self.ngroups),
            ("mimo_rank", self.mimo_rank),
        ];
        let mut issues: Vec<Issue> = sizes.iter().filter_map(|&(key, v)| in_range(key, v, 1)).collect();
        if !issues.is_empty() {
            return issues;
        }
        issues.extend(self.numbers());
        let d_inner = self.d_inner(d_model);
        issues.extend(in_range("expand", d_inner, 1));
        issues.extend(divides("headdim", self.headdim, "the inner width", d_inner));
        if issues.is_empty() {
            issues.extend(divides("ngroups", self.ngroups, "the number of heads", self.n_heads(d_model)));
            let keys = self.d_state.saturating_mul(self.ngroups).saturating_mul(self.rank());
            issues.extend(in_range("d_state", keys, 1));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Mamba3::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
