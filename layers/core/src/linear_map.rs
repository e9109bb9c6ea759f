//! A linear map of each token as a layer of its own: `y = x Wᵀ + b`, (b, l, d) -> (b, l, d).
//!
//! Parameters `weight` (d, d) and `bias` (d). Zamba puts one, of each layer's own, behind the block that its layers share.

use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Context, Cost, Issue, Linear, Mixer, MixerConfig, Mixing, ParameterGroup, State, VarBuilder};

const KIND: &str = "linear";

/// `mixer = "linear"` in a blueprint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinearMapConfig {
    /// Whether it has a bias.
    #[serde(default)]
    pub bias: bool,
}

impl MixerConfig for LinearMapConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, _: usize) -> Vec<Issue> {
        Vec::new()
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        let map = Linear::new(d_model, d_model, self.bias, &vb)?;
        let (groups, element) = (vb.groups(), vb.dtype().size_in_bytes());
        Ok(Box::new(LinearMap { map, bias: self.bias, d_model, groups, element }))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

/// The layer.
struct LinearMap {
    map: Linear,
    bias: bool,
    d_model: usize,
    groups: Vec<ParameterGroup>,
    element: usize,
}

impl Mixer for LinearMap {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let y = self.map.forward(x)?;
        ctx.leave(&[], &lengths)?;
        Ok(y)
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let b = x.dims2()?.0;
        state.check(KIND, b)?;
        let y = self.map.forward(x)?;
        state.advance(&vec![1; b]);
        Ok(y)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        Ok(State::new(KIND, batch))
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        Cost::linear(batch * seqlen, self.d_model, self.d_model, self.bias, self.element)
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, _: &Tensor) -> Result<Option<Mixing>> {
        Ok(None)
    }
}
