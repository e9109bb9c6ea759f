//! The dense map in plain tensor operations, differentiated by autograd.

use candle_core::{Result, Tensor};

/// See [`super::linear`]; the arguments have been checked.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    let rows: usize = shape.iter().product();
    shape.push(outputs);
    if rows * inputs * outputs == 0 {
        return Tensor::zeros(shape, x.dtype(), x.device());
    }
    let y = x.reshape((rows, inputs))?.matmul(&weight.to_dtype(x.dtype())?.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(&bias.to_dtype(x.dtype())?)?,
        None => y,
    };
    y.reshape(shape)
}
