//! The definition: the recursion of Cox and de Boor in tensor operations that autograd differentiates.

use candle_core::{D, Result, Tensor};

use super::check_args;
use crate::host::state_dtype;

/// [`bspline_basis`](super::bspline_basis), on any device: the reference for the fast one.
///
/// # Errors
/// If the shapes do not fit.
pub fn bspline_basis(x: &Tensor, grid: &Tensor, order: usize) -> Result<Tensor> {
    check_args(x, grid, order)?;
    let work = state_dtype(x.dtype());
    let m = grid.dim(1)?;
    let knots = grid.detach().to_dtype(work)?.t()?.contiguous()?; // (m, i)
    let wide = x.to_dtype(work)?.unsqueeze(D::Minus2)?; // (..., 1, i)
    let from = |start: usize, len: usize| knots.narrow(0, start, len);
    let after = wide.broadcast_ge(&from(0, m - 1)?)?.to_dtype(work)?;
    let mut b = (after * wide.broadcast_lt(&from(1, m - 1)?)?.to_dtype(work)?)?; // (..., m - 1, i)
    for d in 1..=order {
        let k = m - 1 - d;
        let inverse = |start: usize| -> Result<Tensor> {
            let span = (from(start + d, k)? - from(start, k)?)?;
            let empty = span.eq(0.0)?.to_dtype(work)?;
            // 1 in place of a span of 0, then 0 in place of its inverse.
            (span + &empty)?.recip()? * (1.0 - empty)?
        };
        let rising = wide.broadcast_sub(&from(0, k)?)?.broadcast_mul(&inverse(0)?)?;
        let falling = wide.broadcast_sub(&from(d + 1, k)?)?.neg()?.broadcast_mul(&inverse(1)?)?;
        let (left, right) = (b.narrow(D::Minus2, 0, k)?, b.narrow(D::Minus2, 1, k)?);
        b = ((rising * left)? + (falling * right)?)?;
    }
    b.to_dtype(x.dtype())
}
