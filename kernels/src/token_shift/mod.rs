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
    /// What a token adds to each mix: m tensors (b, l, d).
    pub data: Option<&'a [Tensor]>,
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
        if let Some(data) = self.data {
            if data.len() != m {
                bail!("{OP}: data has {} tensors, expected {m}, one a mix", data.len());
            }
            data.iter().try_for_each(|t| shape(OP, "data", t, &[b, l, d], "as x"))?;
        }
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

/// Every mix, m tensors (b, l, d) in `x`'s dtype, and the last token of each sequence, (b or n_seq, d) in f32 (f64 for f64
/// data). Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn token_shift(args: &TokenShift) -> Result<(Vec<Tensor>, Tensor)> {
    check::on_cpu(OP, args.x.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.x.dtype());
    let rows = |t: &Tensor| host::in_rows(&t.to_dtype(work)?, 2);
    let whole = |t: &Tensor| t.to_dtype(work)?.contiguous();
    let mut inputs = vec![Some(rows(args.x)?), Some(whole(args.mix)?), args.state.map(whole).transpose()?];
    for data in args.data.unwrap_or_default() {
        inputs.push(Some(rows(data)?));
    }
    let (y, last) = match work {
        DType::F64 => forward::<f64>(dims, &inputs),
        _ => forward::<f32>(dims, &inputs),
    }?;
    Ok((y.iter().map(|y| y.to_dtype(args.x.dtype())).collect::<Result<_>>()?, last))
}

fn forward<T: Real>(dims: Dims, inputs: &[Option<Tensor>]) -> Result<(Vec<Tensor>, Tensor)> {
    let (mixes, last) = with_views(inputs, |v| cpu::forward::<T>(v, &dims))?;
    let mixes = mixes.into_iter().map(|y| (host::storage(y), Shape::from((dims.b, dims.l, dims.d))));
    let last = (host::storage(last), Shape::from((dims.segments.len(), dims.d)));
    let outputs = mixes.chain([last]).collect();
    let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
    let mut recorded = tape::record(Shift { dims }, &inputs, outputs)?;
    match recorded.pop() {
        Some(last) => Ok((recorded, last)),
        None => bail!("{OP}: expected outputs"),
    }
}

/// The inputs in the order of the autograd graph; token `t` of the flattened batch is row `t`.
struct Views<'a, T> {
    x: Rows<'a, T>,
    mix: &'a [T],
    state: Option<&'a [T]>,
    /// One a mix, or none.
    data: Vec<Rows<'a, T>>,
}

fn with_views<T: Real, R>(inputs: &[Option<Tensor>], f: impl FnOnce(&Views<T>) -> R) -> Result<R> {
    let guards: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let [Some(x), Some(mix), state, data @ ..] = &guards[..] else { bail!("{OP}: x and mix are needed") };
    Ok(f(&Views {
        x: Rows::new(&x.0, x.1, 2)?,
        mix: host::slice(&mix.0, mix.1)?,
        state: state.as_ref().map(|t| host::slice(&t.0, t.1)).transpose()?,
        data: data.iter().flatten().map(|t| Rows::new(&t.0, t.1, 2)).collect::<Result<_>>()?,
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
        let mut found = Vec::with_capacity(guards.len());
        for guard in &guards {
            found.push(guard.as_ref().map(|t| host::slice::<T>(&t.0, t.1)).transpose()?);
        }
        let Some(last) = found.pop() else { bail!("{OP}: expected gradients") };
        let found = with_views(inputs, |v| cpu::backward(v, &self.dims, &found, last))?;
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
