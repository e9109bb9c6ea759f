//! The scan's tensors as slices.

use candle_core::{DType, Result, Tensor, bail};

use super::{DecayScan, DecayStateUpdate, OP};
use crate::host::{self, Rows};
use crate::simd::Real;

/// The scan's tensors in the order of the autograd graph: q, k, v, log decay, bonus, state.
pub(super) const INPUTS: usize = 6;

/// The arguments in the dtype of the arithmetic, as rows of tokens where they have tokens.
pub(super) fn prepare(args: &DecayScan, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t| rows(t, 2, work);
    Ok([
        rows(args.q)?,
        rows(args.k)?,
        rows(args.v)?,
        rows(args.log_decay)?,
        whole(args.bonus, work)?,
        whole(args.state, work)?,
    ])
}

/// The arguments of one token, likewise, outside of any graph.
pub(super) fn prepare_step(args: &DecayStateUpdate, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t| rows(t, 1, work);
    let inputs =
        [rows(args.q)?, rows(args.k)?, rows(args.v)?, rows(args.log_decay)?, whole(args.bonus, work)?, None];
    Ok(inputs.map(|t| t.map(|t| t.detach())))
}

fn rows(t: &Tensor, lead: usize, work: DType) -> Result<Option<Tensor>> {
    host::in_rows(&t.to_dtype(work)?, lead).map(Some)
}

fn whole(t: Option<&Tensor>, work: DType) -> Result<Option<Tensor>> {
    t.map(|t| t.to_dtype(work)?.contiguous()).transpose()
}

/// Prepared arguments as slices; token `t` of the flattened batch is row `t`, head by head.
#[derive(Clone, Copy)]
pub(super) struct Views<'a, T> {
    pub(super) q: Rows<'a, T>,
    pub(super) k: Rows<'a, T>,
    pub(super) v: Rows<'a, T>,
    pub(super) log_decay: Rows<'a, T>,
    pub(super) bonus: Option<&'a [T]>,
    pub(super) state: Option<&'a [T]>,
}

/// Hands the prepared arguments to `f` as slices; `lead` dimensions of q, k, v and the log decay count tokens.
pub(super) fn with_views<T: Real, R>(
    inputs: &[Option<Tensor>],
    lead: usize,
    f: impl FnOnce(&Views<T>) -> R,
) -> Result<R> {
    let guards: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let rows =
        |k: usize| guards[k].as_ref().map(|(guard, layout)| Rows::<T>::new(guard, layout, lead)).transpose();
    let slice =
        |k: usize| guards[k].as_ref().map(|(guard, layout)| host::slice::<T>(guard, layout)).transpose();
    let (Some(q), Some(k), Some(v), Some(log_decay)) = (rows(0)?, rows(1)?, rows(2)?, rows(3)?) else {
        bail!("{OP}: q, k, v and log_decay are needed");
    };
    Ok(f(&Views { q, k, v, log_decay, bonus: slice(4)?, state: slice(5)? }))
}
