//! The softmax rows that the heads multiply by.

use candle_core::{Result, Tensor};
use semisep_core::{Context, Mixing};
use semisep_kernels::attention::naive;
use semisep_kernels::{Attention, attention};

use crate::BlockState;
use crate::config::Variant;

/// Rows of the self-attention, (b, h, l, l); SH and MH: of the cross-attention behind them, (b, 2 h, l, l). The contexts
/// of MF belong to no token of the window.
pub(crate) fn mixing(layer: &BlockState, u: &Tensor) -> Result<Mixing> {
    let heads = layer.project(u)?;
    let bias = layer.bias()?;
    let own = one(&layer.self_options([&heads.q_self, &heads.k, &heads.v], bias.as_ref()))?;
    if layer.config.variant == Variant::Mf {
        return Ok(own);
    }
    let y = layer.ssm.forward(u, &mut Context::default())?;
    let [k, v] = layer.token_contexts(&y)?;
    let cross = one(&layer.cross_options([&heads.q_cross, &k, &v]))?;
    Ok(Mixing {
        matrix: Tensor::cat(&[own.matrix, cross.matrix], 1)?,
        values: Tensor::cat(&[own.values, cross.values], 1)?,
        output: Tensor::cat(&[own.output, cross.output], 1)?,
    })
}

fn one(op: &Attention) -> Result<Mixing> {
    Ok(Mixing {
        matrix: naive::weights(op)?,
        values: op.v.transpose(1, 2)?.contiguous()?,
        output: attention(op)?.transpose(1, 2)?.contiguous()?,
    })
}
