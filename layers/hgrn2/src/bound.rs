//! Forget gates between a lower bound and 1.
//!
//! ```text
//! p = softmax(lower_bounds) over the layers      β_i = Σ_{0<j≤i} p_j        β_0 = 0
//! f = β + (1 - β) σ(z)                           g = ln f                   k = 1 - f = (1 - β) σ(-z)
//! ```

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor};
use semisep_core::{Init, ParameterGroup, VarBuilder, softplus};
use semisep_kernels::{Activation, activation, state_dtype};

/// The lower bound of one layer's forget gates; none in the first layer, and where bounds are not asked for.
pub(crate) struct LowerBound {
    /// Of all layers (layers, d), and the index of this one.
    logits: Option<(Tensor, usize)>,
    /// ln β and 1 - β, kept where the bounds are not trained.
    known: OnceLock<(Tensor, Tensor)>,
}

impl LowerBound {
    /// The bound of the layer that `vb` stands in. A layer that stands alone is the first.
    pub(crate) fn new(width: usize, wanted: bool, vb: &VarBuilder) -> Result<Self> {
        let logits = match vb.place().filter(|_| wanted) {
            None => None,
            Some((index, layers)) => {
                let group = ParameterGroup::scale("lower_bounds", (layers, width), Init::ZEROS);
                Some((vb.get_common(group)?, index)).filter(|_| index > 0)
            }
        };
        Ok(Self { logits, known: OnceLock::new() })
    }

    /// ln β and 1 - β, (d) each.
    fn bound(&self) -> Result<Option<(Tensor, Tensor)>> {
        let Some((logits, index)) = &self.logits else { return Ok(None) };
        if let Some(known) = self.known.get() {
            return Ok(Some(known.clone()));
        }
        let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(0)?)?.exp()?;
        let total = shifted.sum(0)?;
        let layers = logits.dim(0)?;
        let counted: Vec<f32> = (0..layers).map(|j| f32::from(u8::from((1..=*index).contains(&j)))).collect();
        let counted = Tensor::from_vec(counted, (layers, 1), logits.device())?.to_dtype(logits.dtype())?;
        let share = |rows: &Tensor| shifted.broadcast_mul(rows)?.sum(0)? / &total;
        // The rest, summed for itself: 1 - β cancels where β is near 1.
        let found = (share(&counted)?.log()?, share(&counted.affine(-1.0, 1.0)?)?);
        if !logits.track_op() {
            let _ = self.known.set(found.clone());
        }
        Ok(Some(found))
    }

    /// Log decays and keys from the gates' logits (..., d).
    pub(crate) fn gates(&self, logits: &Tensor, dtype: DType) -> Result<(Tensor, Tensor)> {
        let z = logits.to_dtype(state_dtype(dtype))?;
        let open = softplus(&z.neg()?)?.neg()?; // ln σ(z)
        let key = activation(&z.neg()?, Activation::Sigmoid)?;
        let Some((log_bound, rest)) = self.bound()? else { return Ok((open, key)) };
        let open = open.broadcast_add(&rest.log()?)?;
        // ln(β + exp(open)) from the greater of the two: near 1 a difference of large logarithms would cancel.
        let apart = open.broadcast_sub(&log_bound)?.abs()?.neg()?;
        let log_decay = (open.broadcast_maximum(&log_bound)? + (apart.exp()? + 1.0)?.log()?)?;
        Ok((log_decay, key.broadcast_mul(&rest)?))
    }
}
