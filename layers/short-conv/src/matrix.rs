//! The band matrix of the convolution, one a channel.

use candle_core::{Result, Tensor};
use semisep_core::{Context, Mixing};

use crate::ShortConv;

/// `M[t,s] = w[k-1-(t-s)]`, with h = d channels of width 1. The convolution's bias is no matrix: it is left out of the
/// output.
pub(crate) fn mixing(layer: &ShortConv, u: &Tensor) -> Result<Mixing> {
    let (b, l, d) = u.dims3()?;
    let k = layer.config.d_conv;
    let (x, _) = layer.split(u)?;
    let (mut y, _) = layer.convolve(&x, &Context::default())?; // (b, l, d)
    if let Some(bias) = &layer.conv_bias {
        y = y.broadcast_sub(bias)?;
    }
    let weight = layer.conv_weight.to_dtype(x.dtype())?;
    let mut matrix = Tensor::zeros((d, l, l), x.dtype(), x.device())?;
    for back in 0..k.min(l) {
        let ones: Vec<f32> = (0..l * l).map(|i| if i / l == i % l + back { 1.0 } else { 0.0 }).collect();
        let diagonal = Tensor::from_vec(ones, (1, l, l), x.device())?.to_dtype(x.dtype())?;
        let tap = weight.narrow(1, k - 1 - back, 1)?.unsqueeze(2)?; // (d, 1, 1)
        matrix = (matrix + diagonal.broadcast_mul(&tap)?)?;
    }
    let channels = |t: &Tensor| t.transpose(1, 2)?.unsqueeze(3); // (b, l, d) -> (b, d, l, 1)
    Ok(Mixing { matrix: matrix.broadcast_left(b)?, values: channels(&x)?, output: channels(&y)? })
}
