//! The matrices that the trapezoidal scan multiplies by: one a head, and for each pair of output and input rank.

use candle_core::{D, Result, Tensor};
use semisep_core::{Context, Mixing, lower_triangle, segment_sums};

use crate::tokens::Tokens;
use crate::{Mamba3, scan};

/// `M[t,s] = (C_{t,r} · B_{s,r'}) L[t,s] (γ_s + β_{s+1} [s < t]) + D [t = s, r = r']`, for R R h heads (r, r', head), by the
/// values v_{r'}. The output of each is that of the layer's scan over this pair alone; with one rank it is the layer's.
pub(crate) fn mixing(layer: &Mamba3, u: &Tensor) -> Result<Mixing> {
    let (tokens, _) = layer.tokens(u, &Context::default())?;
    let (_, l, r, h, _) = tokens.v.dims5()?;
    let (dtype, device) = (tokens.v.dtype(), tokens.v.device());
    // (b, l, R, h, ·) -> (b, l, 1, R R h, ·), ranks of outputs slower than those of inputs.
    let pairs = |t: &Tensor, of_output: bool| -> Result<Tensor> {
        let (b, l, r, h, width) = t.dims5()?;
        let t = t.unsqueeze(if of_output { 3 } else { 2 })?;
        t.broadcast_as((b, l, r, r, h, width))?.reshape((b, l, 1, r * r * h, width))
    };
    let repeated = |t: &Tensor| Tensor::cat(&vec![t; r * r], 2);
    let alone = Tokens {
        z: tokens.z.clone(),
        x: tokens.x.clone(),
        v: pairs(&tokens.v, false)?,
        k: pairs(&tokens.k, false)?,
        q: pairs(&tokens.q, true)?,
        log_decay: repeated(&tokens.log_decay)?,
        beta: repeated(&tokens.beta)?,
        gamma: repeated(&tokens.gamma)?,
    };
    let none = Tensor::zeros(r * r * h, dtype, device)?;
    let (y, _) = scan::scan(&alone, &none, None, None)?;
    let heads = |t: &Tensor| t.squeeze(2)?.transpose(1, 2)?.contiguous(); // (b, R R h, l, ·)
    let (y, v) = (heads(&y)?, heads(&alone.v)?);
    let by_head = |t: &Tensor| t.transpose(1, 2)?.contiguous(); // (b, R R h, l)
    let eye = Tensor::eye(l, dtype, device)?;
    let below = (lower_triangle(l, dtype, device)? - &eye)?;
    let (beta, gamma) = (by_head(&alone.beta)?, by_head(&alone.gamma)?);
    let next = if l == 0 { beta } else { beta.narrow(2, 1, l - 1)?.pad_with_zeros(2, 0, 1)? };
    let weights = (&gamma + next)?.unsqueeze(2)?.broadcast_mul(&below)?;
    let weights = (weights + gamma.unsqueeze(2)?.broadcast_mul(&eye)?)?; // (b, R R h, t, s)
    let decay = segment_sums(&by_head(&alone.log_decay)?)?.exp()?;
    let scores = heads(&alone.q)?.matmul(&heads(&alone.k)?.t()?)?;
    // The skip joins equal ranks.
    let same = Tensor::eye(r, dtype, device)?.reshape((r * r, 1))?;
    let skip = same.broadcast_mul(&layer.d.to_dtype(dtype)?.unsqueeze(0)?)?.reshape((r * r * h, 1, 1))?;
    let matrix = ((scores * decay)? * weights)?.broadcast_add(&skip.broadcast_mul(&eye)?)?;
    let output = (y + v.broadcast_mul(&skip.squeeze(D::Minus1)?.unsqueeze(2)?)?)?;
    Ok(Mixing { matrix, values: v, output })
}
