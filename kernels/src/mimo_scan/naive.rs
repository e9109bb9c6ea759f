//! The definition: dense maps around the diagonal scan's definition, in tensor operations that autograd differentiates.

use candle_core::{Result, Tensor};

use super::MimoScan;
use crate::diagonal_scan::{DiagonalScan, naive};
use crate::host::state_dtype;

/// [`mimo_scan`](fn@super::mimo_scan), slowly, on any device: the reference for the fast one.
///
/// # Errors
/// As the fast one.
pub fn mimo_scan(args: &MimoScan) -> Result<(Tensor, Tensor)> {
    let dims = args.check()?;
    let work = state_dtype(args.u.dtype());
    let (u, width) = (args.u.to_dtype(work)?, dims.width());
    let number = if dims.planes == 2 { vec![2, dims.p] } else { vec![dims.p] };
    let x = u.flatten_to(1)?.matmul(&args.input.to_dtype(work)?.t()?)?;
    let x = x.reshape([vec![dims.b, dims.l], number].concat())?;
    let a = args.a.to_dtype(work)?;
    let (h, state) = naive::diagonal_scan(&DiagonalScan {
        reverse: args.reverse,
        initial_state: args.initial_state,
        cu_seqlens: args.cu_seqlens,
        ..DiagonalScan::new(&a, &x)
    })?;
    let h = h.reshape((dims.b * dims.l, width))?;
    let mut y = h.matmul(&args.output.to_dtype(work)?.t()?)?.reshape((dims.b, dims.l, dims.outputs))?;
    if let Some(skip) = args.skip {
        let inputs = Tensor::cat(&vec![u; dims.outputs / dims.d], 2)?;
        y = (y + inputs.broadcast_mul(&skip.to_dtype(work)?)?)?;
    }
    Ok((y.to_dtype(args.u.dtype())?, state))
}
