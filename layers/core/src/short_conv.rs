//! The short causal convolution over each feature that recurrent layers put before their scan.

use candle_core::{Result, Tensor};
use semisep_kernels::{CausalConv1d, causal_conv1d, causal_conv1d_update};

use crate::{Init, VarBuilder};

/// A depthwise causal convolution: `weight` (width, 1, taps), oldest tap first, and `bias` (width).
#[derive(Debug, Clone)]
pub struct ShortConv {
    weight: Tensor, // (width, taps)
    bias: Option<Tensor>,
    silu: bool,
}

impl ShortConv {
    /// Over `width` features, followed by a SiLU or not.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(width: usize, taps: usize, bias: bool, silu: bool, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get_f32((width, 1, taps), "weight", Init::linear(taps))?.squeeze(1)?;
        let bias = bias.then(|| vb.get_f32(width, "bias", Init::linear(taps))).transpose()?;
        Ok(Self { weight, bias, silu })
    }

    /// x (b, l, width), after the inputs `past` (sequences, width, taps - 1), zeros if absent: the outputs, and the last
    /// inputs.
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(
        &self,
        x: &Tensor,
        past: Option<&Tensor>,
        cu_seqlens: Option<&[usize]>,
    ) -> Result<(Tensor, Tensor)> {
        causal_conv1d(CausalConv1d {
            x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            silu: self.silu,
            initial_state: past,
            cu_seqlens,
        })
    }

    /// One token, x (b, width); `past` advances in place.
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn step(&self, x: &Tensor, past: &Tensor) -> Result<Tensor> {
        causal_conv1d_update(past, x, &self.weight, self.bias.as_ref(), self.silu)
    }

    /// The shape of the past inputs of `batch` sequences.
    ///
    /// # Errors
    /// Never: the weight has two dimensions.
    pub fn past_shape(&self, batch: usize) -> Result<(usize, usize, usize)> {
        let (width, taps) = self.weight.dims2()?;
        Ok((batch, width, taps.saturating_sub(1)))
    }
}
