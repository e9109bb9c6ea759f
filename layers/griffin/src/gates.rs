//! Block-diagonal linear maps.

use std::sync::OnceLock;

use candle_core::{D, DType, Result, Tensor};
use semisep_core::{Init, VarBuilder};

/// `y = x W + b` with W of blocks on the diagonal: weight (blocks, in, out), bias (blocks, out).
pub(crate) struct BlockDiagonal {
    weight: Tensor,
    bias: Tensor,
    /// The weight in the dtype of the arithmetic, kept where it is not trained.
    wide: OnceLock<Tensor>,
}

impl BlockDiagonal {
    pub(crate) fn new(width: usize, blocks: usize, name: &str, vb: &VarBuilder) -> Result<Self> {
        let size = width / blocks;
        let init = Init::Normal { std: (size as f64).recip().sqrt() };
        Ok(Self {
            weight: vb.get((blocks, size, size), &format!("{name}_weight"), init)?,
            bias: vb.get_f32((blocks, size), &format!("{name}_bias"), Init::ZEROS)?,
            wide: OnceLock::new(),
        })
    }

    fn weight(&self, dtype: DType) -> Result<Tensor> {
        match self.wide.get() {
            Some(wide) if wide.dtype() == dtype => Ok(wide.clone()),
            _ => {
                let wide = self.weight.to_dtype(dtype)?;
                if !self.weight.track_op() {
                    let _ = self.wide.set(wide.clone());
                }
                Ok(wide)
            }
        }
    }

    /// (.., width) -> (.., width), in f32 or f64.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.elem_count() == 0 {
            return Ok(x.clone());
        }
        let (blocks, size, _) = self.weight.dims3()?;
        let rows = x.elem_count() / x.dim(D::Minus1)?;
        let apart = x.reshape((rows, blocks, size))?.transpose(0, 1)?.contiguous()?; // (blocks, rows, size)
        let y = apart.matmul(&self.weight(x.dtype())?)?.transpose(0, 1)?;
        y.broadcast_add(&self.bias.to_dtype(x.dtype())?)?.reshape(x.shape())
    }
}
