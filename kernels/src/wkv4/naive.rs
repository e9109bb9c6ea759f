//! The definition: the recurrence token by token, in tensor operations that autograd differentiates.

use candle_core::{Result, Tensor};

use super::{Wkv4, wkv4_state};
use crate::host::state_dtype;
use crate::selective_scan::naive::stack_or_empty;

/// [`wkv4`](fn@super::wkv4), slowly, on any device: the reference for the fast one.
///
/// # Errors
/// As the fast one.
pub fn wkv4(args: &Wkv4) -> Result<(Tensor, Tensor)> {
    let dims = args.check()?;
    let (data, device) = (args.v.dtype(), args.v.device());
    let work = state_dtype(data);
    let tokens = |t: &Tensor| t.to_dtype(work)?.flatten(0, 1); // (b l, c)
    let (ks, vs) = (tokens(args.k)?, tokens(args.v)?);
    let (w, u) = (args.w.to_dtype(work)?, args.u.to_dtype(work)?);
    let (mut outputs, mut states) = (Vec::new(), Vec::new());
    for (i, segment) in dims.segments.iter().enumerate() {
        let state = match args.state {
            Some(state) => state.get(i)?.to_dtype(work)?,
            None => wkv4_state(1, dims.c, data, device)?.get(0)?,
        };
        let (mut a, mut b, mut max) = (state.get(0)?, state.get(1)?, state.get(2)?);
        for t in segment.start..segment.start + segment.len {
            let (k, v) = (ks.get(t)?, vs.get(t)?);
            let (old, new) = weights(&max, &(&u + &k)?)?.1;
            outputs.push(((&old * &a)? + (&new * &v)?)?.div(&((&old * &b)? + &new)?)?);
            let (next, (old, new)) = weights(&(&max + &w)?, &k)?;
            a = ((&old * &a)? + (&new * &v)?)?;
            b = ((&old * &b)? + &new)?;
            max = next;
        }
        states.push(Tensor::stack(&[a, b, max], 0)?);
    }
    let y = stack_or_empty(&outputs, &vs)?.reshape(args.v.shape())?;
    let states = match &states[..] {
        [] => Tensor::zeros((0, 3, dims.c), work, device)?,
        states => Tensor::stack(states, 0)?,
    };
    Ok((y.to_dtype(data)?, states))
}

/// The larger exponent, and both exponentials over that of the larger.
fn weights(old: &Tensor, new: &Tensor) -> Result<(Tensor, (Tensor, Tensor))> {
    let max = old.maximum(new)?;
    let scaled = |exponent: &Tensor| (exponent - &max)?.exp();
    let both = (scaled(old)?, scaled(new)?);
    Ok((max, both))
}
