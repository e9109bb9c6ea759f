//! The matrix that the selective scan multiplies by, one a channel.

use candle_core::{Result, Tensor};
use semisep_core::{Context, Mixing, lower_triangle, segment_sums, softplus};

use crate::{Mamba1, Selection};

/// `M[t,s] = Σ_n C_t[n] exp(A[n] Σ_{s<j≤t} dt_j) B_s[n] dt_s + D [t = s]`, with h = e channels of width 1.
pub(crate) fn mixing(layer: &Mamba1, u: &Tensor) -> Result<Mixing> {
    let ctx = Context::default();
    let (x, _) = layer.split(u)?;
    let (x, _) = layer.convolve(&x, &ctx)?; // (b, l, e)
    let (y, _) = layer.scan(&x, None, &ctx)?;
    let Selection { dt, b, c } = layer.select(&x)?;
    let dt = softplus(&dt.broadcast_add(&layer.dt_bias)?)?.transpose(1, 2)?.contiguous()?; // (b, e, l)
    let spans = segment_sums(&dt)?; // (b, e, t, s)
    let a = layer.a()?;
    let (batch, l, e) = x.dims3()?;
    let mut m = Tensor::zeros((batch, e, l, l), dt.dtype(), dt.device())?;
    let heads = layer.heads;
    // (b, l, h, n), state i, as columns (b, h, l, 1)
    let column = |t: &Tensor, i: usize| t.narrow(3, i, 1)?.transpose(1, 2)?.contiguous();
    for i in 0..layer.config.d_state {
        let decay = spans.broadcast_mul(&a.narrow(1, i, 1)?.reshape((1, e, 1, 1))?)?.exp()?;
        let outer = column(&c, i)?.broadcast_mul(&column(&b, i)?.t()?)?; // (b, h, t, s)
        let outer = outer.unsqueeze(2)?.broadcast_as((batch, heads, e / heads, l, l))?;
        m = (m + (decay * outer.reshape((batch, e, l, l))?)?)?;
    }
    let m =
        m.broadcast_mul(&dt.unsqueeze(2)?)?.broadcast_mul(&lower_triangle(l, dt.dtype(), dt.device())?)?;
    let skip = Tensor::eye(l, dt.dtype(), dt.device())?.broadcast_mul(&layer.d.reshape((e, 1, 1))?)?;
    let heads = |t: &Tensor| t.transpose(1, 2)?.unsqueeze(3); // (b, l, e) -> (b, e, l, 1)
    Ok(Mixing { matrix: m.broadcast_add(&skip)?, values: heads(&x)?, output: heads(&y)? })
}
