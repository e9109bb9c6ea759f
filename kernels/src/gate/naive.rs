//! The activations in plain tensor operations, differentiated by autograd.

use candle_core::{Result, Tensor};

use super::Activation;

/// See [`super::activation`].
pub fn activation(x: &Tensor, act: Activation) -> Result<Tensor> {
    match act {
        Activation::Identity => Ok(x.clone()),
        // 1 / (1 + exp(-x)) has an infinite intermediate, and a NaN gradient, for very negative x.
        Activation::Sigmoid => x.affine(0.5, 0.0)?.tanh()?.affine(0.5, 0.5),
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
        Activation::Relu2 => x.relu()?.sqr(),
    }
}

/// See [`super::gated_activation`].
pub fn gated_activation(value: &Tensor, gate: &Tensor, act: Activation) -> Result<Tensor> {
    activation(gate, act)?.mul(value)
}
