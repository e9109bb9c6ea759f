//! The matrix that the recurrence multiplies by, one a channel.

use candle_core::{Result, Tensor};
use semisep_core::{Context, Mixing, lower_triangle, segment_sums, softplus};
use semisep_kernels::{Activation, activation};

use crate::RgLruBlock;

/// `M[t,s] = exp(Σ_{s<j≤t} log a_j) · m_s i_s` with `m = √(1 - a²)`, and 1 at the first token; every channel is a head.
pub(crate) fn mixing(layer: &RgLruBlock, u: &Tensor) -> Result<Mixing> {
    let ctx = Context::default();
    let (x, _) = layer.convolve(u, &ctx)?;
    let inputs = layer.gates(x)?;
    let (h, _) = layer.recur(&inputs, u.dim(0)?, &ctx)?; // (b, l, e)
    let x = &inputs.x;
    let (_, l, _) = x.dims3()?;
    let rate = (softplus(&layer.recurrent_param)? * -layer.config.c)?;
    let log_a = activation(&inputs.recurrent_gate, Activation::Sigmoid)?.broadcast_mul(&rate)?;
    let root = (log_a.affine(2.0, 0.0)?.exp()?.affine(-1.0, 1.0))?.sqrt()?;
    let first: Vec<f32> = (0..l).map(|t| if t == 0 { 1.0 } else { 0.0 }).collect();
    let first = Tensor::from_vec(first, (1, l, 1), x.device())?.to_dtype(root.dtype())?;
    let root = (root.broadcast_mul(&first.affine(-1.0, 1.0)?)?.broadcast_add(&first))?;
    let scale = (root * activation(&inputs.input_gate, Activation::Sigmoid)?)?;
    let columns = |t: &Tensor| t.transpose(1, 2)?.contiguous(); // (b, e, l)
    let decay = segment_sums(&columns(&log_a)?)?.exp()?;
    let m = decay.broadcast_mul(&columns(&scale)?.unsqueeze(2)?)?;
    let m = m.broadcast_mul(&lower_triangle(l, m.dtype(), m.device())?)?;
    Ok(Mixing { matrix: m, values: columns(x)?.unsqueeze(3)?, output: columns(&h)?.unsqueeze(3)? })
}
