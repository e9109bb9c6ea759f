//! Elementwise activations and the gated product of MLPs and mixers: `act(gate) · value`.
//!
//! Sources: Shazeer 2020 (gated linear units); Hendrycks and Gimpel 2016 (GELU); So et al. 2021 (squared ReLU).

mod cpu;
mod function;
pub(crate) mod naive;

use candle_core::{DType, Result, Tensor, bail};

use self::function::Erf;
use crate::check;
use crate::host::{self, Rows, state_dtype};
use crate::tape::{self, Backward};

/// An elementwise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x`
    Identity,
    /// `σ(x) = 1 / (1 + exp(-x))`
    Sigmoid,
    /// `x σ(x)`, also called swish.
    Silu,
    /// `x Φ(x)`, by the error function.
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`].
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)²`
    Relu2,
    /// `exp(x)`
    Exp,
}

/// `act(x)`, elementwise, in x's shape and dtype. Differentiable.
///
/// # Errors
/// If `x` is not of a float dtype.
pub fn activation(x: &Tensor, act: Activation) -> Result<Tensor> {
    if !x.dtype().is_float() {
        bail!("activation: x is {:?}, expected a float dtype", x.dtype());
    }
    if x.device().is_cpu() { on_cpu("activation", act, x, None) } else { naive::activation(x, act) }
}

/// `act(gate) * value`, elementwise, for tensors of one shape and dtype. Differentiable in both.
///
/// # Errors
/// If shapes or dtypes differ or are not floats.
pub fn gated_activation(value: &Tensor, gate: &Tensor, act: Activation) -> Result<Tensor> {
    check::shape("gated_activation", "gate", gate, value.dims(), "as value")?;
    if value.dtype() != gate.dtype() {
        bail!("gated_activation: gate has dtype {:?}, expected {:?}, as value", gate.dtype(), value.dtype());
    }
    if value.device().is_cpu() {
        on_cpu("gated_activation", act, gate, Some(value))
    } else {
        naive::gated_activation(value, gate, act)
    }
}

fn on_cpu(name: &'static str, act: Activation, gate: &Tensor, value: Option<&Tensor>) -> Result<Tensor> {
    let y = match state_dtype(gate.dtype()) {
        DType::F64 => in_type::<f64>(name, act, gate, value)?,
        _ => in_type::<f32>(name, act, gate, value)?,
    };
    y.to_dtype(gate.dtype())
}

fn in_type<T: Erf>(
    name: &'static str,
    act: Activation,
    gate: &Tensor,
    value: Option<&Tensor>,
) -> Result<Tensor> {
    // A scalar is a row of one.
    let rows = |t: &Tensor| {
        let t = t.to_dtype(T::DTYPE)?;
        if t.rank() == 0 { t.reshape(1) } else { host::in_rows(&t, t.rank() - 1) }
    };
    let (rows_of_gate, value) = (rows(gate)?, value.map(rows).transpose()?);
    let shape = rows_of_gate.shape().clone();
    let inputs = [Some(rows_of_gate), value];
    let y = with_rows(&inputs, |gate, value| Ok(cpu::forward::<T>(act, gate, value)))?;
    let op = Gated::<T> { name, act, arithmetic: std::marker::PhantomData };
    let mut out = tape::record(op, &inputs.each_ref().map(Option::as_ref), vec![(host::storage(y), shape)])?;
    out.swap_remove(0).reshape(gate.shape())
}

/// Calls `f` with the inputs gate and value.
fn with_rows<T: Erf, R>(
    inputs: &[Option<Tensor>],
    f: impl FnOnce(Rows<T>, Option<Rows<T>>) -> Result<R>,
) -> Result<R> {
    let views: Vec<_> = inputs.iter().map(|t| t.as_ref().map(|t| t.storage_and_layout())).collect();
    let [Some(gate), value] = views.as_slice() else {
        bail!("an activation has two inputs, the first is the gate")
    };
    f(Rows::of_last(&gate.0, gate.1)?, value.as_ref().map(|v| Rows::of_last(&v.0, v.1)).transpose()?)
}

struct Gated<T> {
    name: &'static str,
    act: Activation,
    arithmetic: std::marker::PhantomData<T>,
}

impl<T: Erf> Backward for Gated<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        _: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(Some(grad)) = grads.first() else { bail!("{}: there is no gradient", self.name) };
        let grad = grad.storage_and_layout();
        let (d_gate, d_value) = with_rows(inputs, |gate, value| {
            Ok(cpu::backward::<T>(self.act, gate, value, host::slice(&grad.0, grad.1)?))
        })?;
        let tensors = [d_gate, d_value].into_iter().zip(inputs);
        Ok(tensors.map(|(grad, input)| input.as_ref().map(|t| host::tensor(grad, t.shape()))).collect())
    }
}
