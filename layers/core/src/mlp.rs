//! The channel mixer: two linear maps around an activation, gated or plain.
//!
//! ```text
//! gated:  [v | g] = fc1 x      y = fc2 (v ⊙ act(m g))     (Shazeer 2020); m = gate_multiplier, 1 but in Falcon-H1
//! plain:  y = fc2 act(fc1 x)
//! ```
//! Names and the order [value, gate] in fc1 as in mamba_ssm's `GatedMLP`; unfused, `up_proj` (value), `gate_proj` and
//! `down_proj` as in Llama. An adapter's maps are `adapter.0` and `adapter.1`.

use candle_core::{D, Result, Tensor};
use schemars::JsonSchema;
use semisep_kernels::{activation, gated_activation};
use serde::{Deserialize, Serialize};

use crate::{
    Activation, Context, Cost, Init, Issue, Linear, Mixer, MixerConfig, Mixing, ParameterGroup, State,
    VarBuilder, config::in_range, in_blocks,
};

/// `mixer = "mlp"` in a blueprint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// Hidden width. Default: 4 d_model plain, 8/3 d_model gated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_intermediate: Option<usize>,
    /// Hidden width is rounded up to a multiple of this (mamba_ssm: 128).
    #[serde(default = "one")]
    pub multiple_of: usize,
    /// Whether half of fc1 gates the other half.
    #[serde(default = "yes")]
    pub gated: bool,
    /// Whether value and gate are one map, `fc1`; otherwise the maps are `up_proj`, `gate_proj` and `down_proj`.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub fused: bool,
    /// The activation.
    #[serde(default)]
    pub activation: Activation,
    /// Factor on the gate before the activation (Falcon-H1's `mlp_multipliers[0]`).
    #[serde(default = "unit", skip_serializing_if = "is_unit")]
    pub gate_multiplier: f64,
    /// Biases on both maps.
    #[serde(default)]
    pub bias: bool,
    /// Rank of a map added to fc1 (LoRA), of the layer's own also where layers share their parameters (Zamba2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_rank: Option<usize>,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn unit() -> f64 {
    1.0
}

fn is_unit(factor: &f64) -> bool {
    *factor == 1.0
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self {
            d_intermediate: None,
            multiple_of: 1,
            gated: true,
            fused: true,
            activation: Activation::Silu,
            gate_multiplier: unit(),
            bias: false,
            adapter_rank: None,
        }
    }
}

impl MlpConfig {
    /// The hidden width at this model width.
    pub fn hidden(&self, d_model: usize) -> usize {
        let default = if self.gated { 8 * d_model / 3 } else { 4 * d_model };
        self.d_intermediate.unwrap_or(default).next_multiple_of(self.multiple_of.max(1))
    }
}

impl MixerConfig for MlpConfig {
    fn kind(&self) -> &'static str {
        "mlp"
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let hidden = in_range("d_intermediate", self.d_intermediate.unwrap_or(d_model), 1);
        let mut issues: Vec<Issue> =
            hidden.into_iter().chain(in_range("multiple_of", self.multiple_of, 1)).collect();
        issues.extend(self.adapter_rank.and_then(|rank| in_range("adapter_rank", rank, 1)));
        if self.adapter_rank.is_some() && self.gated && !self.fused {
            let issue =
                Issue::new("adapter_rank", "`adapter_rank` beside `fused = false`: expected one of them");
            issues.push(issue.help("the adapter is one of value and gate together"));
        }
        let factor = self.gate_multiplier;
        if !factor.is_finite() {
            issues.push(Issue::new("gate_multiplier", format!("expected a number, found {factor}")));
        } else if factor != 1.0 && !self.gated {
            let issue = Issue::new("gate_multiplier", "`gate_multiplier` without a gate");
            issues.push(issue.help("set gated = true, or leave it out"));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Mlp::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

/// The layer.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// Value and gate, or only the value where the gate is a map of its own.
    fc1: Linear,
    gate: Option<Linear>,
    fc2: Linear,
    /// Down, up.
    adapter: Option<[Linear; 2]>,
    d_model: usize,
    hidden: usize,
    config: MlpConfig,
    groups: Vec<ParameterGroup>,
    element: usize,
}

impl Mlp {
    /// Parameters `fc1`, `fc2`; or `up_proj`, `gate_proj`, `down_proj`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &MlpConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.hidden(d_model);
        let wide = if config.gated && config.fused { 2 * hidden } else { hidden };
        let [up, gate, down] = match config.fused {
            true => ["fc1", "", "fc2"],
            false => ["up_proj", "gate_proj", "down_proj"],
        };
        let map = |inputs, outputs, name| Linear::new(inputs, outputs, config.bias, &vb.pp(name));
        Ok(Self {
            fc1: map(d_model, wide, up)?,
            gate: (config.gated && !config.fused).then(|| map(d_model, hidden, gate)).transpose()?,
            fc2: map(hidden, d_model, down)?,
            adapter: config.adapter_rank.map(|rank| adapter(d_model, rank, wide, vb)).transpose()?,
            d_model,
            hidden,
            config: config.clone(),
            groups: vb.groups(),
            element: vb.dtype().size_in_bytes(),
        })
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = self.fc1.forward(x)?; // (..., 2 hidden) or (..., hidden)
        if let Some([down, up]) = &self.adapter {
            h = (h + up.forward(&down.forward(x)?)?)?;
        }
        let h = if let Some(gate) = &self.gate {
            gated_activation(&h, &self.scaled(gate.forward(x)?)?, self.config.activation.into())?
        } else if self.config.gated {
            let value = h.narrow(D::Minus1, 0, self.hidden)?;
            let gate = h.narrow(D::Minus1, self.hidden, self.hidden)?;
            gated_activation(&value, &self.scaled(gate)?, self.config.activation.into())?
        } else {
            activation(&h, self.config.activation.into())?
        };
        self.fc2.forward(&h)
    }

    fn scaled(&self, gate: Tensor) -> Result<Tensor> {
        let factor = self.config.gate_multiplier;
        if factor == 1.0 { Ok(gate) } else { gate * factor }
    }
}

/// A map of low rank beside fc1: nothing at first, as in LoRA.
fn adapter(d_model: usize, rank: usize, wide: usize, vb: &VarBuilder) -> Result<[Linear; 2]> {
    let vb = vb.own().pp("adapter");
    let up = Linear::with_init(rank, wide, false, Init::ZEROS, &vb.pp(1))?;
    Ok([Linear::new(d_model, rank, false, &vb.pp(0))?, up])
}

impl Mixer for Mlp {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, x, ctx, self.fc1.weight().track_op(), &|x, ctx| {
            let (b, l, _) = x.dims3()?;
            let lengths = ctx.check("mlp", b, l)?;
            let y = self.apply(x)?;
            ctx.leave(&[], &lengths)?;
            Ok(y)
        })
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let b = x.dims2()?.0;
        state.check("mlp", b)?;
        let y = self.apply(x)?;
        state.advance(&vec![1; b]);
        Ok(y)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        Ok(State::new("mlp", batch))
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, wide) = (batch * seqlen, if self.config.gated { 2 } else { 1 } * self.hidden);
        let rank = self.config.adapter_rank.unwrap_or(0);
        Cost::linear(rows, self.d_model, wide, self.config.bias, self.element)
            + Cost::linear(rows, self.d_model, rank, false, self.element)
            + Cost::linear(rows, rank, wide, false, self.element)
            + Cost::linear(rows, self.hidden, self.d_model, self.config.bias, self.element)
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, _: &Tensor) -> Result<Option<Mixing>> {
        Ok(None)
    }
}
