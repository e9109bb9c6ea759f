//! The matrix that gates and long convolutions make together, one a channel.

use candle_core::{Result, Tensor};
use semisep_core::{Context, Mixing};

use super::Hyena;

/// `M = D_{x_0} T_{N-2} D_{x_1} ... T_0 D_{x_{N-1}}`, (b, d, l, l).
pub(super) fn mixing(layer: &Hyena, u: &Tensor) -> Result<Mixing> {
    let (b, l, d) = u.dims3()?;
    layer.check_length(l)?;
    let (z, _) = layer.frame.project(u, &Context::default())?;
    let (y, _) = layer.operate(&z, &layer.reaching(&vec![0; b], &vec![l; b])?, None, &vec![0; b], None)?;
    let order = layer.config.order;
    let part = |i: usize| z.narrow(2, i * d, d)?.transpose(1, 2)?.contiguous(); // (b, d, l)
    let taps = layer.taps(l.max(1))?;
    let mut matrix = Tensor::eye(l, z.dtype(), z.device())?.broadcast_as((b, d, l, l))?.contiguous()?;
    for o in 0..order - 1 {
        matrix = matrix.broadcast_mul(&part(order - 1 - o)?.unsqueeze(3)?)?;
        let bias = layer.bias().narrow(0, o * d, d)?;
        let toeplitz = toeplitz(&taps.narrow(1, o * d, d)?, &bias, l)?;
        matrix = toeplitz.broadcast_left(b)?.contiguous()?.matmul(&matrix)?;
    }
    let matrix = matrix.broadcast_mul(&part(0)?.unsqueeze(3)?)?;
    let column = |t: &Tensor| t.transpose(1, 2)?.unsqueeze(3);
    Ok(Mixing { matrix, values: column(&z.narrow(2, order * d, d)?)?, output: column(&y)? })
}

/// `T[t,s] = taps[t - s] + bias [t = s]` of taps (>= l, d), (d, l, l).
pub(crate) fn toeplitz(taps: &Tensor, bias: &Tensor, l: usize) -> Result<Tensor> {
    let d = taps.dim(1)?;
    let zero = Tensor::zeros((1, d), taps.dtype(), taps.device())?;
    let padded = Tensor::cat(&[&taps.narrow(0, 0, l)?, &zero], 0)?; // (l + 1, d)
    let lag = |i: usize| (i / l).checked_sub(i % l).unwrap_or(l) as u32;
    let lags: Vec<u32> = (0..l * l).map(lag).collect();
    let lags = Tensor::from_vec(lags, l * l, taps.device())?;
    let skip = Tensor::eye(l, taps.dtype(), taps.device())?.broadcast_mul(&bias.reshape((d, 1, 1))?)?;
    padded.index_select(&lags, 0)?.t()?.reshape((d, l, l))? + skip
}
