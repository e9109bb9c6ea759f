//! The matrix that the SSD scan multiplies by, one a head.

use candle_core::{Result, Tensor};
use semisep_core::{Context, Mixing, lower_triangle, segment_sums, softplus};

use crate::Mamba2;

/// `M[t,s] = (C_t · B_s) exp(A Σ_{s<j≤t} dt_j) dt_s + D [t = s]`. A skip with one weight a feature (`D_has_hdim`) is
/// no matrix over the sequence: it is then left out of matrix and output alike.
pub(crate) fn mixing(layer: &Mamba2, u: &Tensor) -> Result<Mixing> {
    let ctx = Context::default();
    let projection = layer.project(u)?;
    let (xbc, _) = layer.convolve(&projection.xbc, &ctx)?;
    let (y, _) = layer.scan(&xbc, &projection.dt, &ctx)?; // (b, l, h, p)
    let (x, b, c) = layer.split(&xbc)?;
    let (l, h) = (x.dim(1)?, x.dim(2)?);
    let (dtype, device) = (x.dtype(), x.device());

    let dt = softplus(&projection.dt.broadcast_add(&layer.dt_bias)?)?;
    let (lo, hi) = layer.config.dt_limit();
    let dt = dt.clamp(lo, hi)?.transpose(1, 2)?.contiguous()?; // (b, h, l)
    let a = layer.a()?.reshape((1, h, 1))?;
    let decay = segment_sums(&dt.broadcast_mul(&a)?)?.exp()?; // (b, h, t, s)
    let per_head = |t: &Tensor| -> Result<Tensor> {
        let (batch, l, g, n) = t.dims4()?;
        t.unsqueeze(3)?
            .broadcast_as((batch, l, g, h / g, n))?
            .reshape((batch, l, h, n))?
            .transpose(1, 2)?
            .contiguous()
    };
    let scores = per_head(&c)?.matmul(&per_head(&b)?.t()?)?; // (b, h, t, s)
    let m = (scores * decay)?.broadcast_mul(&dt.unsqueeze(2)?)?;
    let mut m = m.broadcast_mul(&lower_triangle(l, dtype, device)?)?;
    let mut y = y;
    if layer.config.d_has_hdim {
        y = (y - x.broadcast_mul(&layer.d)?)?;
    } else {
        let skip = Tensor::eye(l, dtype, device)?.broadcast_mul(&layer.d.reshape((h, 1, 1))?)?;
        m = m.broadcast_add(&skip)?;
    }
    Ok(Mixing { matrix: m, values: x.transpose(1, 2)?, output: y.transpose(1, 2)? })
}
