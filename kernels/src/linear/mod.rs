//! Dense map: `y = x Wᵀ + b`.
//!
//! Few rows (decoding) are bound by reading the weights once from memory, many rows (prefill, training) by arithmetic.

mod naive;

use candle_core::{DType, Result, Tensor, bail};

/// `y = x Wᵀ + bias`.
///
/// `x` is (..., inputs), `weight` (outputs, inputs) in x's dtype or, with `x` in f32 or f64, in a narrower float dtype:
/// weights stored small, arithmetic in x's. `bias` is (outputs), in any float dtype. The result is (..., outputs) in
/// x's dtype. Differentiable in all three.
///
/// # Errors
/// If the shapes or dtypes do not fit together.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, weight, bias)?;
    naive::linear(x, weight, bias)
}

fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let &[outputs, inputs] = weight.dims() else {
        bail!("linear: weight has shape {:?}, expected (outputs, inputs)", weight.shape())
    };
    if x.dims().last() != Some(&inputs) {
        bail!(
            "linear: x has shape {:?}, expected (..., {inputs}), as weight is {:?}",
            x.shape(),
            weight.shape()
        );
    }
    let wide = matches!(x.dtype(), DType::F32 | DType::F64);
    let (xt, wt) = (x.dtype(), weight.dtype());
    if !xt.is_float() || !wt.is_float() || (xt != wt && !(wide && wt.size_in_bytes() < xt.size_in_bytes())) {
        bail!(
            "linear: weight is {wt:?} and x {xt:?}; expected x's dtype, or a narrower one with x in f32 or f64"
        );
    }
    if let Some(bias) = bias {
        if bias.dims() != [outputs] {
            bail!(
                "linear: bias has shape {:?}, expected ({outputs}), as weight is {:?}",
                bias.shape(),
                weight.shape()
            );
        }
        if !bias.dtype().is_float() {
            bail!("linear: bias is {:?}, expected a float dtype", bias.dtype());
        }
    }
    Ok(())
}
