//! Pieces of mixing matrices.

use candle_core::{DType, Device, Result, Tensor};

/// Ones on and below the diagonal, (l, l).
///
/// # Errors
/// If memory cannot be had.
pub fn lower_triangle(l: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let ones: Vec<f32> = (0..l * l).map(|i| if i % l <= i / l { 1.0 } else { 0.0 }).collect();
    Tensor::from_vec(ones, (l, l), device)?.to_dtype(dtype)
}

/// `ln(1 + exp(x))` in plain tensor operations, without overflow.
///
/// # Errors
/// If the dtype is not a float.
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// `S[t,s] = Σ_{s<j≤t} x_j` for s ≤ t, and 0 above the diagonal: (..., l) -> (..., l, l).
///
/// Summed directly, not as a difference of prefix sums, which would cancel.
///
/// # Errors
/// If memory cannot be had.
pub fn segment_sums(x: &Tensor) -> Result<Tensor> {
    let l = x.dim(candle_core::D::Minus1)?;
    let (dtype, device) = (x.dtype(), x.device());
    let strict = (lower_triangle(l, dtype, device)? - Tensor::eye(l, dtype, device)?)?;
    // Column s holds x_j for j > s; summing rows up to t gives the span (s, t].
    let spread = x.unsqueeze(candle_core::D::Minus1)?.broadcast_mul(&strict)?; // (..., j, s)
    let lower = lower_triangle(l, dtype, device)?.broadcast_left(&x.dims()[..x.rank() - 1])?;
    lower.contiguous()?.matmul(&spread.contiguous()?)
}
