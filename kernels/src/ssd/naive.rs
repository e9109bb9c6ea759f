//! The definition: the recurrence token by token, in tensor operations that autograd differentiates.

use candle_core::{D, Result, Tensor};

use super::SsdChunkScan;
use super::args::clamp;
use crate::host::state_dtype;
use crate::selective_scan::naive::{per_channel, silu, stack_or_empty, step_sizes};

/// [`ssd_chunk_scan`](super::ssd_chunk_scan), slowly and without chunks, on any device: the reference for the fast ones.
///
/// # Errors
/// As the fast one.
pub fn ssd_chunk_scan(args: &SsdChunkScan) -> Result<(Tensor, Tensor)> {
    let dims = args.check()?;
    let work = state_dtype(args.x.dtype());
    let x = args.x.to_dtype(work)?;
    let mut dt = step_sizes(args.dt, args.dt_bias, args.dt_softplus, work)?;
    if let Some((low, high)) = clamp(args.dt_limit) {
        dt = dt.clamp(low, high)?;
    }
    let decay = dt.broadcast_mul(&args.a.to_dtype(work)?)?.exp()?;
    let b = per_channel(&args.b.to_dtype(work)?, dims.h)?; // (b, l, h, n)
    let c = per_channel(&args.c.to_dtype(work)?, dims.h)?;

    let tokens = |t: &Tensor| t.flatten(0, 1); // (b, l, ..) -> (b l, ..)
    let (xs, dts, decays, bs, cs) = (tokens(&x)?, tokens(&dt)?, tokens(&decay)?, tokens(&b)?, tokens(&c)?);
    let (mut outputs, mut states) = (Vec::new(), Vec::new());
    for (k, segment) in dims.segments.iter().enumerate() {
        let mut h = match args.initial_state {
            Some(state) => state.get(k)?.to_dtype(work)?,
            None => Tensor::zeros((dims.h, dims.p, dims.n), work, x.device())?,
        };
        for t in segment.start..segment.start + segment.len {
            let input = xs.get(t)?.broadcast_mul(&dts.get(t)?.unsqueeze(1)?)?; // (h, p)
            let input = input.unsqueeze(2)?.broadcast_mul(&bs.get(t)?.unsqueeze(1)?)?; // (h, p, n)
            h = (h.broadcast_mul(&decays.get(t)?.reshape((dims.h, 1, 1))?)? + input)?;
            outputs.push(h.broadcast_mul(&cs.get(t)?.unsqueeze(1)?)?.sum(D::Minus1)?);
        }
        states.push(h);
    }
    let mut y = stack_or_empty(&outputs, &x)?;
    if let Some(d) = args.d {
        let d = d.to_dtype(work)?;
        let d = if d.rank() == 1 { d.unsqueeze(1)? } else { d };
        y = (y + x.broadcast_mul(&d)?)?;
    }
    if let Some(z) = args.z {
        y = y.mul(&silu(&z.to_dtype(work)?)?)?;
    }
    let states = if states.is_empty() {
        Tensor::zeros((0, dims.h, dims.p, dims.n), work, x.device())?
    } else {
        Tensor::stack(&states, 0)?
    };
    Ok((y.to_dtype(args.x.dtype())?, states))
}
