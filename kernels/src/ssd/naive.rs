//! The definition: the recurrence token by token, in tensor operations that autograd differentiates.

use candle_core::{D, Result, Tensor};

use super::args::{Dims, clamp};
use super::{ScalarDecayScan, SsdChunkScan};
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

    let input = x.broadcast_mul(&dt.unsqueeze(3)?)?;
    let (mut y, states) = recurrence(&dims, [&input, &decay, &b, &c], args.initial_state)?;
    if let Some(d) = args.d {
        let d = d.to_dtype(work)?;
        let d = if d.rank() == 1 { d.unsqueeze(1)? } else { d };
        y = (y + x.broadcast_mul(&d)?)?;
    }
    if let Some(z) = args.z {
        y = y.mul(&silu(&z.to_dtype(work)?)?)?;
    }
    Ok((y.to_dtype(args.x.dtype())?, states))
}

/// [`scalar_decay_scan`](super::scalar_decay_scan), slowly and without chunks, on any device.
///
/// # Errors
/// As the fast one.
pub fn scalar_decay_scan(args: &ScalarDecayScan) -> Result<(Tensor, Tensor)> {
    let dims = args.check()?;
    let work = state_dtype(args.v.dtype());
    let mut input = args.v.to_dtype(work)?;
    if let Some(scale) = args.scale {
        input = input.broadcast_mul(&scale.to_dtype(work)?.unsqueeze(3)?)?;
    }
    let decay = args.log_decay.to_dtype(work)?.exp()?.broadcast_as((dims.b, dims.l, dims.h))?;
    let k = per_channel(&args.k.to_dtype(work)?, dims.h)?;
    let q = per_channel(&args.q.to_dtype(work)?, dims.h)?;
    let (y, states) = recurrence(&dims, [&input, &decay, &k, &q], args.state)?;
    Ok((y.to_dtype(args.v.dtype())?, states))
}

/// `H_t = decay_t H_{t-1} + x_t B_tᵀ`, `y_t = H_t C_t`: inputs (b, l, h, p), decays (b, l, h), maps (b, l, h, n).
fn recurrence(
    dims: &Dims,
    [x, decay, b, c]: [&Tensor; 4],
    initial: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (work, device) = (x.dtype(), x.device());
    let tokens = |t: &Tensor| t.flatten(0, 1); // (b, l, ..) -> (b l, ..)
    let (xs, decays, bs, cs) = (tokens(x)?, tokens(decay)?, tokens(b)?, tokens(c)?);
    let (mut outputs, mut states) = (Vec::new(), Vec::new());
    for (k, segment) in dims.segments.iter().enumerate() {
        let mut h = match initial {
            Some(state) => state.get(k)?.to_dtype(work)?,
            None => Tensor::zeros((dims.h, dims.p, dims.n), work, device)?,
        };
        for t in segment.start..segment.start + segment.len {
            let input = xs.get(t)?.unsqueeze(2)?.broadcast_mul(&bs.get(t)?.unsqueeze(1)?)?; // (h, p, n)
            h = (h.broadcast_mul(&decays.get(t)?.reshape((dims.h, 1, 1))?)? + input)?;
            outputs.push(h.broadcast_mul(&cs.get(t)?.unsqueeze(1)?)?.sum(D::Minus1)?);
        }
        states.push(h);
    }
    let y = stack_or_empty(&outputs, x)?;
    let states = if states.is_empty() {
        Tensor::zeros((0, dims.h, dims.p, dims.n), work, device)?
    } else {
        Tensor::stack(&states, 0)?
    };
    Ok((y, states))
}
