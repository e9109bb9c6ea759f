//! Arguments of the decay scan and of its one-token step, and their checks.

use candle_core::{Result, Tensor};

use super::{OP, STEP};
use crate::check::{optional, positive, shape};
use crate::segments::{Segment, segments};

/// Arguments of [`decay_scan`](fn@super::decay_scan). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct DecayScan<'a> {
    /// Queries (RWKV: receptances), (b, l, h, n).
    pub q: &'a Tensor,
    /// Keys, (b, l, h, n).
    pub k: &'a Tensor,
    /// Values, (b, l, h, p).
    pub v: &'a Tensor,
    /// Logarithms of the decay factors, (b, l, h, n): at most 0; `-∞` is a factor of exactly 0.
    pub log_decay: &'a Tensor,
    /// RWKV's bonus `u`, (h, n). With it an output reads the state before its own token, and its own token times `u`.
    pub bonus: Option<&'a Tensor>,
    /// State before the first token, (b or n_seq, h, n, p); zero if absent.
    pub state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> DecayScan<'a> {
    /// The plain scan, all options off.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, log_decay: &'a Tensor) -> Self {
        Self { q, k, v, log_decay, bonus: None, state: None, cu_seqlens: None }
    }

    /// The sizes and sequences, if all shapes fit.
    pub(super) fn check(&self) -> Result<Dims> {
        let (b, l, h, n) = self.q.dims4()?;
        let (_, _, _, p) = self.v.dims4()?;
        shape(OP, "q", self.q, &[b, l, h, n], "(b, l, h, n)")?;
        shape(OP, "k", self.k, &[b, l, h, n], "as q")?;
        shape(OP, "v", self.v, &[b, l, h, p], "(b, l, h, p) with q's b, l and h")?;
        shape(OP, "log_decay", self.log_decay, &[b, l, h, n], "as q")?;
        sizes(OP, h, n, p)?;
        optional(OP, "bonus", self.bonus, &[h, n], "one a head and channel of q")?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        optional(OP, "state", self.state, &[segments.len(), h, n, p], "(sequences, h, n, p)")?;
        Ok(Dims { b, l, h, n, p, segments })
    }
}

fn sizes(op: &str, h: usize, n: usize, p: usize) -> Result<()> {
    positive(op, &[("the number of heads", h), ("the width of a key", n), ("the width of a value", p)])
}

/// Sizes of a scan.
#[derive(Debug, Clone)]
pub(super) struct Dims {
    pub(super) b: usize,
    pub(super) l: usize,
    pub(super) h: usize,
    pub(super) n: usize,
    pub(super) p: usize,
    pub(super) segments: Vec<Segment>,
}

/// Arguments of [`decay_state_update`](super::decay_state_update): one token of [`DecayScan`].
#[derive(Debug, Clone, Copy)]
pub struct DecayStateUpdate<'a> {
    /// Queries, (b, h, n).
    pub q: &'a Tensor,
    /// Keys, (b, h, n).
    pub k: &'a Tensor,
    /// Values, (b, h, p).
    pub v: &'a Tensor,
    /// Logarithms of the decay factors, (b, h, n).
    pub log_decay: &'a Tensor,
    /// RWKV's bonus `u`, (h, n).
    pub bonus: Option<&'a Tensor>,
}

impl<'a> DecayStateUpdate<'a> {
    /// The plain step, without a bonus.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, log_decay: &'a Tensor) -> Self {
        Self { q, k, v, log_decay, bonus: None }
    }

    /// The sizes, as of a scan over one token, if all shapes fit.
    pub(super) fn check(&self, state: &Tensor) -> Result<Dims> {
        let (b, h, n) = self.q.dims3()?;
        let (_, _, p) = self.v.dims3()?;
        shape(STEP, "q", self.q, &[b, h, n], "(b, h, n)")?;
        shape(STEP, "k", self.k, &[b, h, n], "as q")?;
        shape(STEP, "v", self.v, &[b, h, p], "(b, h, p) with q's b and h")?;
        shape(STEP, "log_decay", self.log_decay, &[b, h, n], "as q")?;
        shape(STEP, "state", state, &[b, h, n, p], "(b, h, n, p)")?;
        sizes(STEP, h, n, p)?;
        optional(STEP, "bonus", self.bonus, &[h, n], "one a head and channel of q")?;
        Ok(Dims { b, l: 1, h, n, p, segments: segments(STEP, b, 1, None)? })
    }
}
