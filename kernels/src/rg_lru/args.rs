//! Arguments of the unit and their checks.

use candle_core::{DType, Result, Tensor, bail};

use super::{OP, STEP};
use crate::check::{optional, positive, shape};
use crate::diagonal_scan::args::Dims;
use crate::host;
use crate::segments::segments;

/// Arguments of [`rg_lru`](fn@super::rg_lru). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct RgLru<'a> {
    /// Input, (b, l, d).
    pub x: &'a Tensor,
    /// Input gate before its sigmoid, (b, l, d).
    pub input_gate: &'a Tensor,
    /// Recurrence gate before its sigmoid, (b, l, d).
    pub recurrent_gate: &'a Tensor,
    /// Λ, (d) f32 (f64 for f64 data).
    pub recurrent_param: &'a Tensor,
    /// c.
    pub c: f64,
    /// State before the first token, (b or n_seq, d); zero if absent.
    pub initial_state: Option<&'a Tensor>,
    /// Which sequences start here rather than go on; default: all without an initial state, none with one.
    pub starts: Option<&'a [bool]>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

/// Sizes of a call.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    pub(super) dims: Dims,
    /// For each sequence.
    pub(super) starts: Vec<bool>,
    pub(super) c: f64,
}

impl<'a> RgLru<'a> {
    /// From the start of each sequence, with c = 8.
    pub fn new(
        x: &'a Tensor,
        input_gate: &'a Tensor,
        recurrent_gate: &'a Tensor,
        recurrent_param: &'a Tensor,
    ) -> Self {
        let (initial_state, starts, cu_seqlens) = (None, None, None);
        Self { x, input_gate, recurrent_gate, recurrent_param, c: 8.0, initial_state, starts, cu_seqlens }
    }

    pub(super) fn check(&self) -> Result<Sizes> {
        let (b, l, d) = self.x.dims3()?;
        shape(OP, "x", self.x, &[b, l, d], "(b, l, d)")?;
        positive(OP, &[("the number of channels", d)])?;
        shape(OP, "input_gate", self.input_gate, &[b, l, d], "as x")?;
        shape(OP, "recurrent_gate", self.recurrent_gate, &[b, l, d], "as x")?;
        shape(OP, "recurrent_param", self.recurrent_param, &[d], "one a channel")?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        optional(OP, "initial_state", self.initial_state, &[segments.len(), d], "(sequences, d)")?;
        let starts = match self.starts {
            Some(starts) if starts.len() == segments.len() => starts.to_vec(),
            Some(starts) => bail!("{OP}: starts has {} sequences, expected {}", starts.len(), segments.len()),
            None => vec![self.initial_state.is_none(); segments.len()],
        };
        let dims = Dims { b, l, p: d, planes: 1, varying: true, reverse: false, segments };
        Ok(Sizes { dims, starts, c: self.c })
    }
}

/// The tensors in the order of the autograd graph: x, input gate, recurrent gate, Λ, initial state.
pub(super) const INPUTS: usize = 5;

/// The arguments in the dtype of the arithmetic, as rows of tokens where they have tokens.
pub(super) fn prepare(args: &RgLru, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t: &Tensor| host::in_rows(&t.to_dtype(work)?, 2).map(Some);
    let whole = |t: &Tensor| t.to_dtype(work)?.contiguous().map(Some);
    Ok([
        rows(args.x)?,
        rows(args.input_gate)?,
        rows(args.recurrent_gate)?,
        whole(args.recurrent_param)?,
        args.initial_state.map_or(Ok(None), whole)?,
    ])
}

/// Arguments of [`rg_lru_update`](super::rg_lru_update): one token of [`RgLru`].
#[derive(Debug, Clone, Copy)]
pub struct RgLruUpdate<'a> {
    /// Input, (b, d).
    pub x: &'a Tensor,
    /// Input gate before its sigmoid, (b, d).
    pub input_gate: &'a Tensor,
    /// Recurrence gate before its sigmoid, (b, d).
    pub recurrent_gate: &'a Tensor,
    /// Λ, (d) f32 (f64 for f64 data).
    pub recurrent_param: &'a Tensor,
    /// c.
    pub c: f64,
    /// Which rows start here, (b).
    pub starts: &'a [bool],
}

impl RgLruUpdate<'_> {
    pub(super) fn check(&self, state: &Tensor) -> Result<(usize, usize)> {
        let (b, d) = self.x.dims2()?;
        shape(STEP, "x", self.x, &[b, d], "(b, d)")?;
        positive(STEP, &[("the number of channels", d)])?;
        shape(STEP, "state", state, &[b, d], "as x")?;
        shape(STEP, "input_gate", self.input_gate, &[b, d], "as x")?;
        shape(STEP, "recurrent_gate", self.recurrent_gate, &[b, d], "as x")?;
        shape(STEP, "recurrent_param", self.recurrent_param, &[d], "one a channel")?;
        if self.starts.len() != b {
            bail!("{STEP}: starts has {} rows, expected {b}", self.starts.len());
        }
        Ok((b, d))
    }
}
