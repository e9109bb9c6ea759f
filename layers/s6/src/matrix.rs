//! The matrix that the selective scan multiplies by, one a channel.

use candle_core::{Result, Tensor};
use semisep_core::{Context, Mixing, lower_triangle, segment_sums, softplus};

use crate::{S6, Selection};

/// `M[t,s] = Σ_n C_t[n] exp(A[n] Σ_{s<j≤t} dt_j) B_s[n] dt_s + D [t = s]`, with h = d channels of width 1.
pub(crate) fn mixing(layer: &S6, u: &Tensor) -> Result<Mixing> {
    let x = layer.enter(u)?; // (b, l, d)
    let (y, _) = layer.scan(&x, &Context::default())?;
    let Selection { dt, b, c } = layer.select(&x)?;
    let dt = softplus(&dt.broadcast_add(&layer.dt_bias)?)?.transpose(1, 2)?.contiguous()?; // (b, d, l)
    let spans = segment_sums(&dt)?; // (b, d, t, s)
    let a = layer.a()?;
    let (batch, l, d) = x.dims3()?;
    let (dtype, device) = (dt.dtype(), dt.device());
    let mut m = Tensor::zeros((batch, d, l, l), dtype, device)?;
    for i in 0..layer.config.d_state {
        let decay = spans.broadcast_mul(&a.narrow(1, i, 1)?.reshape((1, d, 1, 1))?)?.exp()?;
        let outer = c.narrow(2, i, 1)?.broadcast_mul(&b.narrow(2, i, 1)?.transpose(1, 2)?)?; // (b, t, s)
        m = (m + decay.broadcast_mul(&outer.unsqueeze(1)?)?)?;
    }
    let m = m.broadcast_mul(&dt.unsqueeze(2)?)?.broadcast_mul(&lower_triangle(l, dtype, device)?)?;
    let skip = Tensor::eye(l, dtype, device)?.broadcast_mul(&layer.d.reshape((d, 1, 1))?)?;
    let channels = |t: &Tensor| t.transpose(1, 2)?.unsqueeze(3); // (b, l, d) -> (b, d, l, 1)
    Ok(Mixing { matrix: m.broadcast_add(&skip)?, values: channels(&x)?, output: channels(&y)? })
}
