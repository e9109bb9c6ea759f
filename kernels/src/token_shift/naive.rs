//! The definition, in tensor operations that autograd differentiates.

use candle_core::{Result, Tensor};

use super::TokenShift;
use crate::host::state_dtype;

/// [`token_shift`](fn@super::token_shift), slowly, on any device: the reference for the fast one.
///
/// # Errors
/// As the fast one.
pub fn token_shift(args: &TokenShift) -> Result<(Vec<Tensor>, Tensor)> {
    let dims = args.check()?;
    let work = state_dtype(args.x.dtype());
    let x = args.x.to_dtype(work)?.flatten(0, 1)?; // (tokens, d)
    let (mut before, mut last) = (Vec::new(), Vec::new());
    for (i, segment) in dims.segments.iter().enumerate() {
        let state = match args.state {
            Some(state) => state.narrow(0, i, 1)?.to_dtype(work)?,
            None => Tensor::zeros((1, dims.d), work, x.device())?,
        };
        let own = x.narrow(0, segment.start, segment.len)?;
        let all = Tensor::cat(&[&state, &own], 0)?;
        before.push(all.narrow(0, 0, segment.len)?);
        last.push(all.narrow(0, segment.len, 1)?);
    }
    if last.is_empty() {
        return Ok((vec![args.x.clone(); dims.m], Tensor::zeros((0, dims.d), work, x.device())?));
    }
    let delta = (Tensor::cat(&before, 0)? - &x)?; // (tokens, d)
    let mix = args.mix.to_dtype(work)?;
    let mixes = (0..dims.m).map(|j| {
        let share = match args.data {
            Some(data) => data[j].to_dtype(work)?.flatten(0, 1)?.broadcast_add(&mix.get(j)?)?,
            None => mix.get(j)?.broadcast_as(x.shape())?,
        };
        (&x + (share * &delta)?)?.reshape(args.x.shape())?.to_dtype(args.x.dtype())
    });
    Ok((mixes.collect::<Result<_>>()?, Tensor::cat(&last, 0)?))
}
