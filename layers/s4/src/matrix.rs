//! The Toeplitz matrix of every channel and output.

use candle_core::{Result, Tensor};
use semisep_core::Mixing;
use semisep_kernels::{ModalScan, modal_scan};

use crate::S4;

/// `M[t,s] = K[t - s] + D [t = s]`, for lags below 0 with the second filter's taps.
pub(crate) fn mixing(layer: &S4, u: &Tensor) -> Result<Mixing> {
    let (b, l, d) = u.dims3()?;
    let (c, dtype, device) = (layer.options.outputs(), u.dtype(), u.device());
    let (filters, ahead) = layer.filters(l)?;
    let filters = filters.to_dtype(dtype)?.contiguous()?; // (c, d, lk)
    let lag = |i: usize| (i / l + ahead).checked_sub(i % l);
    let at: Vec<u32> = (0..l * l).map(|i| lag(i).unwrap_or(0) as u32).collect();
    let mask: Vec<f32> = (0..l * l).map(|i| if lag(i).is_some() { 1.0 } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (l, l), device)?.to_dtype(dtype)?;
    let taps = filters.index_select(&Tensor::new(at, device)?, 2)?.reshape((c * d, l, l))?;
    let skip = layer.parameters.skip().to_dtype(dtype)?.reshape((c * d, 1, 1))?;
    let eye = Tensor::eye(l, dtype, device)?;
    let matrix = (taps.broadcast_mul(&mask)? + skip.broadcast_mul(&eye)?)?;

    let y = if layer.options.bidirectional || l <= layer.parameters.period() {
        layer.convolve(u, l, None)?
    } else {
        let system = layer.discrete()?;
        modal_scan(&ModalScan { u, system: system.view(), initial_state: None, cu_seqlens: None })?.0
    };
    let values = u.transpose(1, 2)?.unsqueeze(1)?.broadcast_as((b, c, d, l))?;
    Ok(Mixing {
        matrix: matrix.unsqueeze(0)?.broadcast_as((b, c * d, l, l))?,
        values: values.reshape((b, c * d, l, 1))?,
        output: y.permute((0, 2, 3, 1))?.reshape((b, c * d, l, 1))?,
    })
}
