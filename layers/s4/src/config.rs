//! `mixer = "s4"` and `mixer = "s4d"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Discretization, Issue, Mixer, MixerConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::{Hippo, S4};

/// Largest state of an initialisation that needs the eigenvectors of a HiPPO matrix.
const MAX_SPECTRAL: usize = 512;

/// What is done to the convolution's output, or to the output map's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pointwise {
    /// Nothing. As `final_act`: there is no output map either.
    None,
    /// Nothing; as `final_act`, after an output map.
    Id,
    /// `x · Φ(x)`, exact.
    Gelu,
    /// `x · sigmoid(x)`
    Silu,
    /// `max(x, 0)`
    Relu,
    /// `sigmoid(x)`
    Sigmoid,
    /// `x · sigmoid(g)`, from twice the width: halves [x | g].
    Glu,
}

/// How a positive number is kept as a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Transform {
    /// `e^x`
    Exp,
    /// `ln(1 + e^x)`
    Softplus,
    /// `max(x, 0) + 1e-4`
    Relu,
    /// `sigmoid(x)`
    Sigmoid,
    /// As it is; values that are not positive are refused when they are used.
    None,
}

/// First values of S4D's A and B.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiagInit {
    /// S4D-Lin: `-1/2 + iπn`, B = 1.
    #[default]
    DiagLin,
    /// S4D-Inv: `-1/2 + i N/π (N/(2n+1) - 1)`, B = 1.
    DiagInv,
    /// S4D-LegS: the diagonal of HiPPO-LegS's normal part, B of HiPPO-LegS in its basis.
    DiagLegs,
}

/// Whose names, shapes and signs the parameters have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `s4.py`: below `layer`, `kernel.{inv_dt, A_real, A_imag, B, C}` and D (channels, d); `A = -f(A_real) - i A_imag`.
    #[default]
    Block,
    /// `s4d.py`: `kernel.{log_dt, log_A_real, A_imag, C}` and D (d); `A = -exp(log_A_real) + i A_imag`, B = 1.
    Minimal,
    /// As `minimal`, with a B of its own, `kernel.B`.
    MinimalB,
}

/// Sizes and options of an S4D layer; names and defaults as in state-spaces/s4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct S4dConfig {
    /// Real state dimensions a channel (N): half as many complex modes.
    pub d_state: usize,
    /// Outputs a channel, which share its state; the output map brings them together.
    pub channels: usize,
    /// Whether a second filter looks ahead.
    pub bidirectional: bool,
    /// After the convolution.
    pub activation: Pointwise,
    /// After the output map; with `none` there is no such map.
    pub final_act: Pointwise,
    /// From continuous time to steps.
    pub disc: Discretization,
    /// First values of A and B.
    pub init: DiagInit,
    /// Systems (A, B) that the channels share, channel i having system i mod n_ssm. Default: one a channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_ssm: Option<usize>,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// One step size a channel, instead of one a mode.
    pub dt_tie: bool,
    /// How step sizes are kept.
    pub dt_transform: Transform,
    /// How the negated real parts of A are kept.
    pub real_transform: Transform,
    /// Every step size times this: 2 for a sequence sampled half as often as in training.
    pub rate: f64,
    /// Learning rate of A, B and dt over the model's.
    pub lr_scale: f64,
    /// Parameter names.
    pub format: Format,
}

impl Default for S4dConfig {
    fn default() -> Self {
        Self {
            d_state: 64,
            channels: 1,
            bidirectional: false,
            activation: Pointwise::Gelu,
            final_act: Pointwise::Glu,
            disc: Discretization::Zoh,
            init: DiagInit::DiagLin,
            n_ssm: None,
            dt_min: 0.001,
            dt_max: 0.1,
            dt_tie: true,
            dt_transform: Transform::Exp,
            real_transform: Transform::Exp,
            rate: 1.0,
            lr_scale: 0.1,
            format: Format::Block,
        }
    }
}

/// Sizes and options of an S4 layer, diagonal plus low rank; names and defaults as in state-spaces/s4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct S4Config {
    /// Real state dimensions a channel (N): half as many complex modes.
    pub d_state: usize,
    /// Outputs a channel, which share its state; the output map brings them together.
    pub channels: usize,
    /// Whether a second filter looks ahead.
    pub bidirectional: bool,
    /// After the convolution.
    pub activation: Pointwise,
    /// After the output map; with `none` there is no such map.
    pub final_act: Pointwise,
    /// Rank of the correction to the diagonal; legt needs 2.
    pub rank: usize,
    /// The HiPPO matrix that A starts as.
    pub init: Hippo,
    /// Systems (A, B, P) that the channels share, channel i having system i mod n_ssm. Default: one a channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_ssm: Option<usize>,
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
    /// One step size a channel, instead of one a mode.
    pub dt_tie: bool,
    /// How step sizes are kept.
    pub dt_transform: Transform,
    /// How the negated real parts of the diagonal are kept.
    pub real_transform: Transform,
    /// Every step size times this: 2 for a sequence sampled half as often as in training.
    pub rate: f64,
    /// Learning rate of A, B and dt over the model's.
    pub lr_scale: f64,
    /// The checkpoint's `l_kernel`: 0 where C is the output matrix itself, else the length L for which C is kept as
    /// `C (1 - Ā^L)`. Sequences up to L then run through the generating function.
    pub l_kernel: usize,
}

impl Default for S4Config {
    fn default() -> Self {
        Self {
            d_state: 64,
            channels: 1,
            bidirectional: false,
            activation: Pointwise::Gelu,
            final_act: Pointwise::Glu,
            rank: 1,
            init: Hippo::Legs,
            n_ssm: None,
            dt_min: 0.001,
            dt_max: 0.1,
            dt_tie: true,
            dt_transform: Transform::Exp,
            real_transform: Transform::Exp,
            rate: 1.0,
            lr_scale: 0.1,
            l_kernel: 0,
        }
    }
}

/// First values of A, B and P.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start {
    Diagonal(DiagInit),
    LowRank { hippo: Hippo, rank: usize },
}

/// What both kinds have in common.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) kind: &'static str,
    pub(crate) d_state: usize,
    pub(crate) channels: usize,
    pub(crate) bidirectional: bool,
    pub(crate) activation: Pointwise,
    pub(crate) final_act: Pointwise,
    pub(crate) disc: Discretization,
    pub(crate) start: Start,
    pub(crate) n_ssm: Option<usize>,
    pub(crate) dt_range: (f64, f64),
    pub(crate) dt_tie: bool,
    pub(crate) dt_transform: Transform,
    pub(crate) real_transform: Transform,
    pub(crate) rate: f64,
    pub(crate) lr_scale: f64,
    pub(crate) format: Format,
    pub(crate) l_kernel: usize,
}

impl S4dConfig {
    pub(crate) fn options(&self) -> Options {
        Options {
            kind: "s4d",
            d_state: self.d_state,
            channels: self.channels,
            bidirectional: self.bidirectional,
            activation: self.activation,
            final_act: self.final_act,
            disc: self.disc,
            start: Start::Diagonal(self.init),
            n_ssm: self.n_ssm,
            dt_range: (self.dt_min, self.dt_max),
            dt_tie: self.dt_tie,
            dt_transform: self.dt_transform,
            real_transform: self.real_transform,
            rate: self.rate,
            lr_scale: self.lr_scale,
            format: self.format,
            l_kernel: 0,
        }
    }
}

impl S4Config {
    pub(crate) fn options(&self) -> Options {
        Options {
            kind: "s4",
            d_state: self.d_state,
            channels: self.channels,
            bidirectional: self.bidirectional,
            activation: self.activation,
            final_act: self.final_act,
            disc: Discretization::Bilinear,
            start: Start::LowRank { hippo: self.init, rank: self.rank },
            n_ssm: self.n_ssm,
            dt_range: (self.dt_min, self.dt_max),
            dt_tie: self.dt_tie,
            dt_transform: self.dt_transform,
            real_transform: self.real_transform,
            rate: self.rate,
            lr_scale: self.lr_scale,
            format: Format::Block,
            l_kernel: self.l_kernel,
        }
    }
}

impl Options {
    /// Complex modes a channel.
    pub(crate) fn modes(&self) -> usize {
        self.d_state / 2
    }

    /// Outputs a channel of one direction.
    pub(crate) fn outputs(&self) -> usize {
        if self.activation == Pointwise::Glu { 2 * self.channels } else { self.channels }
    }

    /// Rows of C.
    pub(crate) fn readouts(&self) -> usize {
        if self.bidirectional { 2 * self.outputs() } else { self.outputs() }
    }

    pub(crate) fn systems(&self, d_model: usize) -> usize {
        self.n_ssm.unwrap_or(d_model)
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let mut issues = Vec::new();
        issues.extend(in_range("d_state", self.d_state, 2));
        issues.extend(in_range("channels", self.channels, 1));
        if self.d_state % 2 == 1 {
            let found = format!("expected an even number, found {}", self.d_state);
            issues.push(Issue::new("d_state", found).help("states come in pairs of conjugates"));
        }
        let spectral = !matches!(self.start, Start::Diagonal(DiagInit::DiagLin | DiagInit::DiagInv));
        if spectral && self.d_state > MAX_SPECTRAL {
            let found = format!("expected at most {MAX_SPECTRAL} with this init, found {}", self.d_state);
            issues.push(Issue::new("d_state", found).help("diag-lin and diag-inv need no eigenvectors"));
        }
        if let Some(n_ssm) = self.n_ssm {
            issues.extend(divides("n_ssm", n_ssm, "d_model", d_model));
        }
        if self.final_act == Pointwise::None && self.channels > 1 {
            let found = format!("{} outputs a channel need an output map", self.channels);
            issues.push(Issue::new("final_act", found).help("use \"glu\" or \"id\""));
        }
        if let Start::LowRank { hippo, rank } = self.start
            && !(hippo.rank()..=4).contains(&rank)
        {
            let found = format!("expected {} to 4 for this init, found {rank}", hippo.rank());
            issues.push(Issue::new("rank", found));
        }
        if self.format != Format::Block {
            issues.extend(self.check_minimal());
        }
        issues.extend(self.ranges());
        issues
    }

    /// What `s4d.py` has no parameters for.
    fn check_minimal(&self) -> Vec<Issue> {
        let exp = [("dt_transform", self.dt_transform), ("real_transform", self.real_transform)];
        let mut issues: Vec<Issue> = (exp.into_iter().filter(|(_, t)| *t != Transform::Exp))
            .map(|(key, t)| Issue::new(key, format!("expected \"exp\" with this format, found {t:?}")))
            .collect();
        if self.n_ssm.is_some() {
            issues.push(
                Issue::new("n_ssm", "this format has one system a channel").help("use format = \"block\""),
            );
        }
        if !self.dt_tie {
            issues.push(
                Issue::new("dt_tie", "this format has one dt a channel").help("use format = \"block\""),
            );
        }
        issues
    }

    fn ranges(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        let (lo, hi) = self.dt_range;
        if !(lo > 0.0 && hi >= lo && hi.is_finite()) {
            let found = format!("expected 0 < dt_min <= dt_max, found {lo} and {hi}");
            issues.push(Issue::new("dt_min", found).help("state-spaces/s4 uses 0.001 and 0.1"));
        }
        if self.dt_transform == Transform::Sigmoid && hi >= 1.0 {
            issues.push(Issue::new("dt_max", format!("a sigmoid stays below 1, found {hi}")));
        }
        for (key, value) in [("rate", self.rate), ("lr_scale", self.lr_scale)] {
            if !(value > 0.0 && value.is_finite()) {
                issues.push(Issue::new(key, format!("expected a positive number, found {value}")));
            }
        }
        issues.extend(in_range("l_kernel", self.l_kernel, 0));
        issues
    }
}

impl MixerConfig for S4dConfig {
    fn kind(&self) -> &'static str {
        "s4d"
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        self.options().check(d_model)
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(S4::diagonal(d_model, self, &vb)?))
    }

    fn build_banks(&self, d_model: usize, banks: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(S4::banks(d_model, banks, self.options(), &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

impl MixerConfig for S4Config {
    fn kind(&self) -> &'static str {
        "s4"
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        self.options().check(d_model)
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(S4::new(d_model, self, &vb)?))
    }

    fn build_banks(&self, d_model: usize, banks: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(S4::banks(d_model, banks, self.options(), &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
