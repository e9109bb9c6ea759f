//! The definition: the recurrence token by token, in tensor operations that autograd differentiates.

use candle_core::{Result, Tensor};

use super::DecayScan;
use crate::host::state_dtype;
use crate::selective_scan::naive::stack_or_empty;

/// [`decay_scan`](fn@super::decay_scan), slowly and without chunks, on any device: the reference for the fast ones.
///
/// # Errors
/// As the fast one.
pub fn decay_scan(args: &DecayScan) -> Result<(Tensor, Tensor)> {
    let dims = args.check()?;
    let work = state_dtype(args.v.dtype());
    let tokens = |t: &Tensor| t.to_dtype(work)?.flatten(0, 1); // (b, l, ..) -> (b l, ..)
    let (qs, ks, values) = (tokens(args.q)?, tokens(args.k)?, tokens(args.v)?);
    let decays = tokens(args.log_decay)?.exp()?;
    let bonus = args.bonus.map(|u| u.to_dtype(work)?.unsqueeze(2)).transpose()?; // (h, n, 1)
    let (mut outputs, mut states) = (Vec::new(), Vec::new());
    for (row, segment) in dims.segments.iter().enumerate() {
        let mut s = match args.state {
            Some(state) => state.get(row)?.to_dtype(work)?,
            None => Tensor::zeros((dims.h, dims.n, dims.p), work, values.device())?,
        };
        for t in segment.start..segment.start + segment.len {
            let column = |x: &Tensor| x.get(t)?.unsqueeze(2); // (h, n, 1)
            let input = column(&ks)?.broadcast_mul(&values.get(t)?.unsqueeze(1)?)?; // k vᵀ, (h, n, p)
            let next = (s.broadcast_mul(&column(&decays)?)? + &input)?;
            let read = match &bonus {
                Some(u) => (s + input.broadcast_mul(u)?)?,
                None => next.clone(),
            };
            outputs.push(read.broadcast_mul(&column(&qs)?)?.sum(1)?);
            s = next;
        }
        states.push(s);
    }
    let y = stack_or_empty(&outputs, &values.reshape(args.v.shape())?)?;
    let states = if states.is_empty() {
        Tensor::zeros((0, dims.h, dims.n, dims.p), work, values.device())?
    } else {
        Tensor::stack(&states, 0)?
    };
    Ok((y.to_dtype(args.v.dtype())?, states))
}
