//! Root-mean-square norm (plain, grouped, gated) and layer norm.
//!
//! ```text
//! rms_norm:        y = x / sqrt(mean(x²) + eps) · weight            mean over each group of features
//! gated:           rms_norm(x · silu(z))   or   rms_norm(x) · silu(z)
//! layer_norm:      y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias
//! ```
//! Sources: Zhang and Sennrich 2019 (RMS norm); Ba et al. 2016 (layer norm); Dao and Gu 2024, the gated norm of Mamba-2.

pub(crate) mod naive;

use candle_core::{Result, Tensor, bail};

/// `x / sqrt(mean(x²) + eps) * weight`, the mean over each `group` consecutive features.
///
/// `x` is (..., features), `weight` (features) in any float dtype; `group` divides the features (all of them for the
/// plain norm). Statistics and arithmetic in f32 (f64 for f64), the result in x's dtype. Differentiable in both.
///
/// # Errors
/// If the shapes or dtypes do not fit together.
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64, group: usize) -> Result<Tensor> {
    check("rms_norm", x, &[("weight", weight)], group)?;
    if x.elem_count() == 0 {
        return x.zeros_like();
    }
    naive::rms_norm(x, weight, eps, group)
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
    check("gated_rms_norm", x, &[("weight", weight)], group)?;
    if z.dims() != x.dims() || !z.dtype().is_float() {
        bail!(
            "gated_rms_norm: z is {:?} of {:?}, expected floats of {:?}, as x",
            z.dtype(),
            z.shape(),
            x.shape()
        );
    }
    if x.elem_count() == 0 {
        return x.zeros_like();
    }
    naive::gated_rms_norm(x, z, weight, eps, group, norm_before_gate)
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
    check("layer_norm", x, &[("weight", weight), ("bias", bias)], group)?;
    if x.elem_count() == 0 {
        return x.zeros_like();
    }
    naive::layer_norm(x, weight, bias, eps)
}

fn check(op: &str, x: &Tensor, parameters: &[(&str, Option<&Tensor>)], group: usize) -> Result<()> {
    let features = match x.dims().last() {
        Some(&n) if n > 0 && x.dtype().is_float() => n,
        _ => bail!("{op}: x is {:?} of {:?}, expected floats of (..., features)", x.dtype(), x.shape()),
    };
    if group == 0 || features % group != 0 {
        bail!("{op}: group is {group}, expected a divisor of the {features} features of x");
    }
    for (name, parameter) in parameters {
        let Some(p) = parameter else { continue };
        if p.dims() != [features] || !p.dtype().is_float() {
            bail!(
                "{op}: {name} is {:?} of {:?}, expected floats of ({features}), as x is {:?}",
                p.dtype(),
                p.shape(),
                x.shape()
            );
        }
    }
    Ok(())
}
