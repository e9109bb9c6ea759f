//! The matrix that HGRN2 multiplies by, one a head.

use candle_core::{D, Result, Tensor};
use semisep_core::{Context, Mixing, lower_triangle, segment_sums};

use crate::Hgrn2;

/// `M[t,s] = Σ_n q_t[n] k_s[n] exp(Σ_{s<r≤t} g_r[n])`, queries scaled.
pub(crate) fn mixing(layer: &Hgrn2, x: &Tensor) -> Result<Mixing> {
    let l = x.dim(1)?;
    let (heads, _) = layer.convolved(x, &Context::default())?;
    let (y, _) = layer.scan(&heads, &Context::default())?;
    let by_feature = |t: &Tensor| t.transpose(1, 2)?.transpose(2, 3)?.contiguous(); // (b, h, n, l)
    let (q, k) = (by_feature(&heads.q)?, by_feature(&heads.k)?);
    let (b, h, n, _) = q.dims4()?;
    let log_decay = by_feature(&heads.log_decay)?.flatten(0, 1)?;
    let decay = segment_sums(&log_decay)?.exp()?.reshape((b, h, n, l, l))?; // (b, h, n, t, s)
    let scores = decay.broadcast_mul(&q.unsqueeze(D::Minus1)?)?.broadcast_mul(&k.unsqueeze(3)?)?.sum(2)?;
    let matrix = scores.broadcast_mul(&lower_triangle(l, y.dtype(), y.device())?)?;
    Ok(Mixing { matrix, values: heads.v.transpose(1, 2)?.contiguous()?, output: y.transpose(1, 2)? })
}
