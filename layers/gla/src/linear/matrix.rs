//! The matrix that linear attention multiplies by, one a head.

use candle_core::{D, Result, Tensor};
use semisep_core::{Mixing, lower_triangle};
use semisep_kernels::{ScalarDecayScan, scalar_decay_scan};

use super::{DIVISOR_EPS, LinearAttention};

/// `M[t,s] = q_t · k_s` for s ≤ t, queries scaled; each row divided by its sum with `do_feature_map_norm`.
pub(super) fn mixing(layer: &LinearAttention, x: &Tensor) -> Result<Mixing> {
    let l = x.dim(1)?;
    let [q, k, v] = layer.heads(x)?;
    let (y, _) = scalar_decay_scan(&ScalarDecayScan::new(&q, &k, &v, &layer.no_decay))?;
    let output = layer.divide(&y)?.transpose(1, 2)?;
    let values: Tensor = v.narrow(D::Minus1, 0, layer.dims.2)?;
    let [q, k, v] = [q, k, values].map(|t| t.transpose(1, 2)?.contiguous());
    let (q, k) = (q?, k?);
    let mut matrix = q.matmul(&k.t()?)?.broadcast_mul(&lower_triangle(l, q.dtype(), q.device())?)?;
    if layer.config.do_feature_map_norm {
        matrix = matrix.broadcast_div(&(matrix.sum_keepdim(D::Minus1)? + DIVISOR_EPS)?)?;
    }
    Ok(Mixing { matrix, values: v?, output })
}
