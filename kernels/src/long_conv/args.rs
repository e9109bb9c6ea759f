//! Arguments of the convolution, their checks, and the sizes that follow.

use candle_core::{DType, Result, Tensor, bail};

use super::OP;
use crate::segments::{Segment, segments};
use crate::{check, host};

/// How to compute the sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ConvMethod {
    /// Whichever is faster.
    #[default]
    Auto,
    /// One product a pair of tokens: l · lk of them. Outputs do not depend on later inputs in any bit.
    Direct,
    /// By real FFTs: l log l. Rounding spreads over the whole sequence.
    Fft,
}

/// The inputs of [`long_conv`](super::long_conv).
#[derive(Debug, Clone, Copy)]
pub struct LongConv<'a> {
    /// (b, l, d), f32, f64, bf16 or f16; rows may lie apart.
    pub u: &'a Tensor,
    /// (d, lk) with lk >= 1: `k[:, j]` multiplies the input of `j - ahead` tokens ago.
    pub k: &'a Tensor,
    /// (d): a further factor on the present input.
    pub bias: Option<&'a Tensor>,
    /// (sequences, capacity, d): inputs before the first, oldest first.
    pub history: Option<&'a Tensor>,
    /// How many slots of each row of the history hold inputs; all if `None`. What lies behind them is not read.
    pub history_lengths: Option<&'a [usize]>,
    /// How many tokens the filter looks ahead; 0 for a causal one.
    pub ahead: usize,
    /// Boundaries `[0, l0, l0 + l1, ..., l]` of the sequences packed in the only row.
    pub cu_seqlens: Option<&'a [usize]>,
    /// How to compute it.
    pub method: ConvMethod,
}

impl<'a> LongConv<'a> {
    /// A causal convolution of whole sequences.
    pub fn new(u: &'a Tensor, k: &'a Tensor) -> Self {
        Self {
            u,
            k,
            bias: None,
            history: None,
            history_lengths: None,
            ahead: 0,
            cu_seqlens: None,
            method: ConvMethod::Auto,
        }
    }

    pub(super) fn check(&self) -> Result<Dims> {
        let Ok((b, l, d)) = self.u.dims3() else {
            bail!("{OP}: u has shape {}, expected (b, l, d)", check::tuple(self.u.dims()));
        };
        check::shape(OP, "u", self.u, &[b, l, d], "")?;
        let lk = match *self.k.dims() {
            [channels, lk] if channels == d && lk > 0 => lk,
            _ => bail!(
                "{OP}: k has shape {}, expected ({d}, lk) with lk >= 1: a filter a channel",
                check::tuple(self.k.dims())
            ),
        };
        check::shape(OP, "k", self.k, &[d, lk], "")?;
        if self.ahead >= lk {
            bail!("{OP}: ahead is {}, expected less than the filter's length {lk}", self.ahead);
        }
        check::optional(OP, "bias", self.bias, &[d], "one a channel")?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        let capacity = match self.history.map(|h| (h, h.dims())) {
            None => 0,
            Some((h, &[rows, capacity, channels])) if rows == segments.len() && channels == d => {
                check::shape(OP, "history", h, &[rows, capacity, d], "")?;
                capacity
            }
            Some((_, found)) => bail!(
                "{OP}: history has shape {}, expected ({}, capacity, {d}): a row a sequence",
                check::tuple(found),
                segments.len()
            ),
        };
        let past = match self.history_lengths {
            None => vec![capacity; segments.len()],
            Some(lengths) if lengths.len() == segments.len() && lengths.iter().all(|&n| n <= capacity) => {
                lengths.to_vec()
            }
            Some(lengths) => bail!(
                "{OP}: history_lengths is {lengths:?}, expected {} numbers up to the history's capacity {capacity}",
                segments.len()
            ),
        };
        Ok(Dims { b, l, d, lk, capacity, ahead: self.ahead, segments, past, method: self.method })
    }
}

/// The inputs in the arithmetic's dtype: tokens in rows, the filter dense one way or the other.
pub(super) fn prepared(args: &LongConv, work: DType) -> Result<[Option<Tensor>; 4]> {
    let rows = |t: &Tensor| host::in_rows(&t.to_dtype(work)?, 2);
    let k = args.k.to_dtype(work)?;
    let bias = args.bias.map(|t| t.to_dtype(work)?.contiguous()).transpose()?;
    Ok([
        Some(rows(args.u)?),
        Some(if k.is_contiguous() { k } else { host::in_rows(&k.t()?, 1)?.t()? }),
        bias,
        args.history.map(rows).transpose()?,
    ])
}

/// Checked sizes.
pub(super) struct Dims {
    pub(super) b: usize,
    pub(super) l: usize,
    pub(super) d: usize,
    pub(super) lk: usize,
    pub(super) capacity: usize,
    pub(super) ahead: usize,
    pub(super) segments: Vec<Segment>,
    /// Inputs of the history, a sequence.
    pub(super) past: Vec<usize>,
    pub(super) method: ConvMethod,
}

/// One sequence and the lags that matter to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Which sequence.
    pub(super) row: usize,
    /// First token, among all tokens.
    pub(super) start: usize,
    /// Tokens; at least 1.
    pub(super) len: usize,
    /// Inputs of the history that reach into the outputs.
    pub(super) past: usize,
    /// First row of these among the rows of all histories.
    pub(super) past_start: usize,
    /// Greatest lag.
    pub(super) behind: usize,
    /// Greatest look-ahead.
    pub(super) fore: usize,
}

impl Span {
    /// Inputs: history and tokens.
    pub(super) fn inputs(&self) -> usize {
        self.past + self.len
    }

    /// Number of lags, from `-fore` to `behind`: as many taps, of which `ahead - fore` is the first.
    pub(super) fn lags(&self) -> usize {
        self.fore + 1 + self.behind
    }
}

impl Dims {
    /// The sequences that have tokens.
    pub(super) fn spans(&self) -> Vec<Span> {
        let spans = self.segments.iter().enumerate().filter(|(_, s)| s.len > 0);
        spans
            .map(|(row, s)| {
                let past = self.past[row];
                let behind = (self.lk - 1 - self.ahead).min(past + s.len - 1);
                let reach = past.min(behind);
                Span {
                    row,
                    start: s.start,
                    len: s.len,
                    past: reach,
                    past_start: row * self.capacity + past - reach,
                    behind,
                    fore: self.ahead.min(s.len - 1),
                }
            })
            .collect()
    }
}
