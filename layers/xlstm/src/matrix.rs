//! The matrix that the memory multiplies by, one a head.

use candle_core::{Result, Tensor};
use semisep_core::{Context, Mixing, lower_triangle, segment_sums};

use crate::Mlstm;

/// `M[t,s] = q_t·k_s exp(gain_s + Σ_{s<r≤t} keep_r) / denominator_t`, queries scaled.
pub(crate) fn mixing(layer: &Mlstm, x: &Tensor) -> Result<Mixing> {
    let (l, ctx) = (x.dim(1)?, Context::default());
    let heads = layer.heads(x)?;
    let gates = layer.stabilize(&heads, &ctx)?;
    let (y, _) = layer.scan(&heads, &gates, &ctx)?;
    let (k, _) = layer.gated(&heads, &gates)?;
    let by_head = |t: &Tensor| t.transpose(1, 2)?.contiguous(); // (b, h, l, ..)
    let decay = segment_sums(&by_head(&gates.log_decay)?)?.exp()?; // (b, h, t, s)
    let scores = by_head(&heads.q)?.matmul(&by_head(&k)?.t()?)?;
    let denominator = by_head(&layer.denominator(&y, &gates.max)?)?; // (b, h, l, 1)
    let matrix = scores.mul(&decay)?.broadcast_div(&denominator)?;
    let matrix = matrix.broadcast_mul(&lower_triangle(l, y.dtype(), y.device())?)?;
    let values = heads.v.narrow(3, 0, layer.dims.1)?;
    let output = layer.normalized(&y, &gates.max)?;
    Ok(Mixing { matrix, values: by_head(&values)?, output: by_head(&output)? })
}
