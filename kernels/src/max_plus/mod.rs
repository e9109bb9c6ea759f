//! The max-plus scan: the running maximum that keeps exponential gates within range.
//!
//! ```text
//! m_t = max(a_t + m_{t-1}, b_t)              a: logarithm of a decay, b: of a gain; elementwise over h
//! keep_t = a_t + m_{t-1} - m_t ≤ 0           gain_t = b_t - m_t ≤ 0          one of the two is exactly 0
//! ```
//! A state `S_t = exp(a_t) S_{t-1} + exp(b_t) x_t`, kept as `exp(-m_t) S_t`, decays by `exp(keep_t)` and takes in
//! `exp(gain_t) x_t`: factors of at most 1, whatever the gates. The maximum before the first token is 0 where no state is
//! given. Source: Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", eq. 15 to 17; the zero as in its code.

mod cpu;
pub mod naive;

use candle_core::{DType, Result, Shape, Tensor, bail};

use crate::check::{self, optional, positive, shape};
use crate::host::{self, Rows, state_dtype};
use crate::segments::{Segment, segments};
use crate::simd::Real;
use crate::tape;

const OP: &str = "max_plus_scan";

/// Arguments of [`max_plus_scan`](fn@max_plus_scan). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct MaxPlusScan<'a> {
    /// Logarithms of the decays (a), (b, l, h).
    pub log_decay: &'a Tensor,
    /// Logarithms of the gains (b), (b, l, h).
    pub log_gain: &'a Tensor,
    /// The maximum before the first token, (b or n_seq, h); 0 if absent.
    pub state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> MaxPlusScan<'a> {
    /// From 0, one sequence a row.
    pub fn new(log_decay: &'a Tensor, log_gain: &'a Tensor) -> Self {
        Self { log_decay, log_gain, state: None, cu_seqlens: None }
    }

    fn check(&self) -> Result<Dims> {
        let (b, l, h) = self.log_decay.dims3()?;
        shape(OP, "log_gain", self.log_gain, &[b, l, h], "as log_decay")?;
        positive(OP, &[("the number of heads", h)])?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        optional(OP, "state", self.state, &[segments.len(), h], "(sequences, h)")?;
        Ok(Dims { b, l, h, segments })
    }
}

/// What a [`max_plus_scan`](fn@max_plus_scan) finds, in f32 (f64 for f64 data).
#[derive(Debug, Clone)]
pub struct Stabilized {
    /// Logarithms of the factors on the scaled state, (b, l, h): at most 0.
    pub log_decay: Tensor,
    /// Logarithms of the factors on what the scaled state takes in, (b, l, h): at most 0.
    pub log_gain: Tensor,
    /// The running maximum, (b, l, h).
    pub max: Tensor,
    /// The maximum after the last tokens, (b or n_seq, h).
    pub last: Tensor,
}

/// Sizes of a call.
struct Dims {
    b: usize,
    l: usize,
    h: usize,
    segments: Vec<Segment>,
}

/// The running maximum of each head, and the factors that it leaves. Differentiable in every tensor, and in both states;
/// where the two arguments of a maximum are equal the first takes the gradient.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn max_plus_scan(args: &MaxPlusScan) -> Result<Stabilized> {
    check::on_cpu(OP, args.log_decay.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.log_decay.dtype());
    let rows = |t: &Tensor| host::in_rows(&t.to_dtype(work)?, 2);
    let state = args.state.map(|t| t.to_dtype(work)?.contiguous()).transpose()?;
    let inputs = [Some(rows(args.log_decay)?), Some(rows(args.log_gain)?), state];
    match work {
        DType::F64 => forward::<f64>(dims, &inputs),
        _ => forward::<f32>(dims, &inputs),
    }
}

fn forward<T: Real>(dims: Dims, inputs: &[Option<Tensor>]) -> Result<Stabilized> {
    let [keep, gain, max, last] = with_views(inputs, |v| cpu::forward::<T>(v, &dims))?;
    let tokens = |values| (host::storage(values), Shape::from((dims.b, dims.l, dims.h)));
    let last = (host::storage(last), Shape::from((dims.segments.len(), dims.h)));
    let outputs = vec![tokens(keep), tokens(gain), tokens(max), last];
    let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
    match <[Tensor; 4]>::try_from(tape::record(Scan { dims }, &inputs, outputs)?) {
        Ok([log_decay, log_gain, max, last]) => Ok(Stabilized { log_decay, log_gain, max, last }),
        Err(_) => bail!("{OP}: expected four outputs"),
    }
}

/// The inputs in the order of the autograd graph; token `t` of the flattened batch is row `t`.
struct Views<'a, T> {
    log_decay: Rows<'a, T>,
    log_gain: Rows<'a, T>,
    state: Option<&'a [T]>,
}

fn with_views<T: Real, R>(inputs: &[Option<Tensor>], f: impl FnOnce(&Views<T>) -> R) -> Result<R> {
    let guards: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let [Some(decay), Some(gain), state] = &guards[..] else { bail!("{OP}: expected three inputs") };
    Ok(f(&Views {
        log_decay: Rows::new(&decay.0, decay.1, 2)?,
        log_gain: Rows::new(&gain.0, gain.1, 2)?,
        state: state.as_ref().map(|t| host::slice(&t.0, t.1)).transpose()?,
    }))
}

/// The node of the autograd graph.
struct Scan {
    dims: Dims,
}

impl Scan {
    fn gradients<T: Real>(
        &self,
        inputs: &[Option<Tensor>],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let guards: Vec<_> = grads.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
        let mut found = Vec::with_capacity(guards.len());
        for guard in &guards {
            found.push(guard.as_ref().map(|t| host::slice::<T>(&t.0, t.1)).transpose()?);
        }
        let Ok(found) = <[Option<&[T]>; 4]>::try_from(found) else { bail!("{OP}: expected four gradients") };
        let found = with_views(inputs, |v| cpu::backward(v, &self.dims, found))?;
        let tensors = inputs.iter().zip(found);
        Ok(tensors.map(|(t, grad)| t.as_ref().map(|t| host::tensor(grad, t.shape().clone()))).collect())
    }
}

impl tape::Backward for Scan {
    fn name(&self) -> &'static str {
        OP
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        output: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        match output.dtype() {
            DType::F64 => self.gradients::<f64>(inputs, grads),
            _ => self.gradients::<f32>(inputs, grads),
        }
    }
}
