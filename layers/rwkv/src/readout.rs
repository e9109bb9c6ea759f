//! What follows a scan over heads: the norm of each head, and the output map.

use candle_core::{Result, Tensor};
use semisep_core::{Init, Linear, VarBuilder};
use semisep_kernels::group_norm;

use crate::init;

/// `ln_x` and `output`.
pub(crate) struct Readout {
    weight: Tensor, // (h p)
    bias: Tensor,   // (h p)
    eps: f64,
    p: usize,
    output: Linear,
}

impl Readout {
    /// Over `width` features in heads of `p`.
    pub(crate) fn new(
        d_model: usize,
        (width, p): (usize, usize),
        eps: f64,
        depth: f64,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let ln = vb.pp("ln_x");
        Ok(Self {
            weight: ln.get_f32(width, "weight", init::ln_x(depth))?,
            bias: ln.get_f32(width, "bias", Init::ZEROS)?,
            eps,
            p,
            output: Linear::with_init(width, d_model, false, Init::ZEROS, &vb.pp("output"))?,
        })
    }

    /// The norm of each head: (..., h, p) -> (..., h p).
    pub(crate) fn norm(&self, y: &Tensor) -> Result<Tensor> {
        let y = y.flatten_from(y.rank() - 2)?;
        group_norm(&y, Some(&self.weight), Some(&self.bias), self.eps, self.p)
    }

    /// The output map, in the dtype of `like`: (..., h p) -> (..., d).
    pub(crate) fn output(&self, y: &Tensor, like: &Tensor) -> Result<Tensor> {
        self.output.forward(&y.to_dtype(like.dtype())?)
    }
}
