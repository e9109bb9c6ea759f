//! The definition in tensor operations.

use candle_core::{Result, Tensor};

use super::{CausalConv1d, Problem};

/// As [`causal_conv1d`](super::causal_conv1d): the weighted sum of k shifted copies, sequence by sequence.
///
/// # Errors
/// As there.
pub fn causal_conv1d(args: CausalConv1d) -> Result<(Tensor, Tensor)> {
    let p = Problem::new(&args)?;
    let x = args.x.to_dtype(p.state)?.contiguous()?.reshape((p.b * p.l, p.d))?;
    let weight = args.weight.to_dtype(p.state)?;
    let bias = args.bias.map(|b| b.to_dtype(p.state)).transpose()?;
    let (mut ys, mut states) = (Vec::new(), Vec::new());
    for (n, s) in p.segments.iter().enumerate() {
        let past = match args.initial_state {
            Some(state) => state.get(n)?.t()?,
            None => Tensor::zeros((p.k - 1, p.d), p.state, x.device())?,
        };
        let x = x.narrow(0, s.start, s.len)?;
        let padded = match (p.k, s.len) {
            (1, _) => x,
            (_, 0) => past,
            _ => Tensor::cat(&[&past, &x], 0)?,
        };
        states.push(padded.narrow(0, s.len, p.k - 1)?.t()?);
        if s.len > 0 {
            ys.push(convolved(&padded, &weight, bias.as_ref(), s.len, args.silu)?);
        }
    }
    let y = match ys.is_empty() {
        true => x.reshape((p.b, p.l, p.d))?,
        false => Tensor::cat(&ys, 0)?.reshape((p.b, p.l, p.d))?,
    };
    let state = match p.k == 1 || states.is_empty() {
        true => Tensor::zeros((p.segments.len(), p.d, p.k - 1), p.state, x.device())?,
        false => Tensor::stack(&states, 0)?,
    };
    Ok((y.to_dtype(args.x.dtype())?, state))
}

/// (l + k-1, d) -> (l, d)
fn convolved(
    padded: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    l: usize,
    silu: bool,
) -> Result<Tensor> {
    let mut y = padded.narrow(0, 0, l)?.broadcast_mul(&weight.narrow(1, 0, 1)?.squeeze(1)?)?;
    for j in 1..weight.dim(1)? {
        y = (y + padded.narrow(0, j, l)?.broadcast_mul(&weight.narrow(1, j, 1)?.squeeze(1)?)?)?;
    }
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if silu { y.silu() } else { Ok(y) }
}
