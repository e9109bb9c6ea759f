//! Arguments of the selective scan and of its one-token step, and their checks.

use candle_core::{Result, Tensor};

use super::{OP, STEP};
use crate::check::{divides, optional, positive, shape};
use crate::segments::{Segment, segments};

/// Arguments of [`selective_scan`](fn@super::selective_scan). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct SelectiveScan<'a> {
    /// Input, (b, l, e).
    pub x: &'a Tensor,
    /// Step sizes before bias and softplus, (b, l, e).
    pub dt: &'a Tensor,
    /// Continuous-time decay rates, (e, n) f32 (f64 for f64 data): negative, `-exp(A_log)`.
    pub a: &'a Tensor,
    /// Input map, (b, l, g, n); `g` divides `e`, and channels share it in blocks of `e / g`.
    pub b: &'a Tensor,
    /// Output map, (b, l, g, n).
    pub c: &'a Tensor,
    /// Skip connection, (e).
    pub d: Option<&'a Tensor>,
    /// Added to `dt` before the softplus, (e).
    pub dt_bias: Option<&'a Tensor>,
    /// Gate, (b, l, e): the output is multiplied by `silu(z)`.
    pub z: Option<&'a Tensor>,
    /// Whether step sizes pass through a softplus.
    pub dt_softplus: bool,
    /// State before the first token, (b or n_seq, e, n); zero if absent.
    pub initial_state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> SelectiveScan<'a> {
    /// The plain scan, all options off.
    pub fn new(x: &'a Tensor, dt: &'a Tensor, a: &'a Tensor, b: &'a Tensor, c: &'a Tensor) -> Self {
        Self {
            x,
            dt,
            a,
            b,
            c,
            d: None,
            dt_bias: None,
            z: None,
            dt_softplus: false,
            initial_state: None,
            cu_seqlens: None,
        }
    }

    /// The sizes and sequences, if all shapes fit.
    pub(super) fn check(&self) -> Result<Dims> {
        let (b, l, e) = self.x.dims3()?;
        let (_, n) = self.a.dims2()?;
        let (_, _, g, _) = self.b.dims4()?;
        shape(OP, "x", self.x, &[b, l, e], "(b, l, e)")?;
        shape(OP, "dt", self.dt, &[b, l, e], "as x")?;
        shape(OP, "a", self.a, &[e, n], "(e, n)")?;
        positive(OP, &[("the number of channels", e), ("the state size", n)])?;
        divides(OP, ("b", g), ("channels of x", e))?;
        shape(OP, "b", self.b, &[b, l, g, n], "(b, l, g, n)")?;
        shape(OP, "c", self.c, &[b, l, g, n], "as b")?;
        optional(OP, "d", self.d, &[e], "one a channel")?;
        optional(OP, "dt_bias", self.dt_bias, &[e], "one a channel")?;
        optional(OP, "z", self.z, &[b, l, e], "as x")?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        optional(OP, "initial_state", self.initial_state, &[segments.len(), e, n], "(sequences, e, n)")?;
        Ok(Dims { b, l, e, n, g, segments })
    }
}

/// Sizes of a scan.
#[derive(Debug, Clone)]
pub(super) struct Dims {
    pub(super) b: usize,
    pub(super) l: usize,
    pub(super) e: usize,
    pub(super) n: usize,
    pub(super) g: usize,
    pub(super) segments: Vec<Segment>,
}

/// Arguments of [`selective_state_update`](super::selective_state_update): one token of [`SelectiveScan`].
#[derive(Debug, Clone, Copy)]
pub struct SelectiveStateUpdate<'a> {
    /// Input, (b, e).
    pub x: &'a Tensor,
    /// Step sizes before bias and softplus, (b, e).
    pub dt: &'a Tensor,
    /// Continuous-time decay rates, (e, n) f32 (f64 for f64 data).
    pub a: &'a Tensor,
    /// Input map, (b, g, n).
    pub b: &'a Tensor,
    /// Output map, (b, g, n).
    pub c: &'a Tensor,
    /// Skip connection, (e).
    pub d: Option<&'a Tensor>,
    /// Added to `dt` before the softplus, (e).
    pub dt_bias: Option<&'a Tensor>,
    /// Gate, (b, e).
    pub z: Option<&'a Tensor>,
    /// Whether step sizes pass through a softplus.
    pub dt_softplus: bool,
}

impl<'a> SelectiveStateUpdate<'a> {
    /// The plain step, all options off.
    pub fn new(x: &'a Tensor, dt: &'a Tensor, a: &'a Tensor, b: &'a Tensor, c: &'a Tensor) -> Self {
        Self { x, dt, a, b, c, d: None, dt_bias: None, z: None, dt_softplus: false }
    }

    /// The sizes, if all shapes fit.
    pub(super) fn check(&self, state: &Tensor) -> Result<StepDims> {
        let (b, e) = self.x.dims2()?;
        let (_, n) = self.a.dims2()?;
        let (_, g, _) = self.b.dims3()?;
        shape(STEP, "x", self.x, &[b, e], "(b, e)")?;
        shape(STEP, "state", state, &[b, e, n], "(b, e, n)")?;
        shape(STEP, "dt", self.dt, &[b, e], "as x")?;
        shape(STEP, "a", self.a, &[e, n], "(e, n)")?;
        positive(STEP, &[("the number of channels", e), ("the state size", n)])?;
        divides(STEP, ("b", g), ("channels of x", e))?;
        shape(STEP, "b", self.b, &[b, g, n], "(b, g, n)")?;
        shape(STEP, "c", self.c, &[b, g, n], "as b")?;
        optional(STEP, "d", self.d, &[e], "one a channel")?;
        optional(STEP, "dt_bias", self.dt_bias, &[e], "one a channel")?;
        optional(STEP, "z", self.z, &[b, e], "as x")?;
        Ok(StepDims { b, e, n, g })
    }
}

/// Sizes of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepDims {
    pub(super) b: usize,
    pub(super) e: usize,
    pub(super) n: usize,
    pub(super) g: usize,
}
