//! The activations in plain tensor operations, differentiated by autograd.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use candle_core::{Result, Tensor};

use super::Activation;

/// See [`super::activation`].
pub fn activation(x: &Tensor, act: Activation) -> Result<Tensor> {
    match act {
        Activation::Identity => Ok(x.clone()),
        // 1 / (1 + exp(-x)) has an infinite intermediate, and a NaN gradient, for very negative x.
        Activation::Sigmoid => x.affine(0.5, 0.0)?.tanh()?.affine(0.5, 0.5),
        Activation::Silu => x.silu(),
        // Not candle's own two, whose derivatives have constants of six digits.
        Activation::Gelu => x * ((x * FRAC_1_SQRT_2)?.erf()? + 1.0)?.affine(0.5, 0.0)?,
        Activation::GeluTanh => {
            let inner = (x * (x.sqr()?.affine(0.044_715, 1.0)?))? * (FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
            x * inner?.tanh()?.affine(0.5, 0.5)?
        }
        Activation::Relu => x.relu(),
        Activation::Relu2 => x.relu()?.sqr(),
        Activation::Exp => x.exp(),
    }
}

/// See [`super::gated_activation`].
pub fn gated_activation(value: &Tensor, gate: &Tensor, act: Activation) -> Result<Tensor> {
    activation(gate, act)?.mul(value)
}
