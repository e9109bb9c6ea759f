//! What follows the convolution: an activation, and a map that brings the channels together.

use candle_core::{D, Result, Tensor};
use semisep_core::{Cost, Init, Linear, VarBuilder};
use semisep_kernels::{Activation, activation, gated_activation};

use crate::config::{Format, Options, Pointwise};

pub(crate) struct Output {
    activation: Pointwise,
    map: Option<(Linear, Pointwise)>,
    inputs: usize,
    outputs: usize,
}

impl Output {
    pub(crate) fn new(d_model: usize, options: &Options, vb: &VarBuilder) -> Result<Self> {
        let (inputs, act) = (options.channels * d_model, options.final_act);
        let outputs = if act == Pointwise::Glu { 2 * d_model } else { d_model };
        let vb = vb.pp("output_linear").pp(0);
        let map = match (act, options.format) {
            (Pointwise::None, _) => None,
            (_, Format::Block) => Some(Linear::new(inputs, outputs, true, &vb)?),
            (_, Format::Minimal | Format::MinimalB) => {
                // A convolution of one tap.
                let weight = vb.get((outputs, inputs, 1), "weight", Init::linear(inputs))?.squeeze(2)?;
                let bias = vb.get_f32(outputs, "bias", Init::linear(inputs))?;
                Some(Linear::from_tensors(weight, Some(bias)))
            }
        };
        Ok(Self { activation: options.activation, map: map.map(|m| (m, act)), inputs, outputs })
    }

    /// (.., c, d) -> (.., d)
    pub(crate) fn forward(&self, y: &Tensor) -> Result<Tensor> {
        let y = pointwise(self.activation, &y.flatten_from(D::Minus2)?)?;
        match &self.map {
            Some((map, act)) => pointwise(*act, &map.forward(&y)?),
            None => Ok(y),
        }
    }

    pub(crate) fn cost(&self, rows: usize, size: usize) -> Cost {
        match self.map {
            Some(_) => Cost::linear(rows, self.inputs, self.outputs, true, size),
            None => Cost::default(),
        }
    }
}

fn pointwise(act: Pointwise, y: &Tensor) -> Result<Tensor> {
    match act {
        Pointwise::None | Pointwise::Id => Ok(y.clone()),
        Pointwise::Gelu => activation(y, Activation::Gelu),
        Pointwise::Silu => activation(y, Activation::Silu),
        Pointwise::Relu => activation(y, Activation::Relu),
        Pointwise::Sigmoid => activation(y, Activation::Sigmoid),
        Pointwise::Glu => {
            let half = y.dim(D::Minus1)? / 2;
            let (value, gate) = (y.narrow(D::Minus1, 0, half)?, y.narrow(D::Minus1, half, half)?);
            gated_activation(&value, &gate, Activation::Sigmoid)
        }
    }
}
