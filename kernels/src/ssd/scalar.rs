//! The scan with one decay a head, decays and input scales given independently: simple gated linear attention,
//! retention (a constant decay), linear attention (none), and whatever discretises by itself.
//!
//! ```text
//! S_t = exp(g_t) S_{t-1} + s_t v_t k_tᵀ        (h, p, n)  g = log_decay ≤ 0, s = scale, 1 if absent
//! y_t = S_t q_t                                (h, p)
//! ```
//! Sources: Sun et al. 2023, "Retentive Network", section 2; Yang et al. 2023, "Gated Linear Attention Transformers with
//! Hardware-Efficient Training", appendix C (simple GLA).

use candle_core::{DType, Result, Tensor};

use super::args::Dims;
use super::cpu::MAX_CHUNK;
use super::views::{INPUTS, StepRule, rows, whole};
use super::{Scan, step};
use crate::check::{divides, optional, positive, shape};
use crate::host::state_dtype;
use crate::segments::segments;
use crate::{check, inplace};

const OP: &str = "scalar_decay_scan";
const STEP: &str = "scalar_decay_state_update";

/// Decays and scales are taken as they are.
const RULE: StepRule = StepRule { softplus: false, clamp: None };

/// Arguments of [`scalar_decay_scan`]. Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct ScalarDecayScan<'a> {
    /// Queries, (b, l, g, n); `g` divides `h`, and heads share them in blocks of `h / g`.
    pub q: &'a Tensor,
    /// Keys, (b, l, g, n).
    pub k: &'a Tensor,
    /// Values, (b, l, h, p).
    pub v: &'a Tensor,
    /// Logarithms of the decay factors, at most 0, (b, l, h), or (h) if they are constant; `-∞` is a factor of 0.
    pub log_decay: &'a Tensor,
    /// What scales the input `v_t k_tᵀ`, (b, l, h); 1 if absent.
    pub scale: Option<&'a Tensor>,
    /// State before the first token, (b or n_seq, h, p, n); zero if absent.
    pub state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> ScalarDecayScan<'a> {
    /// The plain scan, all options off.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, log_decay: &'a Tensor) -> Self {
        Self { q, k, v, log_decay, scale: None, state: None, cu_seqlens: None }
    }

    /// The sizes and sequences, if all shapes fit.
    pub(super) fn check(&self) -> Result<Dims> {
        let (b, l, h, p) = self.v.dims4()?;
        let (_, _, g, n) = self.k.dims4()?;
        shape(OP, "v", self.v, &[b, l, h, p], "(b, l, h, p)")?;
        sizes(OP, (h, p), (g, n))?;
        shape(OP, "k", self.k, &[b, l, g, n], "(b, l, g, n)")?;
        shape(OP, "q", self.q, &[b, l, g, n], "as k")?;
        decay_shape(OP, self.log_decay, &[b, l, h])?;
        optional(OP, "scale", self.scale, &[b, l, h], "one a token and head of v")?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        optional(OP, "state", self.state, &[segments.len(), h, p, n], "(sequences, h, p, n)")?;
        Ok(Dims { b, l, h, p, n, g, segments })
    }
}

fn sizes(op: &str, (h, p): (usize, usize), (g, n): (usize, usize)) -> Result<()> {
    positive(op, &[("the number of heads", h), ("the width of a value", p), ("the width of a key", n)])?;
    divides(op, ("k", g), ("heads of v", h))
}

fn decay_shape(op: &str, log_decay: &Tensor, by_token: &[usize]) -> Result<()> {
    if log_decay.rank() == 1 {
        return shape(op, "log_decay", log_decay, &by_token[by_token.len() - 1..], "one a head");
    }
    shape(op, "log_decay", log_decay, by_token, "one a token and head of v")
}

/// The tensors in the order of the machine's inputs; `dims` are those of a decay a token and head.
fn prepare(
    [v, k, q, log_decay]: [&Tensor; 4],
    [scale, state]: [Option<&Tensor>; 2],
    dims: &[usize],
    work: DType,
) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t: &Tensor| rows(t, dims.len() - 1, work);
    let log_decay = rows(&log_decay.broadcast_as(dims)?)?;
    let (scale, state) = (scale.map_or(Ok(None), rows)?, whole(state, work)?);
    Ok([rows(v)?, scale, None, rows(k)?, rows(q)?, None, None, None, state, log_decay])
}

/// The scan over whole sequences: outputs (b, l, h, p) in `v`'s dtype, and the states after the last tokens,
/// (b or n_seq, h, p, n) in f32 (f64 for f64 data). Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn scalar_decay_scan(args: &ScalarDecayScan) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.v.device())?;
    let dims = args.check()?;
    let tensors = [args.v, args.k, args.q, args.log_decay];
    let work = state_dtype(args.v.dtype());
    let inputs = prepare(tensors, [args.scale, args.state], &[dims.b, dims.l, dims.h], work)?;
    Scan::new(OP, dims, RULE, MAX_CHUNK).run(&inputs, args.v.dtype())
}

/// Arguments of [`scalar_decay_state_update`]: one token of [`ScalarDecayScan`].
#[derive(Debug, Clone, Copy)]
pub struct ScalarDecayStateUpdate<'a> {
    /// Queries, (b, g, n).
    pub q: &'a Tensor,
    /// Keys, (b, g, n).
    pub k: &'a Tensor,
    /// Values, (b, h, p).
    pub v: &'a Tensor,
    /// Logarithms of the decay factors, (b, h), or (h) if they are constant.
    pub log_decay: &'a Tensor,
    /// What scales the input, (b, h); 1 if absent.
    pub scale: Option<&'a Tensor>,
}

impl<'a> ScalarDecayStateUpdate<'a> {
    /// The plain step, without a scale.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, log_decay: &'a Tensor) -> Self {
        Self { q, k, v, log_decay, scale: None }
    }

    fn check(&self, state: &Tensor) -> Result<Dims> {
        let (b, h, p) = self.v.dims3()?;
        let (_, g, n) = self.k.dims3()?;
        shape(STEP, "v", self.v, &[b, h, p], "(b, h, p)")?;
        sizes(STEP, (h, p), (g, n))?;
        shape(STEP, "k", self.k, &[b, g, n], "(b, g, n)")?;
        shape(STEP, "q", self.q, &[b, g, n], "as k")?;
        decay_shape(STEP, self.log_decay, &[b, h])?;
        optional(STEP, "scale", self.scale, &[b, h], "one a head of v")?;
        shape(STEP, "state", state, &[b, h, p, n], "(b, h, p, n)")?;
        Ok(Dims { b, l: 1, h, p, n, g, segments: segments(STEP, b, 1, None)? })
    }
}

/// One token: `state` (b, h, p, n) is advanced **in place**, and the output (b, h, p) returned in `v`'s dtype.
/// Every tensor that shares `state`'s storage sees the change. Not differentiable: the graph ends here.
///
/// # Errors
/// If a shape does not fit, or `state` is not a contiguous f32 (f64 for f64 data) tensor on the CPU.
pub fn scalar_decay_state_update(state: &Tensor, args: &ScalarDecayStateUpdate) -> Result<Tensor> {
    check::on_cpu(STEP, state.device())?;
    let dims = args.check(state)?;
    let (b, h, p, data) = (dims.b, dims.h, dims.p, args.v.dtype());
    let tensors = [args.v, args.k, args.q, args.log_decay];
    let inputs = prepare(tensors, [args.scale, None], &[b, h], state_dtype(data))?;
    let inputs = inputs.map(|t| t.map(|t| t.detach()));
    inplace::update(state, step::Step { name: STEP, dims, rule: RULE, inputs }, data, (b, h, p))
}
