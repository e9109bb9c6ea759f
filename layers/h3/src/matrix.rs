//! The matrix that every head multiplies its values by.

use candle_core::{Result, Tensor};
use semisep_core::{Context, Mixing, lower_triangle};
use semisep_kernels::{ModalScan, modal_filter, modal_scan};

use crate::H3;

/// `M[t,s] = (q_t · k'_s) (K[t-s] + D [t = s])`
pub(crate) fn mixing(layer: &H3, u: &Tensor) -> Result<Mixing> {
    let (b, l, _) = u.dims3()?;
    let (h, m) = (layer.heads(), layer.config.head_dim);
    let (dtype, device) = (u.dtype(), u.device());
    let systems = layer.systems()?;
    let system = systems.diagonal();
    let ([q, k, v], _) = layer.project(u, &systems.shift, &Context::default())?;
    let kv = layer.products(&k, &v)?;
    let (o, _) = modal_scan(&ModalScan { u: &kv, system, initial_state: None, cu_seqlens: None })?;

    let filter = modal_filter(&system, l)?.squeeze(0)?.to_dtype(dtype)?; // (h, l)
    let lags: Vec<u32> = (0..l * l).map(|i| (i / l).saturating_sub(i % l) as u32).collect();
    let mask = filter.contiguous()?.index_select(&Tensor::new(lags, device)?, 1)?.reshape((h, l, l))?;
    let mask = mask.broadcast_mul(&lower_triangle(l, dtype, device)?)?;
    let mask = match system.skip {
        Some(skip) => {
            let skip = skip.to_dtype(dtype)?.reshape((h, 1, 1))?;
            (mask + skip.broadcast_mul(&Tensor::eye(l, dtype, device)?)?)?
        }
        None => mask,
    };
    let per_head = |t: &Tensor| t.reshape((b, l, h, m))?.transpose(1, 2)?.contiguous(); // (b, h, l, m)
    let scores = per_head(&q)?.matmul(&per_head(&k)?.t()?)?;
    // The layer's own result has the heads last.
    let output = layer.read(&q, &o.squeeze(2)?)?.reshape((b, l, m, h))?.permute((0, 3, 1, 2))?;
    Ok(Mixing { matrix: scores.broadcast_mul(&mask)?, values: per_head(&v)?, output })
}
