//! The definition: the cells token by token, in tensor operations that autograd differentiates.

use candle_core::{Result, Tensor};

use super::{Cell, Recurrence};
use crate::host::state_dtype;

/// [`recurrence`](super::recurrence), slowly, on any device: the reference for the fast one.
///
/// # Errors
/// As the fast one.
pub fn recurrence(args: &Recurrence) -> Result<(Tensor, Tensor)> {
    let dims = args.check()?;
    let (work, h) = (state_dtype(args.x.dtype()), dims.h);
    let x = args.x.to_dtype(work)?.flatten(0, 1)?;
    let weight = args.weight_hh.to_dtype(work)?.t()?;
    let bias = args.bias_hh.map(|b| b.to_dtype(work)).transpose()?;
    let (mut outputs, mut states) = (Vec::new(), Vec::new());
    for (k, segment) in dims.segments.iter().enumerate() {
        let mut state = match args.initial_state {
            Some(state) => state.get(k)?.to_dtype(work)?,
            None => Tensor::zeros((dims.cell.states(), h), work, x.device())?,
        };
        for t in segment.start..segment.start + segment.len {
            let mut q = state.narrow(0, 0, 1)?.matmul(&weight)?; // (1, gates h)
            if let Some(bias) = &bias {
                q = q.broadcast_add(bias)?;
            }
            state = token(dims.cell, &x.narrow(0, t, 1)?, &q, &state)?;
            outputs.push(state.narrow(0, 0, 1)?);
        }
        states.push(state);
    }
    let y = if outputs.is_empty() {
        Tensor::zeros((dims.b, dims.l, h), work, x.device())?
    } else {
        Tensor::cat(&outputs, 0)?.reshape((dims.b, dims.l, h))?
    };
    let states = if states.is_empty() {
        Tensor::zeros((0, dims.cell.states(), h), work, x.device())?
    } else {
        Tensor::stack(&states, 0)?
    };
    Ok((y.to_dtype(args.x.dtype())?, states))
}

/// The state (s, h) after a token with sides `x` and `q`, (1, gates h) each.
fn token(cell: Cell, x: &Tensor, q: &Tensor, state: &Tensor) -> Result<Tensor> {
    let h = state.dim(1)?;
    let part = |t: &Tensor, k: usize| t.narrow(1, k * h, h);
    let sum = |k: usize| part(x, k)? + part(q, k)?;
    let row = |k: usize| state.narrow(0, k, 1);
    match cell {
        Cell::Lstm => {
            let (i, f, g, o) = (sigmoid(&sum(0)?)?, sigmoid(&sum(1)?)?, sum(2)?.tanh()?, sigmoid(&sum(3)?)?);
            let c = ((f * row(1)?)? + (i * g)?)?;
            Tensor::cat(&[(o * c.tanh()?)?, c], 0)
        }
        Cell::Gru => {
            let (r, z) = (sigmoid(&sum(0)?)?, sigmoid(&sum(1)?)?);
            let n = (part(x, 2)? + (r * part(q, 2)?)?)?.tanh()?;
            (z.affine(-1.0, 1.0)? * n)? + (z * row(0)?)?
        }
        Cell::Tanh => sum(0)?.tanh(),
        Cell::Relu => sum(0)?.relu(),
    }
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}
