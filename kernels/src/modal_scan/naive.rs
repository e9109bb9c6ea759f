//! The definition: the recurrence token by token, in tensor operations that autograd differentiates.

use candle_core::{D, Result, Tensor};

use super::ModalScan;
use crate::Complex;
use crate::host::state_dtype;

/// [`modal_scan`](fn@super::modal_scan), slowly, on any device: the reference for the fast one.
///
/// # Errors
/// As the fast one.
pub fn modal_scan(args: &ModalScan) -> Result<(Tensor, Tensor)> {
    let dims = args.check()?;
    let (work, sizes) = (state_dtype(args.u.dtype()), dims.sizes);
    let full = |t: &Tensor| Complex::from_pairs(&per_channel(t, sizes.d)?, work);
    let system = args.system;
    let (poles, input, output) = (full(system.poles)?, full(system.input)?, full(system.output)?);
    let low_rank =
        system.low_rank.map(|(p, q)| Ok::<_, candle_core::Error>((full(p)?, full(q)?))).transpose()?;
    let us = args.u.to_dtype(work)?.flatten(0, 1)?; // (b l, d)
    let (mut outputs, mut states) = (Vec::new(), Vec::new());
    for (k, segment) in dims.segments.iter().enumerate() {
        let mut h = match args.initial_state {
            Some(state) => Complex::from_pairs(&state.get(k)?, work)?,
            None => Complex::from_pairs(&Tensor::zeros((sizes.d, sizes.n, 2), work, us.device())?, work)?,
        };
        for t in segment.start..segment.start + segment.len {
            let mut next = poles.mul(&h)?;
            if let Some((left, right)) = &low_rank {
                let g = right.read(&h)?.unsqueeze(2)?; // (r, d, 1)
                next = next.sub(&left.scale(&g)?.map(|t| t.sum(0))?)?;
            }
            let u = us.get(t)?.unsqueeze(1)?; // (d, 1)
            h = next.add(&input.scale(&u)?)?;
            outputs.push(output.read(&h)?); // (c, d)
        }
        states.push(h.to_pairs()?);
    }
    let shape = (dims.b, dims.l, sizes.c, sizes.d);
    let mut y = match outputs.is_empty() {
        true => Tensor::zeros(shape, work, us.device())?,
        false => Tensor::stack(&outputs, 0)?.reshape(shape)?,
    };
    if let Some(skip) = system.skip {
        let skip = skip.to_dtype(work)?.unsqueeze(2)?;
        let skip = skip.broadcast_as((sizes.c, sizes.p, sizes.d / sizes.p))?.reshape((sizes.c, sizes.d))?;
        y = (y + args.u.to_dtype(work)?.unsqueeze(2)?.broadcast_mul(&skip)?)?;
    }
    let state = match states.is_empty() {
        true => Tensor::zeros((0, sizes.d, sizes.n, 2), work, us.device())?,
        false => Tensor::stack(&states, 0)?,
    };
    Ok((y.to_dtype(args.u.dtype())?, state))
}

/// Systems (.., p, n, 2) as those of every channel, (.., d, n, 2).
fn per_channel(t: &Tensor, d: usize) -> Result<Tensor> {
    let dims = t.dims();
    let (lead, &[p, n, _]) = dims.split_at(dims.len() - 3) else { return Ok(t.clone()) };
    let with = |middle: &[usize]| lead.iter().chain(middle).copied().collect::<Vec<_>>();
    t.unsqueeze(D::Minus(3))?.broadcast_as(with(&[p, d / p, n, 2]))?.reshape(with(&[d, n, 2]))
}
