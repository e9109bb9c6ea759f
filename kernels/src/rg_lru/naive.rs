//! The definition: the recurrence token by token, in tensor operations that autograd differentiates.

use candle_core::{Result, Tensor};

use super::RgLru;
use crate::host::state_dtype;

/// [`rg_lru`](fn@super::rg_lru), slowly, on any device: the reference for the fast one. Its root has no bound on its
/// gradient.
///
/// # Errors
/// As the fast one.
pub fn rg_lru(args: &RgLru) -> Result<(Tensor, Tensor)> {
    let sizes = args.check()?;
    let dims = &sizes.dims;
    let work = state_dtype(args.x.dtype());
    let tokens = |t: &Tensor| t.to_dtype(work)?.flatten(0, 1);
    let gated = (tokens(args.x)? * sigmoid(&tokens(args.input_gate)?)?)?;
    let softplus = (args.recurrent_param.to_dtype(work)?.exp()? + 1.0)?.log()?;
    let log_a = sigmoid(&tokens(args.recurrent_gate)?)?.broadcast_mul(&(softplus * -sizes.c)?)?;
    let a = log_a.exp()?;
    let root = a.sqr()?.affine(-1.0, 1.0)?.sqrt()?;
    let (mut outputs, mut states) = (Vec::new(), Vec::new());
    for (k, segment) in dims.segments.iter().enumerate() {
        let mut h = match args.initial_state {
            Some(state) => state.get(k)?.to_dtype(work)?,
            None => Tensor::zeros(dims.p, work, gated.device())?,
        };
        for t in segment.start..segment.start + segment.len {
            h = if sizes.starts[k] && t == segment.start {
                gated.get(t)?
            } else {
                ((a.get(t)? * h)? + (root.get(t)? * gated.get(t)?)?)?
            };
            outputs.push(h.clone());
        }
        states.push(h);
    }
    let h = if outputs.is_empty() { gated.zeros_like()? } else { Tensor::stack(&outputs, 0)? };
    let states = if states.is_empty() {
        Tensor::zeros((0, dims.p), work, gated.device())?
    } else {
        Tensor::stack(&states, 0)?
    };
    Ok((h.reshape(args.x.shape())?.to_dtype(args.x.dtype())?, states))
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}
