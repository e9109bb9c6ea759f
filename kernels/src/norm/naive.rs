//! The norms in plain tensor operations, differentiated by autograd.

use candle_core::{D, DType, Result, Tensor};

use crate::state_dtype;

/// See [`super::rms_norm`]; the arguments have been checked.
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64, group: usize) -> Result<Tensor> {
    let y = normalize(&x.to_dtype(state_dtype(x.dtype()))?, eps, group)?;
    scale(y, weight, None)?.to_dtype(x.dtype())
}

/// See [`super::gated_rms_norm`]; the arguments have been checked.
pub fn gated_rms_norm(
    x: &Tensor,
    z: &Tensor,
    weight: Option<&Tensor>,
    eps: f64,
    group: usize,
    norm_before_gate: bool,
) -> Result<Tensor> {
    let wide = state_dtype(x.dtype());
    let (xw, gate) = (x.to_dtype(wide)?, z.to_dtype(wide)?.silu()?);
    let y = if norm_before_gate {
        (scale(normalize(&xw, eps, group)?, weight, None)? * gate)?
    } else {
        scale(normalize(&(xw * gate)?, eps, group)?, weight, None)?
    };
    y.to_dtype(x.dtype())
}

/// See [`super::layer_norm`]; the arguments have been checked.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    group_norm(x, weight, bias, eps, x.dim(D::Minus1)?)
}

/// See [`super::group_norm`]; the arguments have been checked.
pub fn group_norm(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
    group: usize,
) -> Result<Tensor> {
    let grouped = x.to_dtype(state_dtype(x.dtype()))?.reshape(((), group))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?.reshape(x.shape())?;
    scale(normalize(&centred, eps, group)?, weight, bias)?.to_dtype(x.dtype())
}

/// `x / sqrt(mean(x²) + eps)` over groups of the last dimension.
fn normalize(x: &Tensor, eps: f64, group: usize) -> Result<Tensor> {
    let grouped = x.reshape(((), group))?;
    let mean = grouped.sqr()?.mean_keepdim(D::Minus1)?;
    grouped.broadcast_div(&(mean + eps)?.sqrt()?)?.reshape(x.shape())
}

fn scale(y: Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let wide: DType = y.dtype();
    let y = match weight {
        Some(w) => y.broadcast_mul(&w.to_dtype(wide)?)?,
        None => y,
    };
    match bias {
        Some(b) => y.broadcast_add(&b.to_dtype(wide)?),
        None => Ok(y),
    }
}
