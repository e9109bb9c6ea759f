//! The softmax rows that a head multiplies by.

use candle_core::{Result, Tensor};
use semisep_core::{Context, Mixing};

use crate::Attention;

/// `M[t,s] = softmax_s(score)` over the visible band, 0 elsewhere; (b, h, l, l).
pub(crate) fn mixing(layer: &Attention, u: &Tensor) -> Result<Mixing> {
    let (b, l, _) = u.dims3()?;
    let (qkv, _) = layer.convolve(layer.input.alone(u)?, &Context::default())?;
    let heads = layer.split(&qkv, &vec![0; b], None)?;
    let output = layer.positions.attend(layer.options(&heads))?.transpose(1, 2)?; // (b, h, l, p)
    let matrix = layer.positions.weights(layer.options(&heads))?;

    let (h, kv, p) = (layer.heads, layer.kv_heads, layer.head_dim);
    let spread = heads.v.unsqueeze(3)?.broadcast_as((b, l, kv, h / kv, p))?.reshape((b, l, h, p))?;
    let values = spread.transpose(1, 2)?.contiguous()?;
    Ok(Mixing { matrix, values, output })
}
