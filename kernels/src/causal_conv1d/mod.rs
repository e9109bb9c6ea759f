//! Depthwise causal convolution over time, with the SiLU that follows it in Mamba-like layers.
//!
//! ```text
//! y[t, c] = act(bias[c] + Σ_{j<k} weight[c, j] · x[t - (k-1) + j, c])        act = SiLU or nothing
//! ```
//! Inputs before the first token come from the initial state (zeros if there is none); the final state is the last k-1
//! inputs, before the convolution. A sequence shorter than k-1 keeps the younger part of the state it began with.
//!
//! As a matrix mixer: every channel is a Toeplitz band matrix of k diagonals (before the activation).
//!
//! | symbol | here | shape |
//! |---|---|---|
//! | x | [`CausalConv1d::x`] | (b, l, d) |
//! | w | [`CausalConv1d::weight`] | (d, k), oldest tap first |
//! | state | [`CausalConv1d::initial_state`] | (sequences, d, k-1), oldest input first |
//!
//! Source: Gu & Dao 2023 (Mamba), section 3.4; layout of the states as in state-spaces/mamba.

pub mod naive;
mod update;

use candle_core::{DType, Result, Tensor, bail};

use crate::host::state_dtype;
use crate::segments::{Segment, segments};

pub use update::causal_conv1d_update;

const OP: &str = "causal_conv1d";

/// The inputs of [`causal_conv1d`].
#[derive(Debug, Clone, Copy)]
pub struct CausalConv1d<'a> {
    /// (b, l, d), f32, f64, bf16 or f16; may be a view whose rows lie apart, as a narrowed projection is.
    pub x: &'a Tensor,
    /// (d, k) with k >= 1, the oldest tap first; any floating dtype.
    pub weight: &'a Tensor,
    /// (d), any floating dtype.
    pub bias: Option<&'a Tensor>,
    /// Whether SiLU follows.
    pub silu: bool,
    /// (b, d, k-1), or (sequences, d, k-1) for packed ones: the inputs before the first, oldest first; f32 (f64 for
    /// f64 data).
    pub initial_state: Option<&'a Tensor>,
    /// Boundaries `[0, l0, l0 + l1, ..., l]` of the sequences packed in the only row.
    pub cu_seqlens: Option<&'a [usize]>,
}

/// Convolves every channel over time. Gives y, (b, l, d) in x's dtype, and the final state, (b, d, k-1) or
/// (sequences, d, k-1) in the state dtype.
///
/// Differentiable in x, weight, bias and the initial state, through y and the final state.
///
/// # Errors
/// If shapes, dtypes or sequence boundaries do not fit each other, or the device has no such kernel.
pub fn causal_conv1d(args: CausalConv1d) -> Result<(Tensor, Tensor)> {
    Problem::new(&args)?;
    naive::causal_conv1d(args)
}

/// Checked sizes of a call.
pub(crate) struct Problem {
    pub(crate) b: usize,
    pub(crate) l: usize,
    pub(crate) d: usize,
    pub(crate) k: usize,
    pub(crate) segments: Vec<Segment>,
    /// dtype of states, weights and accumulators.
    pub(crate) state: DType,
}

impl Problem {
    pub(crate) fn new(args: &CausalConv1d) -> Result<Self> {
        let Ok((b, l, d)) = args.x.dims3() else {
            bail!("{OP}: x has shape {:?}, expected (b, l, d)", args.x.dims());
        };
        let k = check_taps(OP, args.x.dtype(), d, args.weight, args.bias)?;
        let segments = segments(OP, b, l, args.cu_seqlens)?;
        let state = state_dtype(args.x.dtype());
        if let Some(s) = args.initial_state {
            check_state(OP, "initial_state", s, (segments.len(), d, k - 1), state)?;
        }
        Ok(Self { b, l, d, k, segments, state })
    }
}

/// Checks dtype of the data and shapes of weight and bias against d channels; the number of taps.
fn check_taps(op: &str, data: DType, d: usize, weight: &Tensor, bias: Option<&Tensor>) -> Result<usize> {
    if !matches!(data, DType::F32 | DType::F64 | DType::BF16 | DType::F16) {
        bail!("{op}: x is {data:?}, expected f32, f64, bf16 or f16");
    }
    let k = match weight.dims() {
        &[channels, k] if channels == d && k >= 1 => k,
        other => {
            bail!("{op}: weight has shape {other:?}, expected ({d}, k) with k >= 1: a row of taps a channel")
        }
    };
    if let Some(bias) = bias
        && bias.dims() != [d]
    {
        bail!("{op}: bias has shape {:?}, expected ({d}), one a channel", bias.dims());
    }
    for (name, t) in [("weight", Some(weight)), ("bias", bias)] {
        if let Some(t) = t
            && !t.dtype().is_float()
        {
            bail!("{op}: {name} is {:?}, expected a floating dtype", t.dtype());
        }
    }
    Ok(k)
}

/// Checks a state's shape and dtype.
fn check_state(op: &str, name: &str, s: &Tensor, shape: (usize, usize, usize), dtype: DType) -> Result<()> {
    if s.dims() != [shape.0, shape.1, shape.2] {
        bail!("{op}: {name} has shape {:?}, expected {shape:?}: (sequences, channels, taps - 1)", s.dims());
    }
    if s.dtype() != dtype {
        bail!("{op}: {name} is {:?}, expected {dtype:?}: states are f32, or f64 for f64 data", s.dtype());
    }
    Ok(())
}
