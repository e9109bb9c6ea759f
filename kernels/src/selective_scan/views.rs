//! The scan's tensors as slices.

use candle_core::{DType, Result, Tensor, bail};

use super::{OP, SelectiveScan, SelectiveStateUpdate};
use crate::host::{self, Rows};
use crate::simd::Real;

/// The scan's tensors in the order of the autograd graph: x, dt, a, b, c, d, dt_bias, z, initial state.
pub(super) const INPUTS: usize = 9;

/// The arguments in the dtype of the arithmetic, as rows of tokens where they have tokens.
pub(super) fn prepare(args: &SelectiveScan, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t| rows(t, 2, work);
    Ok([
        rows(args.x)?,
        rows(args.dt)?,
        whole(Some(args.a), work)?,
        rows(args.b)?,
        rows(args.c)?,
        whole(args.d, work)?,
        whole(args.dt_bias, work)?,
        args.z.map_or(Ok(None), rows)?,
        whole(args.initial_state, work)?,
    ])
}

/// The arguments of one token, likewise, outside of any graph.
pub(super) fn prepare_step(args: &SelectiveStateUpdate, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t| rows(t, 1, work);
    let inputs = [
        rows(args.x)?,
        rows(args.dt)?,
        whole(Some(args.a), work)?,
        rows(args.b)?,
        rows(args.c)?,
        whole(args.d, work)?,
        whole(args.dt_bias, work)?,
        args.z.map_or(Ok(None), rows)?,
        None,
    ];
    Ok(inputs.map(|t| t.map(|t| t.detach())))
}

fn rows(t: &Tensor, lead: usize, work: DType) -> Result<Option<Tensor>> {
    host::in_rows(&t.to_dtype(work)?, lead).map(Some)
}

fn whole(t: Option<&Tensor>, work: DType) -> Result<Option<Tensor>> {
    t.map(|t| t.to_dtype(work)?.contiguous()).transpose()
}

/// Prepared arguments as slices; token `t` of the flattened batch is row `t`.
#[derive(Clone, Copy)]
pub(super) struct Views<'a, T> {
    pub(super) x: Rows<'a, T>,
    pub(super) dt: Rows<'a, T>,
    pub(super) a: &'a [T],
    pub(super) b: Rows<'a, T>,
    pub(super) c: Rows<'a, T>,
    pub(super) d: Option<&'a [T]>,
    pub(super) dt_bias: Option<&'a [T]>,
    pub(super) z: Option<Rows<'a, T>>,
    pub(super) state: Option<&'a [T]>,
    pub(super) softplus: bool,
}

/// Hands the prepared arguments to `f` as slices; `lead` dimensions of x, dt, b, c and z count tokens.
pub(super) fn with_views<T: Real, R>(
    inputs: &[Option<Tensor>],
    lead: usize,
    softplus: bool,
    f: impl FnOnce(&Views<T>) -> R,
) -> Result<R> {
    let guards: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let rows =
        |k: usize| guards[k].as_ref().map(|(guard, layout)| Rows::<T>::new(guard, layout, lead)).transpose();
    let slice =
        |k: usize| guards[k].as_ref().map(|(guard, layout)| host::slice::<T>(guard, layout)).transpose();
    let (Some(x), Some(dt), Some(a), Some(b), Some(c)) = (rows(0)?, rows(1)?, slice(2)?, rows(3)?, rows(4)?)
    else {
        bail!("{OP}: x, dt, a, b and c are needed");
    };
    let (d, dt_bias, z, state) = (slice(5)?, slice(6)?, rows(7)?, slice(8)?);
    Ok(f(&Views { x, dt, a, b, c, d, dt_bias, z, state, softplus }))
}
