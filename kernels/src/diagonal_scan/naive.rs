//! The definition: the recurrence token by token, in tensor operations that autograd differentiates.

use candle_core::{Result, Tensor};

use super::DiagonalScan;
use crate::host::state_dtype;

/// [`diagonal_scan`](fn@super::diagonal_scan), slowly, on any device: the reference for the fast one.
///
/// # Errors
/// As the fast one.
pub fn diagonal_scan(args: &DiagonalScan) -> Result<(Tensor, Tensor)> {
    let dims = args.check()?;
    let work = state_dtype(args.x.dtype());
    let xs = args.x.to_dtype(work)?.flatten(0, 1)?;
    let a = args.a.to_dtype(work)?;
    let decays = dims.varying.then(|| a.flatten(0, 1)).transpose()?;
    let mut outputs: Vec<Option<Tensor>> = vec![None; dims.b * dims.l];
    let mut states = Vec::new();
    for (k, segment) in dims.segments.iter().enumerate() {
        let mut h = match args.initial_state {
            Some(state) => state.get(k)?.to_dtype(work)?,
            None => Tensor::zeros(&dims.states_shape()[1..], work, xs.device())?,
        };
        for i in 0..segment.len {
            let t = segment.start + if dims.reverse { segment.len - 1 - i } else { i };
            let a = decays.as_ref().map_or(Ok(a.clone()), |a| a.get(t))?;
            h = (times(&a, &h)? + xs.get(t)?)?;
            outputs[t] = Some(h.clone());
        }
        states.push(h);
    }
    let outputs: Vec<Tensor> = outputs.into_iter().flatten().collect();
    let h = if outputs.is_empty() { xs.zeros_like()? } else { Tensor::stack(&outputs, 0)? };
    let states = if states.is_empty() {
        Tensor::zeros(dims.states_shape(), work, xs.device())?
    } else {
        Tensor::stack(&states, 0)?
    };
    Ok((h.reshape(args.x.shape())?.to_dtype(args.x.dtype())?, states))
}

/// `a h` of real numbers (p) or complex ones (2, p).
fn times(a: &Tensor, h: &Tensor) -> Result<Tensor> {
    if h.rank() == 1 {
        return a * h;
    }
    let (ar, ai, hr, hi) = (a.get(0)?, a.get(1)?, h.get(0)?, h.get(1)?);
    let re = ((&ar * &hr)? - (&ai * &hi)?)?;
    let im = ((&ar * &hi)? + (&ai * &hr)?)?;
    Tensor::stack(&[re, im], 0)
}
