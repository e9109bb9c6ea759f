//! RWKV's token shift: each token mixed with the one before it, several mixes of one input at once.
//!
//! ```text
//! y_j,t = x_t + (x_{t-1} - x_t) ⊙ (mix_j + data_j,t)         j = 1..m: one mix for keys, one for values, ...
//! ```
//! `data` makes the mix depend on the token (RWKV-6). RWKV-4 and 5 store `1 - mix`. The state is the last token. As a
//! matrix mixer a mix is a band of two diagonals. Sources: Peng et al. 2023, eq. 11-13 (RWKV-4); Peng et al. 2024, eq. 1
//! and section 4.2 (RWKV-6).

mod cpu;
pub mod naive;

use candle_core::{DType, Result, Shape, Tensor, bail};

use crate::check::{self, optional, positive, shape};
use crate::host::{self, Rows, state_dtype};
use crate::segments::{Segment, segments};
use crate::simd::Real;
use crate::tape;

const OP: &str = "token_shift";

/// Arguments of [`token_shift`](fn@token_shift). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct TokenShift<'a> {
    /// Tokens, (b, l, d).
    pub x: &'a Tensor,
    /// Share of the token before, (m, d).
    pub mix: &'a Tensor,
    /// What a token adds to the mixes, (m, b, l, d).
    pub data: Option<&'a Tensor>,
    /// The token before the first, (b or n_seq, d); zeros if absent.
    pub state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> TokenShift<'a> {
    /// From zeros, one sequence a row.
    pub fn new(x: &'a Tensor, mix: &'a Tensor) -> Self {
        Self { x, mix, data: None, state: None, cu_seqlens: None }
    }

    fn check(&self) -> Result<Dims> {
        let ((b, l, d), (m, _)) = (self.x.dims3()?, self.mix.dims2()?);
        shape(OP, "x", self.x, &[b, l, d], "(b, l, d)")?;
        shape(OP, "mix", self.mix, &[m, d], "(mixes, d)")?;
        positive(OP, &[("the number of channels", d), ("the number of mixes", m)])?;
        optional(OP, "data", self.data, &[m, b, l, d], "(mixes, b, l, d)")?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        optional(OP, "state", self.state, &[segments.len(), d], "(sequences, d)")?;
        Ok(Dims { b, l, d, m, segments })
    }
}

/// Sizes of a call.
struct Dims {
    b: usize,
    l: usize,
    d: usize,
    m: usize,
    segments: Vec<Segment>,
}

/// All mixes, (m, b, l, d) in `x`'s dtype, and the last token of each sequence, (b or n_seq, d) in f32 (f64 for f64 data).
/// Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn token_shift(args: &TokenShift) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.x.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.x.dtype());
    let rows = |t: &Tensor, lead| host::in_rows(&t.to_dtype(work)?, lead);
    let whole = |t: &Tensor| t.to_dtype(work)?.contiguous();
    let inputs = [
        Some(rows(args.x, 2)?),
        Some(whole(args.mix)?),
        args.data.map(|t| rows(t, 3)).transpose()?,
        args.state.map(whole).transpose()?,
    ];
    let (y, last) = match work {
        DType::F64 => forward::<f64>(dims, &inputs),
        _ => forward::<f32>(dims, &inputs),
    }?;
    Ok((y.to_dtype(args.x.dtype())?, last))
}

fn forward<T: Real>(dims: Dims, inputs: &[Option<Tensor>; 4]) -> Result<(Tensor, Tensor)> {
    let (y, last) = with_views(inputs, |v| cpu::forward::<T>(v, &dims))?;
    let outputs = vec![
        (host::storage(y), Shape::from((dims.m, dims.b, dims.l, dims.d))),
        (host::storage(last), Shape::from((dims.segments.len(), dims.d))),
    ];
    let recorded = tape::record(Shift { dims }, &inputs.each_ref().map(Option::as_ref), outputs)?;
    match <[Tensor; 2]>::try_from(recorded) {
        Ok([y, last]) => Ok((y, last)),
        Err(_) => bail!("{OP}: expected two outputs"),
    }
}

/// The inputs in the order of the autograd graph; token `t` of the flattened batch is row `t`.
#[derive(Clone, Copy)]
struct Views<'a, T> {
    x: Rows<'a, T>,
    mix: &'a [T],
    /// Row `j tokens + t`.
    data: Option<Rows<'a, T>>,
    state: Option<&'a [T]>,
}

fn with_views<T: Real, R>(inputs: &[Option<Tensor>], f: impl FnOnce(&Views<T>) -> R) -> Result<R> {
    let guards: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let [Some(x), Some(mix), data, state] = &guards[..] else { bail!("{OP}: x and mix are needed") };
    Ok(f(&Views {
        x: Rows::new(&x.0, x.1, 2)?,
        mix: host::slice(&mix.0, mix.1)?,
        data: data.as_ref().map(|t| Rows::new(&t.0, t.1, 3)).transpose()?,
        state: state.as_ref().map(|t| host::slice(&t.0, t.1)).transpose()?,
    }))
}

/// The node of the autograd graph.
struct Shift {
    dims: Dims,
}

impl Shift {
    fn gradients<T: Real>(
        &self,
        inputs: &[Option<Tensor>],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let guards: Vec<_> = grads.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
        let [Some(y), last] = &guards[..] else { bail!("{OP}: expected gradients of two outputs") };
        let last = last.as_ref().map(|t| host::slice::<T>(&t.0, t.1)).transpose()?;
        let y = host::slice::<T>(&y.0, y.1)?;
        let found = with_views(inputs, |v| cpu::backward(v, &self.dims, y, last))?;
        let tensors = inputs.iter().zip(found);
        Ok(tensors.map(|(t, grad)| t.as_ref().map(|t| host::tensor(grad, t.shape().clone()))).collect())
    }
}

impl tape::Backward for Shift {
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
