//! The softmax rows that a head multiplies by.

use candle_core::{D, Result, Tensor};
use semisep_core::{Context, Mixing};
use semisep_kernels::attention;

use crate::Attention;

/// `M[t,s] = softmax_s(score)` over the visible band, 0 elsewhere; (b, h, l, l).
pub(crate) fn mixing(layer: &Attention, u: &Tensor) -> Result<Mixing> {
    let (b, l, _) = u.dims3()?;
    let (qkv, _) = layer.convolve(layer.in_proj.forward(u)?, &Context::default())?;
    let heads = layer.split(&qkv, &vec![0; b], None)?;
    let output = attention(&layer.options(&heads))?.transpose(1, 2)?; // (b, h, l, p)

    let (h, kv, p) = (layer.heads, layer.kv_heads, layer.head_dim);
    let per_head = |t: &Tensor| -> Result<Tensor> {
        let spread = t.unsqueeze(3)?.broadcast_as((b, l, kv, h / kv, p))?.reshape((b, l, h, p))?;
        spread.transpose(1, 2)?.contiguous()
    };
    let (k, v) = (per_head(&heads.k)?, per_head(&heads.v)?);
    let scale = layer.config.scale.unwrap_or(1.0 / (p as f64).sqrt());
    let mut scores = (heads.q.transpose(1, 2)?.contiguous()?.matmul(&k.t()?)? * scale)?;
    if let Some(cap) = layer.config.softcap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let window = layer.config.window.unwrap_or(l);
    let visible = |t: usize, s: usize| (s <= t || !layer.config.causal) && t.saturating_sub(s) < window;
    let mask: Vec<f32> =
        (0..l * l).map(|i| if visible(i / l, i % l) { 0.0 } else { f32::NEG_INFINITY }).collect();
    let mask = Tensor::from_vec(mask, (l, l), u.device())?.to_dtype(scores.dtype())?;
    let scores = scores.broadcast_add(&mask)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let matrix = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    Ok(Mixing { matrix, values: v, output })
}
