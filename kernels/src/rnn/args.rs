//! Arguments of the recurrence, their checks, and the order of its sequences.

use candle_core::{DType, Result, Tensor};

use super::OP;
use crate::check::{optional, positive, shape};
use crate::host;
use crate::segments::{Segment, segments};

/// What is done at each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// Long short-term memory: gates i, f, g, o.
    Lstm,
    /// Gated recurrent unit: gates r, z, n.
    Gru,
    /// `tanh`
    Tanh,
    /// `max(·, 0)`
    Relu,
}

impl Cell {
    /// Rows of h in the weight.
    pub fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
            Self::Tanh | Self::Relu => 1,
        }
    }

    /// Rows of h in the state: 2 for the LSTM (h, c), else 1.
    pub fn states(self) -> usize {
        if self == Self::Lstm { 2 } else { 1 }
    }

    /// Rows of h that a token leaves for the backward pass: i, f, g, o, c; r, z, n, q_n; none.
    pub(super) fn saved(self) -> usize {
        match self {
            Self::Lstm => 5,
            Self::Gru => 4,
            Self::Tanh | Self::Relu => 0,
        }
    }
}

/// Arguments of [`recurrence`](super::recurrence). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct Recurrence<'a> {
    /// The cell.
    pub cell: Cell,
    /// The inputs' side, `W_ih x + b_ih`: (b, l, gates h).
    pub x: &'a Tensor,
    /// U, (gates h, h).
    pub weight_hh: &'a Tensor,
    /// b_hh, (gates h).
    pub bias_hh: Option<&'a Tensor>,
    /// State before the first token, (b or n_seq, s, h); zero if absent.
    pub initial_state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> Recurrence<'a> {
    /// From zero, without a bias.
    pub fn new(cell: Cell, x: &'a Tensor, weight_hh: &'a Tensor) -> Self {
        Self { cell, x, weight_hh, bias_hh: None, initial_state: None, cu_seqlens: None }
    }

    pub(super) fn check(&self) -> Result<Dims> {
        let (b, l, _) = self.x.dims3()?;
        let (_, h) = self.weight_hh.dims2()?;
        let (rows, cell) = (self.cell.gates() * h, self.cell);
        positive(OP, &[("the number of channels", h)])?;
        shape(OP, "weight_hh", self.weight_hh, &[rows, h], "(gates h, h)")?;
        shape(OP, "x", self.x, &[b, l, rows], "(b, l, gates h)")?;
        optional(OP, "bias_hh", self.bias_hh, &[rows], "one a row of weight_hh")?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        let state = [segments.len(), cell.states(), h];
        optional(OP, "initial_state", self.initial_state, &state, "(sequences, states, h)")?;
        Ok(Dims { cell, b, l, h, segments })
    }
}

/// Sizes of a call.
#[derive(Debug, Clone)]
pub(super) struct Dims {
    pub(super) cell: Cell,
    pub(super) b: usize,
    pub(super) l: usize,
    pub(super) h: usize,
    pub(super) segments: Vec<Segment>,
}

impl Dims {
    pub(super) fn width(&self) -> usize {
        self.cell.gates() * self.h
    }

    /// Sequences, longest first: those that still have tokens at some step are then the first ones.
    pub(super) fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.segments.len()).collect();
        order.sort_by_key(|&k| std::cmp::Reverse(self.segments[k].len));
        order
    }

    /// How many sequences of `order` have a token `t`.
    pub(super) fn active(&self, order: &[usize], t: usize) -> usize {
        order.partition_point(|&k| self.segments[k].len > t)
    }

    pub(super) fn longest(&self) -> usize {
        self.segments.iter().map(|s| s.len).max().unwrap_or(0)
    }
}

/// The tensors in the order of the autograd graph: x, weight, bias, initial state.
pub(super) const INPUTS: usize = 4;

/// The arguments in the dtype of the arithmetic.
pub(super) fn prepare(args: &Recurrence, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let whole = |t: &Tensor| t.to_dtype(work)?.contiguous().map(Some);
    Ok([
        host::in_rows(&args.x.to_dtype(work)?, 2).map(Some)?,
        whole(args.weight_hh)?,
        args.bias_hh.map_or(Ok(None), whole)?,
        args.initial_state.map_or(Ok(None), whole)?,
    ])
}
