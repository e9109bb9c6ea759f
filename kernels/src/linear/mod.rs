//! Dense map: `y = x Wᵀ + b`.
//!
//! Few rows (decoding) are bound by reading the weights once from memory, many rows (prefill, training) by arithmetic.

mod cpu;
mod few;
mod finite;
mod in_place;
mod matrix;
pub(crate) mod naive;
mod quantised;
pub(crate) mod stored;

use candle_core::{DType, Result, Shape, Tensor, bail};
use half::{bf16, f16};

pub use self::in_place::{InPlace, Memory, Run};
pub use self::matrix::Matrix;
pub use self::quantised::{Activations, BlockFormat, Quantised};
use self::stored::{Register, Stored};
use crate::check::{self, tuple};
use crate::host::{self, Rows};
use crate::tape::{self, Backward};

/// `y = x Wᵀ + bias`.
///
/// `x` is (..., inputs), `weight` (outputs, inputs) in x's dtype or, with `x` in f32 or f64, in a narrower float dtype:
/// weights stored small, arithmetic in x's. `bias` is (outputs), in any float dtype. The result is (..., outputs) in
/// x's dtype. Differentiable in all three.
///
/// # Errors
/// If the shapes or dtypes do not fit together.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check_args(x, weight, bias)?;
    if !x.device().is_cpu() {
        return naive::linear(x, weight, bias);
    }
    match (x.dtype(), weight.dtype()) {
        (DType::F32, DType::F32) => on_cpu::<f32, f32>(x, weight, bias),
        (DType::F32, DType::BF16) => on_cpu::<f32, bf16>(x, weight, bias),
        (DType::F32, DType::F16) => on_cpu::<f32, f16>(x, weight, bias),
        (DType::F64, DType::F64) => on_cpu::<f64, f64>(x, weight, bias),
        (DType::F64, _) => on_cpu::<f64, f64>(x, &weight.to_dtype(DType::F64)?, bias),
        (DType::BF16, _) => {
            on_cpu::<f32, bf16>(&x.to_dtype(DType::F32)?, weight, bias)?.to_dtype(DType::BF16)
        }
        (DType::F16, _) => on_cpu::<f32, f16>(&x.to_dtype(DType::F32)?, weight, bias)?.to_dtype(DType::F16),
        _ => naive::linear(x, weight, bias),
    }
}

/// The arguments of a map of a matrix that is no tensor, (outputs, inputs).
fn check_on_cpu(x: &Tensor, weight: [usize; 2], bias: Option<&Tensor>, what: &str) -> Result<()> {
    check_shapes(x, weight, bias)?;
    if !x.device().is_cpu() {
        bail!("linear: {what} multiply on the CPU alone, found x on {:?}", x.device());
    }
    Ok(())
}

fn check_shapes(x: &Tensor, [outputs, inputs]: [usize; 2], bias: Option<&Tensor>) -> Result<()> {
    if x.dims().last() != Some(&inputs) {
        let found = tuple(x.dims());
        bail!("linear: x has shape {found}, expected (..., {inputs}), as weight is ({outputs}, {inputs})");
    }
    check::optional("linear", "bias", bias, &[outputs], "the outputs of weight")
}

/// `x wᵀ + bias` of plain slices, (x.rows, outputs), for `w` (outputs, x.width): for kernels that have such a map inside.
pub(crate) fn product<T: Register + Stored<T>>(
    x: Rows<T>,
    w: &[T],
    bias: Option<&[T]>,
    outputs: usize,
) -> Vec<T> {
    cpu::forward(x, w, bias, outputs)
}

fn check_args(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let &[outputs, inputs] = weight.dims() else {
        bail!("linear: weight has shape {}, expected (outputs, inputs)", tuple(weight.dims()))
    };
    check_shapes(x, [outputs, inputs], bias)?;
    let wide = matches!(x.dtype(), DType::F32 | DType::F64);
    let (xt, wt) = (x.dtype(), weight.dtype());
    if !xt.is_float() || !wt.is_float() || (xt != wt && !(wide && wt.size_in_bytes() < xt.size_in_bytes())) {
        bail!(
            "linear: weight has dtype {wt:?} and x {xt:?}, expected x's, or a narrower one for x in F32 or F64"
        );
    }
    Ok(())
}

/// `x` in `T`, `weight` stored in `W`.
fn on_cpu<T: Register, W: Stored<T>>(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, _) = weight.dims2()?;
    let x = host::in_rows(x, x.rank() - 1)?;
    let weight = weight.contiguous()?;
    let bias = bias.map(|b| b.to_dtype(T::DTYPE)?.contiguous()).transpose()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let y = {
        let (xs, ws) = (x.storage_and_layout(), weight.storage_and_layout());
        let bs = bias.as_ref().map(|b| b.storage_and_layout());
        let bias = bs.as_ref().map(|(storage, layout)| host::slice::<T>(storage, layout)).transpose()?;
        cpu::forward(Rows::of_last(&xs.0, xs.1)?, host::slice::<W>(&ws.0, ws.1)?, bias, outputs)
    };
    let inputs = [Some(&x), Some(&weight), bias.as_ref()];
    let op =
        Linear::<W, T> { wanted: inputs.map(|t| t.is_some_and(Tensor::track_op)), types: Default::default() };
    let mut out = tape::record(op, &inputs, vec![(host::storage(y), Shape::from(shape))])?;
    Ok(out.swap_remove(0))
}

struct Linear<W, T> {
    /// Which of x, weight and bias need a gradient.
    wanted: [bool; 3],
    types: std::marker::PhantomData<(W, T)>,
}

impl<T: Register, W: Stored<T>> Backward for Linear<W, T> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        _: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (Some(x), Some(weight), Some(g)) = (&inputs[0], &inputs[1], &grads[0]) else {
            bail!("linear: backward needs x, weight and a gradient")
        };
        let (outputs, width) = weight.dims2()?;
        let (xs, ws, gs) = (x.storage_and_layout(), weight.storage_and_layout(), g.storage_and_layout());
        let (x_rows, w, g) =
            (Rows::of_last(&xs.0, xs.1)?, host::slice::<W>(&ws.0, ws.1)?, host::slice::<T>(&gs.0, gs.1)?);
        let [want_x, want_weight, want_bias] = self.wanted;
        let grad_x = want_x.then(|| host::tensor(cpu::grad_x(g, w, x_rows.rows, width), x.shape()));
        let grad_weight = want_weight
            .then(|| host::tensor(cpu::grad_weight(g, x_rows, outputs), weight.shape()).to_dtype(W::DTYPE))
            .transpose()?;
        let grad_bias = want_bias.then(|| host::tensor(cpu::grad_bias(g, outputs), outputs));
        Ok(vec![grad_x, grad_weight, grad_bias])
    }
}
