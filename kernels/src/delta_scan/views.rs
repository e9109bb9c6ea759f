//! The ops' tensors as slices.

use candle_core::{DType, Result, Tensor, bail};

use super::args::{Op, Rule};
use crate::host::{self, Rows};
use crate::simd::Real;

/// The tensors in the order of the autograd graph: q, k, v, log_decay, a, b, beta, initial state.
pub(super) const INPUTS: usize = 8;

/// The arguments in the dtype of the arithmetic, as rows of tokens where they have tokens; `lead` dimensions count
/// tokens.
pub(super) fn prepare(op: &Op, lead: usize, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t: &Tensor| host::in_rows(&t.to_dtype(work)?, lead);
    let (a, b, beta) = match op.rule {
        Rule::Plain { a, b } => (Some(rows(a)?), Some(rows(b)?), None),
        Rule::Correct { beta } => (None, None, Some(rows(beta)?)),
    };
    let decay = op.log_decay.map(rows).transpose()?;
    let state = op.initial_state.map(|s| s.to_dtype(work)?.contiguous()).transpose()?;
    Ok([Some(rows(op.q)?), Some(rows(op.k)?), Some(rows(op.v)?), decay, a, b, beta, state])
}

/// What the rank-one terms of a token are made of.
#[derive(Debug, Clone, Copy)]
pub(super) enum RuleViews<'a, T> {
    Plain { a: Rows<'a, T>, b: Rows<'a, T> },
    Correct { beta: Rows<'a, T> },
}

/// Prepared arguments as slices; token `t` of the flattened batch is row `t`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Views<'a, T> {
    pub(super) q: Rows<'a, T>,
    pub(super) k: Rows<'a, T>,
    pub(super) v: Rows<'a, T>,
    pub(super) log_decay: Option<Rows<'a, T>>,
    pub(super) rule: RuleViews<'a, T>,
    pub(super) state: Option<&'a [T]>,
    pub(super) scale: T,
}

/// Hands the prepared arguments to `f` as slices.
pub(super) fn with_views<T: Real, R>(
    inputs: &[Option<Tensor>],
    lead: usize,
    scale: f64,
    f: impl FnOnce(&Views<T>) -> R,
) -> Result<R> {
    let guards: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let rows =
        |k: usize| guards[k].as_ref().map(|(guard, layout)| Rows::<T>::new(guard, layout, lead)).transpose();
    let (Some(q), Some(k), Some(v)) = (rows(0)?, rows(1)?, rows(2)?) else {
        bail!("delta rule: q, k and v are needed")
    };
    let rule = match (rows(4)?, rows(5)?, rows(6)?) {
        (Some(a), Some(b), None) => RuleViews::Plain { a, b },
        (None, None, Some(beta)) => RuleViews::Correct { beta },
        _ => bail!("delta rule: either a and b or beta are needed"),
    };
    let state = match guards.get(7) {
        Some(Some((guard, layout))) => Some(host::slice::<T>(guard, layout)?),
        _ => None,
    };
    Ok(f(&Views { q, k, v, log_decay: rows(3)?, rule, state, scale: T::real(scale) }))
}
