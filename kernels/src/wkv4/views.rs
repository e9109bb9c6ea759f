//! The tensors as slices.

use candle_core::{DType, Result, Tensor, bail};

use super::{OP, Wkv4, Wkv4Update};
use crate::host::{self, Rows};
use crate::simd::Real;

/// The tensors in the order of the autograd graph: k, v, w, u, state.
pub(super) const INPUTS: usize = 5;

/// The arguments in the dtype of the arithmetic, k and v as rows of tokens.
pub(super) fn prepare(args: &Wkv4, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t: &Tensor| host::in_rows(&t.to_dtype(work)?, 2);
    let whole = |t: &Tensor| t.to_dtype(work)?.contiguous();
    Ok([
        Some(rows(args.k)?),
        Some(rows(args.v)?),
        Some(whole(args.w)?),
        Some(whole(args.u)?),
        args.state.map(whole).transpose()?,
    ])
}

/// The arguments of one token, likewise, outside of any graph.
pub(super) fn prepare_step(args: &Wkv4Update, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t: &Tensor| Ok::<_, candle_core::Error>(host::in_rows(&t.to_dtype(work)?, 1)?.detach());
    let whole = |t: &Tensor| Ok::<_, candle_core::Error>(t.to_dtype(work)?.contiguous()?.detach());
    Ok([Some(rows(args.k)?), Some(rows(args.v)?), Some(whole(args.w)?), Some(whole(args.u)?), None])
}

/// Prepared arguments; token `t` of the flattened batch is row `t`.
#[derive(Clone, Copy)]
pub(super) struct Views<'a, T> {
    pub(super) k: Rows<'a, T>,
    pub(super) v: Rows<'a, T>,
    pub(super) w: &'a [T],
    pub(super) u: &'a [T],
    pub(super) state: Option<&'a [T]>,
}

/// Hands the prepared arguments to `f`; `lead` dimensions of k and v count tokens.
pub(super) fn with_views<T: Real, R>(
    inputs: &[Option<Tensor>],
    lead: usize,
    f: impl FnOnce(&Views<T>) -> R,
) -> Result<R> {
    let guards: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let [Some(k), Some(v), Some(w), Some(u), state] = &guards[..] else {
        bail!("{OP}: k, v, w and u are needed")
    };
    Ok(f(&Views {
        k: Rows::new(&k.0, k.1, lead)?,
        v: Rows::new(&v.0, v.1, lead)?,
        w: host::slice(&w.0, w.1)?,
        u: host::slice(&u.0, u.1)?,
        state: state.as_ref().map(|s| host::slice(&s.0, s.1)).transpose()?,
    }))
}
