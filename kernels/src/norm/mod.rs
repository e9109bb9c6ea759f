//! Root-mean-square norm (plain, grouped, gated), layer norm and group norm.
//!
//! ```text
//! rms_norm:        y = x / sqrt(mean(x²) + eps) · weight            mean over each group of features
//! gated:           rms_norm(x · silu(z))   or   rms_norm(x) · silu(z)
//! layer_norm:      y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias
//! group_norm:      the layer norm of each group of features
//! ```
//! Sources: Zhang and Sennrich 2019 (RMS norm); Ba et al. 2016 (layer norm); Dao and Gu 2024, the gated norm of Mamba-2.

mod cpu;
pub(crate) mod naive;

use candle_core::{DType, Result, Tensor, bail};

use self::cpu::{Args, Gate, Gradients, Kind};
use crate::check::{self, tuple};
use crate::host::{self, Rows, state_dtype};
use crate::simd::Real;
use crate::tape::{self, Backward};

/// `x / sqrt(mean(x²) + eps) * weight`, the mean over each `group` consecutive features.
///
/// `x` is (..., features), `weight` (features) in any float dtype; `group` divides the features (all of them for the
/// plain norm). Statistics and arithmetic in f32 (f64 for f64), the result in x's dtype. Differentiable in both.
///
/// # Errors
/// If the shapes or dtypes do not fit together.
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64, group: usize) -> Result<Tensor> {
    check_args("rms_norm", x, &[("weight", weight)], group)?;
    if !x.device().is_cpu() {
        return naive::rms_norm(x, weight, eps, group);
    }
    on_cpu(Kind { name: "rms_norm", eps, group, centred: false, gate: Gate::None }, x, [None, weight, None])
}

/// [`rms_norm`] with a gate `silu(z)`: on its result (`norm_before_gate`), or on its input.
///
/// `z` has the shape of `x`; the rest is as for [`rms_norm`]. Differentiable in all three.
///
/// # Errors
/// If the shapes or dtypes do not fit together.
pub fn gated_rms_norm(
    x: &Tensor,
    z: &Tensor,
    weight: Option<&Tensor>,
    eps: f64,
    group: usize,
    norm_before_gate: bool,
) -> Result<Tensor> {
    check_args("gated_rms_norm", x, &[("weight", weight)], group)?;
    check::shape("gated_rms_norm", "z", z, x.dims(), "as x")?;
    if !x.device().is_cpu() {
        return naive::gated_rms_norm(x, z, weight, eps, group, norm_before_gate);
    }
    let gate = if norm_before_gate { Gate::Output } else { Gate::Input };
    on_cpu(Kind { name: "gated_rms_norm", eps, group, centred: false, gate }, x, [Some(z), weight, None])
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dimension.
///
/// `x` is (..., features), `weight` and `bias` (features) in any float dtype. Statistics and arithmetic in f32 (f64
/// for f64), the result in x's dtype. Differentiable in all three.
///
/// # Errors
/// If the shapes or dtypes do not fit together.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let group = x.dims().last().copied().unwrap_or(0);
    check_args("layer_norm", x, &[("weight", weight), ("bias", bias)], group)?;
    if !x.device().is_cpu() {
        return naive::layer_norm(x, weight, bias, eps);
    }
    on_cpu(Kind { name: "layer_norm", eps, group, centred: true, gate: Gate::None }, x, [None, weight, bias])
}

/// [`layer_norm`] with mean and variance over each `group` consecutive features: the norm of heads.
///
/// `x` is (..., features), `weight` and `bias` (features); `group` divides the features. Differentiable in all three.
///
/// # Errors
/// If the shapes or dtypes do not fit together.
pub fn group_norm(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
    group: usize,
) -> Result<Tensor> {
    check_args("group_norm", x, &[("weight", weight), ("bias", bias)], group)?;
    if !x.device().is_cpu() {
        return naive::group_norm(x, weight, bias, eps, group);
    }
    on_cpu(Kind { name: "group_norm", eps, group, centred: true, gate: Gate::None }, x, [None, weight, bias])
}

fn check_args(op: &str, x: &Tensor, parameters: &[(&str, Option<&Tensor>)], group: usize) -> Result<()> {
    let features = match x.dims().last() {
        Some(&n) if n > 0 && x.dtype().is_float() => n,
        _ => bail!("{op}: x is {:?} of {}, expected floats of (..., features)", x.dtype(), tuple(x.dims())),
    };
    if group == 0 || !features.is_multiple_of(group) {
        bail!("{op}: group is {group}, expected a divisor of the {features} features of x");
    }
    for (name, parameter) in parameters {
        check::optional(op, name, *parameter, &[features], "the features of x")?;
    }
    Ok(())
}

/// `others` are z, weight and bias.
fn on_cpu(kind: Kind, x: &Tensor, others: [Option<&Tensor>; 3]) -> Result<Tensor> {
    let y = match state_dtype(x.dtype()) {
        DType::F64 => in_type::<f64>(kind, x, others)?,
        _ => in_type::<f32>(kind, x, others)?,
    };
    y.to_dtype(x.dtype())
}

fn in_type<T: Real>(kind: Kind, x: &Tensor, [z, weight, bias]: [Option<&Tensor>; 3]) -> Result<Tensor> {
    let data = |t: &Tensor| host::in_rows(&t.to_dtype(T::DTYPE)?, t.rank() - 1);
    let parameter = |t: &Tensor| t.to_dtype(T::DTYPE)?.contiguous();
    let z = z.map(data).transpose()?;
    let inputs = [Some(data(x)?), z, weight.map(parameter).transpose()?, bias.map(parameter).transpose()?];
    let y = with_args(&inputs, |args| Ok(cpu::forward::<T>(kind, args)))?;
    let op = Norm::<T>(kind, std::marker::PhantomData);
    let output = vec![(host::storage(y), x.shape().clone())];
    let mut out = tape::record(op, &inputs.each_ref().map(Option::as_ref), output)?;
    Ok(out.swap_remove(0))
}

/// Calls `f` with the inputs x, z, weight and bias as slices.
fn with_args<T: Real, R>(inputs: &[Option<Tensor>], f: impl FnOnce(Args<T>) -> Result<R>) -> Result<R> {
    let views: Vec<_> = inputs.iter().map(|t| t.as_ref().map(|t| t.storage_and_layout())).collect();
    let [Some(x), z, weight, bias] = views.as_slice() else {
        bail!("a norm has four inputs, the first is x")
    };
    f(Args {
        x: Rows::of_last(&x.0, x.1)?,
        z: z.as_ref().map(|z| Rows::of_last(&z.0, z.1)).transpose()?,
        weight: weight.as_ref().map(|w| host::slice(&w.0, w.1)).transpose()?,
        bias: bias.as_ref().map(|b| host::slice(&b.0, b.1)).transpose()?,
    })
}

struct Norm<T>(Kind, std::marker::PhantomData<T>);

impl<T: Real> Backward for Norm<T> {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        _: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(Some(g)) = grads.first() else { bail!("{}: there is no gradient", self.0.name) };
        let g = g.storage_and_layout();
        let Gradients { x, z, weight, bias } =
            with_args(inputs, |args| Ok(cpu::backward::<T>(self.0, args, host::slice(&g.0, g.1)?)))?;
        let tensors = [x, z, weight, bias].into_iter().zip(inputs);
        Ok(tensors.map(|(grad, input)| input.as_ref().map(|t| host::tensor(grad, t.shape()))).collect())
    }
}
