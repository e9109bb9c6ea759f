//! Elementwise activations and the gated product of MLPs and mixers: `act(gate) · value`.
//!
//! Sources: Shazeer 2020 (gated linear units); Hendrycks and Gimpel 2016 (GELU); So et al. 2021 (squared ReLU).

pub(crate) mod naive;

use candle_core::{Result, Tensor, bail};

/// An elementwise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x`
    Identity,
    /// `σ(x) = 1 / (1 + exp(-x))`
    Sigmoid,
    /// `x σ(x)`, also called swish.
    Silu,
    /// `x Φ(x)`, by the error function.
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`].
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)²`
    Relu2,
}

/// `act(x)`, elementwise, in x's shape and dtype. Differentiable.
///
/// # Errors
/// If `x` is not of a float dtype.
pub fn activation(x: &Tensor, act: Activation) -> Result<Tensor> {
    if !x.dtype().is_float() {
        bail!("activation: x is {:?}, expected a float dtype", x.dtype());
    }
    naive::activation(x, act)
}

/// `act(gate) * value`, elementwise, for tensors of one shape and dtype. Differentiable in both.
///
/// # Errors
/// If shapes or dtypes differ or are not floats.
pub fn gated_activation(value: &Tensor, gate: &Tensor, act: Activation) -> Result<Tensor> {
    if value.dims() != gate.dims() || value.dtype() != gate.dtype() || !value.dtype().is_float() {
        bail!(
            "gated_activation: gate is {:?} of {:?}, expected {:?} of {:?}, as value, and floats",
            gate.dtype(),
            gate.shape(),
            value.dtype(),
            value.shape()
        );
    }
    naive::gated_activation(value, gate, act)
}
