//! The convolution filter of a diagonal-plus-low-rank system (S4), by its truncated generating function.
//!
//! ```text
//! A = Λ - P Q*, bilinear:  Ā = (1 - dt/2 A)⁻¹ (1 + dt/2 A)    B̄ = (1 - dt/2 A)⁻¹ dt B        C̃ = C (1 - Ā^L)
//! K̂(ω) = Σ_{t<L} C Ā^t B̄ ω^t = C̃ (1 - ω Ā)⁻¹ B̄             at the roots of unity ω = e^(-2πi m/L)
//!       = 2 [ s_CB - τ s_QB (1 + τ S_QP)⁻¹ s_CP ]          with τ = 1 + ω     (Woodbury)
//! s_YX  = Σ_n Y_n dt X_n / (2 (1 - ω) - τ dt Λ_n) + the conjugate modes          (a Cauchy product)
//! K     = irfft K̂
//! ```
//! Written with τ in the numerators, as here, nothing is infinite at ω = -1. All in f64: near the spectrum the Cauchy
//! product divides by small differences of numbers of order one.
//!
//! Source: Gu, Goel and Ré 2021, "Efficiently Modeling Long Sequences with Structured State Spaces", algorithm 1.

mod cpu;
pub mod naive;

use candle_core::{DType, Result, Shape, Tensor, bail};

use crate::check::{self, positive, shape};
use crate::{host, tape};

const OP: &str = "dplr_kernel";

/// Largest rank of the correction.
const MAX_RANK: usize = 4;

/// Arguments of [`dplr_kernel`](fn@dplr_kernel): half of each conjugate pair, complex numbers as (re, im) along the last
/// dimension.
#[derive(Debug, Clone, Copy)]
pub struct DplrKernel<'a> {
    /// dt Λ, (d, n, 2); real parts negative.
    pub poles: &'a Tensor,
    /// dt B, then dt P for each rank: (1 + r, d, n, 2).
    pub left: &'a Tensor,
    /// C̃ for each output, then Q for each rank: (c + r, d, n, 2).
    pub right: &'a Tensor,
    /// L: the length that C̃ was made for.
    pub period: usize,
    /// How much of the filter is wanted, at most L.
    pub length: usize,
}

/// Sizes of a filter.
#[derive(Debug, Clone, Copy)]
struct Dims {
    d: usize,
    n: usize,
    c: usize,
    rank: usize,
    period: usize,
    length: usize,
}

impl DplrKernel<'_> {
    fn check(&self) -> Result<Dims> {
        let (d, n, _) = self.poles.dims3()?;
        let (left, right) = (self.left.dim(0)?, self.right.dim(0)?);
        let rank = left.saturating_sub(1);
        if left == 0 || right <= rank || rank > MAX_RANK {
            bail!(
                "{OP}: left has {left} and right {right} rows, expected 1 + r and c + r, c at least 1, r at most {MAX_RANK}"
            );
        }
        positive(OP, &[("the number of modes", n), ("the period", self.period)])?;
        shape(OP, "poles", self.poles, &[d, n, 2], "(d, n, 2)")?;
        shape(OP, "left", self.left, &[left, d, n, 2], "(1 + r, d, n, 2)")?;
        shape(OP, "right", self.right, &[right, d, n, 2], "(c + r, d, n, 2)")?;
        if self.length > self.period {
            bail!("{OP}: length is {}, expected at most the period {}", self.length, self.period);
        }
        Ok(Dims { d, n, c: right - rank, rank, period: self.period, length: self.length })
    }
}

/// The filters (c, d, length) in f64. Differentiable in every tensor.
///
/// # Errors
/// If a shape does not fit the others, or the data is not on the CPU.
pub fn dplr_kernel(args: &DplrKernel) -> Result<Tensor> {
    check::on_cpu(OP, args.poles.device())?;
    let dims = args.check()?;
    let wide = |t: &Tensor| t.to_dtype(DType::F64)?.contiguous();
    let inputs = [wide(args.poles)?, wide(args.left)?, wide(args.right)?];
    let filters = with_slices(&inputs.each_ref().map(Some), |[w, x, y]| cpu::forward(&dims, w, x, y))??;
    let output = (host::storage(filters), Shape::from((dims.c, dims.d, dims.length)));
    match tape::record(Node { dims }, &inputs.each_ref().map(Some), vec![output])?.pop() {
        Some(filters) => Ok(filters),
        None => bail!("{OP}: expected an output"),
    }
}

fn with_slices<R, const N: usize>(
    tensors: &[Option<&Tensor>; N],
    f: impl FnOnce([&[f64]; N]) -> R,
) -> Result<R> {
    let guards = tensors.map(|t| t.map(Tensor::storage_and_layout));
    let mut slices = [&[][..]; N];
    for (slice, guard) in slices.iter_mut().zip(&guards) {
        if let Some((guard, layout)) = guard {
            *slice = host::slice::<f64>(guard, layout)?;
        }
    }
    Ok(f(slices))
}

/// The node of the autograd graph.
struct Node {
    dims: Dims,
}

impl tape::Backward for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        _: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Dims { d, n, c, rank, .. } = self.dims;
        let [w, x, y] = inputs else { bail!("{OP}: expected three inputs") };
        let tensors = [w.as_ref(), x.as_ref(), y.as_ref(), grads[0].as_ref()];
        let [dw, dx, dy] = with_slices(&tensors, |[w, x, y, dk]| cpu::backward(&self.dims, w, x, y, dk))??;
        Ok(vec![
            Some(host::tensor(dw, (d, n, 2))),
            Some(host::tensor(dx, (1 + rank, d, n, 2))),
            Some(host::tensor(dy, (c + rank, d, n, 2))),
        ])
    }
}
