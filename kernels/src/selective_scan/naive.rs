//! The definition: the recurrence token by token, in tensor operations that autograd differentiates.

use candle_core::{D, DType, Result, Tensor};

use super::SelectiveScan;
use crate::host::state_dtype;

/// [`selective_scan`](fn@super::selective_scan), slowly, on any device: the reference for the fast ones.
///
/// # Errors
/// As the fast one.
pub fn selective_scan(args: &SelectiveScan) -> Result<(Tensor, Tensor)> {
    let dims = args.check()?;
    let work = state_dtype(args.x.dtype());
    let x = args.x.to_dtype(work)?;
    let dt = step_sizes(args.dt, args.dt_bias, args.dt_softplus, work)?;
    let a = args.a.to_dtype(work)?;
    let b = per_channel(&args.b.to_dtype(work)?, dims.e)?; // (b, l, e, n)
    let c = per_channel(&args.c.to_dtype(work)?, dims.e)?;

    let tokens = |t: &Tensor| t.flatten(0, 1); // (b, l, ..) -> (b l, ..)
    let (xs, dts, bs, cs) = (tokens(&x)?, tokens(&dt)?, tokens(&b)?, tokens(&c)?);
    let (mut outputs, mut states) = (Vec::new(), Vec::new());
    for (k, segment) in dims.segments.iter().enumerate() {
        let mut h = match args.initial_state {
            Some(state) => state.get(k)?.to_dtype(work)?,
            None => Tensor::zeros((dims.e, dims.n), work, x.device())?,
        };
        for t in segment.start..segment.start + segment.len {
            let dt = dts.get(t)?.unsqueeze(1)?; // (e, 1)
            let input = (dt.mul(&xs.get(t)?.unsqueeze(1)?)?).broadcast_mul(&bs.get(t)?)?;
            h = (dt.broadcast_mul(&a)?.exp()?.mul(&h)? + input)?;
            outputs.push(h.mul(&cs.get(t)?)?.sum(D::Minus1)?);
        }
        states.push(h);
    }
    let mut y = stack_or_empty(&outputs, &x)?;
    if let Some(d) = args.d {
        y = (y + x.broadcast_mul(&d.to_dtype(work)?)?)?;
    }
    if let Some(z) = args.z {
        y = y.mul(&silu(&z.to_dtype(work)?)?)?;
    }
    let states = if states.is_empty() {
        Tensor::zeros((0, dims.e, dims.n), work, x.device())?
    } else {
        Tensor::stack(&states, 0)?
    };
    Ok((y.to_dtype(args.x.dtype())?, states))
}

/// Per-token outputs as a tensor of the shape of `like`, which says what there is if there are none.
pub(crate) fn stack_or_empty(outputs: &[Tensor], like: &Tensor) -> Result<Tensor> {
    if outputs.is_empty() { like.zeros_like() } else { Tensor::stack(outputs, 0)?.reshape(like.shape()) }
}

/// `softplus(dt + bias)`, both optional.
pub(crate) fn step_sizes(dt: &Tensor, bias: Option<&Tensor>, softplus: bool, work: DType) -> Result<Tensor> {
    let mut dt = dt.to_dtype(work)?;
    if let Some(bias) = bias {
        dt = dt.broadcast_add(&bias.to_dtype(work)?)?;
    }
    if softplus {
        // max(dt, 0) + ln(1 + exp(-|dt|)) overflows nowhere.
        dt = (dt.relu()? + (dt.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    }
    Ok(dt)
}

/// Maps of groups (b, l, g, n) as maps of channels (b, l, e, n).
pub(crate) fn per_channel(t: &Tensor, e: usize) -> Result<Tensor> {
    let (b, l, g, n) = t.dims4()?;
    t.unsqueeze(3)?.broadcast_as((b, l, g, e / g, n))?.reshape((b, l, e, n))
}

/// `z · sigmoid(z)`, in operations that keep gradients.
pub(crate) fn silu(z: &Tensor) -> Result<Tensor> {
    z.div(&(z.neg()?.exp()? + 1.0)?)
}
