//! The matrix that retention multiplies by, one a head.

use candle_core::{Result, Tensor};
use semisep_core::{Context, Mixing, lower_triangle};

use crate::{RetNet, log_decays};

/// `M[t,s] = (q_t · k_s) γ^(t-s) / √n`, its rows divided by `√Σ γ^(t-s)` with `decay_norm`.
pub(crate) fn mixing(layer: &RetNet, x: &Tensor) -> Result<Mixing> {
    let (b, l, _) = x.dims3()?;
    let mut projections = layer.project(x)?;
    layer.convs.forward(&mut projections, &Context::default())?;
    let positions = vec![0; b];
    let heads = layer.heads(&projections, &positions, None)?;
    let (y, _) = layer.retain(&heads, &positions, None, None)?;
    let [q, k, v] = heads.map(|t| t.transpose(1, 2)?.contiguous());
    let (q, k, v) = (q?, k?, v?); // (b, h, l, ·)

    let (dtype, device) = (q.dtype(), q.device());
    let decays = log_decays(layer.config.num_heads);
    let powers: Vec<f64> = decays
        .iter()
        .flat_map(|&g| (0..l * l).map(move |i| (g * (i / l).saturating_sub(i % l) as f64).exp()))
        .collect();
    let decay = Tensor::from_vec(powers, (decays.len(), l, l), device)?.to_dtype(dtype)?;
    let decay = decay.broadcast_mul(&lower_triangle(l, dtype, device)?)?;
    let mut matrix = q.matmul(&k.t()?)?.broadcast_mul(&decay)?;
    if layer.config.decay_norm {
        let scales = layer.row_scales(&y, &positions, None)?.transpose(1, 2)?; // (b, h, l, 1)
        matrix = matrix.broadcast_mul(&scales)?;
    }
    Ok(Mixing { matrix, values: v, output: y.transpose(1, 2)? })
}
