//! The linear map, named as in checkpoints: `weight` (out, in), `bias` (out).

use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use semisep_kernels::Matrix;
use serde::{Deserialize, Serialize};

use crate::{Init, VarBuilder};

/// `y = x Wᵀ + bias`, (..., in) -> (..., out).
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// With PyTorch's default initialisation.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(inputs: usize, outputs: usize, bias: bool, vb: &VarBuilder) -> Result<Self> {
        Self::with_init(inputs, outputs, bias, Init::linear(inputs), vb)
    }

    /// With this initialisation of the weight.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn with_init(inputs: usize, outputs: usize, bias: bool, init: Init, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.matrix((outputs, inputs), "weight", init)?;
        let bias = bias.then(|| vb.get_f32(outputs, "bias", Init::linear(inputs))).transpose()?;
        Ok(Self { weight, bias })
    }

    /// A map of tensors at hand: `weight` (out, in), `bias` (out).
    pub fn from_tensors(weight: impl Into<Matrix>, bias: Option<Tensor>) -> Self {
        Self { weight: weight.into(), bias }
    }

    /// (..., in) -> (..., out).
    ///
    /// # Errors
    /// If the last dimension is not `in`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.apply(x, self.bias.as_ref())
    }

    /// The weight, (out, in), in whatever form it is held.
    pub fn weight(&self) -> &Matrix {
        &self.weight
    }
}

/// An activation function, by its name in the field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(x)`, also called swish.
    #[default]
    Silu,
    /// `x · Φ(x)`, exact.
    Gelu,
    /// The tanh approximation of gelu.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)²`
    Relu2,
}

impl From<Activation> for semisep_kernels::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Silu => Self::Silu,
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::Relu => Self::Relu,
            Activation::Relu2 => Self::Relu2,
        }
    }
}
