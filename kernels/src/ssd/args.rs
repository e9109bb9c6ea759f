//! Arguments of the SSD scan and of its one-token step, and their checks.

use candle_core::{Result, Tensor, bail};

use super::{OP, STEP};
use crate::check::{divides, optional, positive, shape};
use crate::segments::{Segment, segments};

/// No clamp on step sizes.
const NO_LIMIT: (f64, f64) = (0.0, f64::INFINITY);

/// Arguments of [`ssd_chunk_scan`](super::ssd_chunk_scan). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct SsdChunkScan<'a> {
    /// Input, (b, l, h, p).
    pub x: &'a Tensor,
    /// Step sizes before bias and softplus, (b, l, h).
    pub dt: &'a Tensor,
    /// Continuous-time decay rates, (h) f32 (f64 for f64 data): negative, `-exp(A_log)`.
    pub a: &'a Tensor,
    /// Input map, (b, l, g, n); `g` divides `h`, and heads share it in blocks of `h / g`.
    pub b: &'a Tensor,
    /// Output map, (b, l, g, n).
    pub c: &'a Tensor,
    /// Skip connection, (h) or (h, p).
    pub d: Option<&'a Tensor>,
    /// Added to `dt` before the softplus, (h).
    pub dt_bias: Option<&'a Tensor>,
    /// Gate, (b, l, h, p): the output is multiplied by `silu(z)`.
    pub z: Option<&'a Tensor>,
    /// Whether step sizes pass through a softplus.
    pub dt_softplus: bool,
    /// Step sizes are clamped to this range after the softplus; `(0, ∞)` clamps nothing.
    pub dt_limit: (f64, f64),
    /// Most tokens whose mixing matrix is formed at once; a matter of speed, never of the result.
    pub chunk_size: usize,
    /// State before the first token, (b or n_seq, h, p, n); zero if absent.
    pub initial_state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> SsdChunkScan<'a> {
    /// The plain scan, all options off.
    pub fn new(
        x: &'a Tensor,
        dt: &'a Tensor,
        a: &'a Tensor,
        b: &'a Tensor,
        c: &'a Tensor,
        chunk_size: usize,
    ) -> Self {
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
            dt_limit: NO_LIMIT,
            chunk_size,
            initial_state: None,
            cu_seqlens: None,
        }
    }

    /// The sizes and sequences, if all shapes fit.
    pub(super) fn check(&self) -> Result<Dims> {
        let (b, l, h, p) = self.x.dims4()?;
        let (_, _, g, n) = self.b.dims4()?;
        shape(OP, "x", self.x, &[b, l, h, p], "(b, l, h, p)")?;
        shape(OP, "dt", self.dt, &[b, l, h], "one a token and head of x")?;
        shape(OP, "a", self.a, &[h], "one a head")?;
        positive(OP, &[("the number of heads", h), ("the head dimension", p), ("the state size", n)])?;
        divides(OP, ("b", g), ("heads of x", h))?;
        shape(OP, "b", self.b, &[b, l, g, n], "(b, l, g, n)")?;
        shape(OP, "c", self.c, &[b, l, g, n], "as b")?;
        skip_shape(OP, self.d, h, p)?;
        optional(OP, "dt_bias", self.dt_bias, &[h], "one a head")?;
        optional(OP, "z", self.z, &[b, l, h, p], "as x")?;
        limits(OP, self.dt_limit)?;
        positive(OP, &[("chunk_size", self.chunk_size)])?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        optional(
            OP,
            "initial_state",
            self.initial_state,
            &[segments.len(), h, p, n],
            "(sequences, h, p, n)",
        )?;
        Ok(Dims { b, l, h, p, n, g, segments })
    }
}

fn skip_shape(op: &str, d: Option<&Tensor>, h: usize, p: usize) -> Result<()> {
    match d {
        Some(d) if d.rank() == 2 => shape(op, "d", d, &[h, p], "one a channel"),
        d => optional(op, "d", d, &[h], "one a head"),
    }
}

fn limits(op: &str, (low, high): (f64, f64)) -> Result<()> {
    if low.is_nan() || high.is_nan() || low > high {
        bail!("{op}: dt_limit is ({low}, {high}), expected a lower and an upper limit");
    }
    Ok(())
}

/// The clamp of these limits, if they clamp at all.
pub(super) fn clamp(limit: (f64, f64)) -> Option<(f64, f64)> {
    (limit != NO_LIMIT).then_some(limit)
}

/// Sizes of a scan.
#[derive(Debug, Clone)]
pub(super) struct Dims {
    pub(super) b: usize,
    pub(super) l: usize,
    pub(super) h: usize,
    pub(super) p: usize,
    pub(super) n: usize,
    pub(super) g: usize,
    pub(super) segments: Vec<Segment>,
}

/// Arguments of [`ssd_state_update`](super::ssd_state_update): one token of [`SsdChunkScan`].
#[derive(Debug, Clone, Copy)]
pub struct SsdStateUpdate<'a> {
    /// Input, (b, h, p).
    pub x: &'a Tensor,
    /// Step sizes before bias and softplus, (b, h).
    pub dt: &'a Tensor,
    /// Continuous-time decay rates, (h) f32 (f64 for f64 data).
    pub a: &'a Tensor,
    /// Input map, (b, g, n).
    pub b: &'a Tensor,
    /// Output map, (b, g, n).
    pub c: &'a Tensor,
    /// Skip connection, (h) or (h, p).
    pub d: Option<&'a Tensor>,
    /// Added to `dt` before the softplus, (h).
    pub dt_bias: Option<&'a Tensor>,
    /// Gate, (b, h, p).
    pub z: Option<&'a Tensor>,
    /// Whether step sizes pass through a softplus.
    pub dt_softplus: bool,
    /// Step sizes are clamped to this range after the softplus; `(0, ∞)` clamps nothing.
    pub dt_limit: (f64, f64),
}

impl<'a> SsdStateUpdate<'a> {
    /// The plain step, all options off.
    pub fn new(x: &'a Tensor, dt: &'a Tensor, a: &'a Tensor, b: &'a Tensor, c: &'a Tensor) -> Self {
        Self { x, dt, a, b, c, d: None, dt_bias: None, z: None, dt_softplus: false, dt_limit: NO_LIMIT }
    }

    /// The sizes, as of a scan over one token, if all shapes fit.
    pub(super) fn check(&self, state: &Tensor) -> Result<Dims> {
        let (b, h, p) = self.x.dims3()?;
        let (_, g, n) = self.b.dims3()?;
        shape(STEP, "x", self.x, &[b, h, p], "(b, h, p)")?;
        shape(STEP, "state", state, &[b, h, p, n], "(b, h, p, n)")?;
        shape(STEP, "dt", self.dt, &[b, h], "one a head of x")?;
        shape(STEP, "a", self.a, &[h], "one a head")?;
        positive(STEP, &[("the number of heads", h), ("the head dimension", p), ("the state size", n)])?;
        divides(STEP, ("b", g), ("heads of x", h))?;
        shape(STEP, "b", self.b, &[b, g, n], "(b, g, n)")?;
        shape(STEP, "c", self.c, &[b, g, n], "as b")?;
        skip_shape(STEP, self.d, h, p)?;
        optional(STEP, "dt_bias", self.dt_bias, &[h], "one a head")?;
        optional(STEP, "z", self.z, &[b, h, p], "as x")?;
        limits(STEP, self.dt_limit)?;
        Ok(Dims { b, l: 1, h, p, n, g, segments: segments(STEP, b, 1, None)? })
    }
}
