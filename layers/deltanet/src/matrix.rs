//! The matrix that the delta rule multiplies by, one a head.

use candle_core::{Result, Tensor};
use semisep_core::Mixing;
use semisep_kernels::delta_scan::naive;
use semisep_kernels::{CausalConv1d, GatedDeltaRule, causal_conv1d};

use crate::DeltaNet;

/// The rule is linear in its values: its answers to unit vectors, by its definition, are the columns.
pub(crate) fn mixing(layer: &DeltaNet, u: &Tensor) -> Result<Mixing> {
    let projection = layer.projections.forward(&layer.plan, u)?;
    let inputs = layer.inputs(&projection, |conv, x| {
        let conv = CausalConv1d {
            x,
            weight: &conv.weight,
            bias: conv.bias.as_ref(),
            silu: conv.silu,
            initial_state: None,
            cu_seqlens: None,
        };
        Ok(causal_conv1d(conv)?.0)
    })?;
    let (o, _) = layer.scan(&inputs, None, None)?; // (b, l, h, p)
    let (b, l, h, _) = o.dims4()?;
    let units = Tensor::eye(l, o.dtype(), o.device())?.reshape((1, l, 1, l))?.broadcast_as((b, l, h, l))?;
    let (columns, _) = naive::gated_delta_rule(&GatedDeltaRule { v: &units.contiguous()?, ..inputs.rule() })?;
    Ok(Mixing {
        matrix: columns.transpose(1, 2)?, // (b, h, t, s)
        values: inputs.v.transpose(1, 2)?,
        output: o.transpose(1, 2)?,
    })
}
