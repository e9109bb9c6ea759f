//! Arguments of the average and of its one-token step, and their checks.

use candle_core::{Result, Tensor};

use super::{OP, STEP};
use crate::check::{optional, positive, shape};
use crate::segments::{Segment, segments};

/// Arguments of [`wkv4`](fn@super::wkv4). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct Wkv4<'a> {
    /// Keys, (b, l, c).
    pub k: &'a Tensor,
    /// Values, (b, l, c).
    pub v: &'a Tensor,
    /// Logarithm of the decay factor of a token, (c): `-exp(time_decay)`.
    pub w: &'a Tensor,
    /// Added to the key of the token itself, (c): `time_first`.
    pub u: &'a Tensor,
    /// State before the first token, (b or n_seq, 3, c): numerator, denominator, max; [`wkv4_state`](super::wkv4_state)
    /// if absent.
    pub state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> Wkv4<'a> {
    /// From nothing, one sequence a row.
    pub fn new(k: &'a Tensor, v: &'a Tensor, w: &'a Tensor, u: &'a Tensor) -> Self {
        Self { k, v, w, u, state: None, cu_seqlens: None }
    }

    /// The sizes and sequences, if all shapes fit.
    pub(super) fn check(&self) -> Result<Dims> {
        let (b, l, c) = self.k.dims3()?;
        shape(OP, "k", self.k, &[b, l, c], "(b, l, c)")?;
        shape(OP, "v", self.v, &[b, l, c], "as k")?;
        positive(OP, &[("the number of channels", c)])?;
        shape(OP, "w", self.w, &[c], "one a channel")?;
        shape(OP, "u", self.u, &[c], "one a channel")?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        optional(OP, "state", self.state, &[segments.len(), 3, c], "(sequences, 3, c)")?;
        Ok(Dims { b, l, c, segments })
    }
}

/// Sizes of a call.
#[derive(Debug, Clone)]
pub(super) struct Dims {
    pub(super) b: usize,
    pub(super) l: usize,
    pub(super) c: usize,
    pub(super) segments: Vec<Segment>,
}

/// Arguments of [`wkv4_update`](super::wkv4_update): one token of [`Wkv4`].
#[derive(Debug, Clone, Copy)]
pub struct Wkv4Update<'a> {
    /// Keys, (b, c).
    pub k: &'a Tensor,
    /// Values, (b, c).
    pub v: &'a Tensor,
    /// Logarithm of the decay factor, (c).
    pub w: &'a Tensor,
    /// Added to the key of the token itself, (c).
    pub u: &'a Tensor,
}

impl Wkv4Update<'_> {
    /// Rows and channels, if all shapes fit.
    pub(super) fn check(&self, state: &Tensor) -> Result<(usize, usize)> {
        let (b, c) = self.k.dims2()?;
        shape(STEP, "k", self.k, &[b, c], "(b, c)")?;
        shape(STEP, "v", self.v, &[b, c], "as k")?;
        positive(STEP, &[("the number of channels", c)])?;
        shape(STEP, "w", self.w, &[c], "one a channel")?;
        shape(STEP, "u", self.u, &[c], "one a channel")?;
        shape(STEP, "state", state, &[b, 3, c], "(b, 3, c)")?;
        Ok((b, c))
    }
}
