//! `mixer = "s5"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::ssm::Core;
use crate::{KIND, S5};

/// Largest block whose eigenvectors are computed at initialisation: the time grows with its cube.
const MAX_BLOCK: usize = 2048;

/// Sizes and options of an S5 layer, named as in lindermanlab/S5 where it names them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct S5Config {
    /// State size; with `conj_sym` half of it is held, the other half being its conjugate.
    pub d_state: usize,
    /// Blocks of the HiPPO matrix that the dynamics start from.
    pub blocks: usize,
    /// States come in conjugate pairs, of which one is held.
    pub conj_sym: bool,
    /// Keeps the real parts of the eigenvalues at or below -1e-4.
    pub clip_eigs: bool,
    /// Also scans from the end to the start. Such a layer sees the future: it has no state and no steps.
    pub bidirectional: bool,
    /// How the continuous system becomes a discrete one.
    pub discretization: Discretization,
    /// How the output map is drawn.
    #[serde(rename = "C_init")]
    pub c_init: CInit,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// Factor on all step sizes: another sampling rate than in training.
    pub step_rescale: f64,
    /// What the time between two tokens is.
    pub dt: Intervals,
    /// What follows the state-space model.
    pub activation: Activation,
    /// A norm and a residual connection of the layer's own, as in the reference's sequence layer: `true` norms the
    /// input, `false` the sum. Absent: neither, the stack around has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prenorm: Option<bool>,
    /// Added under the root of that norm.
    pub norm_eps: f64,
    /// Factor on the learning rate of eigenvalues, step sizes and the input map.
    pub ssm_lr_scale: f64,
}

impl Default for S5Config {
    fn default() -> Self {
        Self {
            d_state: 64,
            blocks: 1,
            conj_sym: true,
            clip_eigs: false,
            bidirectional: false,
            discretization: Discretization::Zoh,
            c_init: CInit::TruncStandardNormal,
            dt_min: 1e-3,
            dt_max: 0.1,
            step_rescale: 1.0,
            dt: Intervals::Fixed,
            activation: Activation::HalfGlu1,
            prenorm: None,
            norm_eps: 1e-6,
            ssm_lr_scale: 0.25,
        }
    }
}

/// From continuous to discrete time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Discretization {
    /// Zero-order hold: the input is constant between tokens.
    Zoh,
    /// The bilinear (Tustin) rule.
    Bilinear,
}

/// Initial output map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CInit {
    /// Truncated normal with variance 1 / P a row, rotated into the eigenbasis.
    TruncStandardNormal,
    /// Truncated normal with variance 1 / (P d), rotated into the eigenbasis.
    LecunNormal,
    /// Normal with variance 1/2 in each part, as it is.
    ComplexNormal,
}

/// The time between tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Intervals {
    /// One unit.
    Fixed,
    /// `softplus(dt_proj u)`, 1 at the start: the token says how long it lasts.
    Projected,
    /// Given by the caller under the name `intervals` in the context's shared tensors, (b, l, 1): irregular samples.
    Given,
}

/// What follows the state-space model, as in the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `out1(g) ⊙ σ(out2(g))`, `g = gelu(y)`
    FullGlu,
    /// `g ⊙ σ(out2(g))`
    HalfGlu1,
    /// `y ⊙ σ(out2(g))`
    HalfGlu2,
    /// `g`
    Gelu,
    /// `y`
    None,
}

impl S5Config {
    /// States held (P).
    pub(crate) fn held(&self) -> usize {
        if self.conj_sym { self.d_state / 2 } else { self.d_state }
    }

    /// Whether nothing surrounds the state-space model, whose parameters then have no prefix.
    pub(crate) fn bare(&self) -> bool {
        self.activation == Activation::None && self.prenorm.is_none()
    }

    fn ranges(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        let positive = |key: &str, value: f64| {
            (!(value > 0.0 && value.is_finite()))
                .then(|| Issue::new(key, format!("expected a number > 0, found {value}")))
        };
        issues.extend(positive("dt_min", self.dt_min));
        issues.extend(positive("step_rescale", self.step_rescale));
        issues.extend(positive("ssm_lr_scale", self.ssm_lr_scale));
        if !(self.dt_max >= self.dt_min && self.dt_max.is_finite()) {
            let found = format!("expected at least dt_min = {}, found {}", self.dt_min, self.dt_max);
            issues.push(Issue::new("dt_max", found));
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps.is_finite()) {
            issues.push(Issue::new("norm_eps", format!("expected a number >= 0, found {}", self.norm_eps)));
        }
        issues
    }
}

impl MixerConfig for S5Config {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn unreceived(&self, name: &str) -> Option<Issue> {
        let message = format!("no layer of a stack hands on `{name}`: whoever calls the layer gives them");
        Some(Issue::new("dt", message).help("within a model, leave `dt` out"))
    }

    fn check(&self, _: usize) -> Vec<Issue> {
        let mut issues: Vec<Issue> = [("d_state", self.d_state), ("blocks", self.blocks)]
            .iter()
            .filter_map(|&(key, v)| in_range(key, v, 1))
            .collect();
        issues.extend(self.ranges());
        if issues.is_empty() {
            issues.extend(divides("blocks", self.blocks, "d_state", self.d_state));
        }
        if issues.is_empty() {
            let block = self.d_state / self.blocks;
            if self.conj_sym && !block.is_multiple_of(2) {
                let found = format!("expected pairs of states in each block, found {block} states");
                issues
                    .push(Issue::new("d_state", found).help("an even d_state / blocks, or conj_sym = false"));
            }
            if block > MAX_BLOCK {
                let found = format!("expected blocks of at most {MAX_BLOCK} states, found {block}");
                issues.push(
                    Issue::new("blocks", found)
                        .help(format!("blocks = {}", self.d_state.div_ceil(MAX_BLOCK))),
                );
            }
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(S5::new(d_model, self, &vb)?))
    }

    /// One state that every bank reads through its own `C` (banks, d, P, 2) and `D` (banks, d); nothing follows it,
    /// whatever `activation` and `prenorm` say.
    fn build_banks(&self, d_model: usize, banks: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Core::new(d_model, self, Some(banks), &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
