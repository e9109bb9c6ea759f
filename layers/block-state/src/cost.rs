//! What the layer costs.

use semisep_core::Cost;

use crate::BlockState;
use crate::config::Variant;

/// Linear maps, both attentions, the contexts, and the SSM.
pub(crate) fn cost(layer: &BlockState, batch: usize, seqlen: usize) -> Cost {
    let (c, d, size) = (&layer.config, layer.d_model, layer.dtype.size_in_bytes());
    let (h, e, f, w) = (c.n_heads, layer.head_dim, c.d_intermediate(layer.d_model), c.window);
    let rows = batch * seqlen;
    let linear = |rows, inputs, outputs| Cost::linear(rows, inputs, outputs, false, size);
    let mut total = linear(rows, d, 4 * h * e)
        + linear(rows, 2 * h * e, d)
        + linear(rows, d, f)
        + linear(rows, f, d)
        + layer.ssm.cost(batch, seqlen);
    let reach = w.min(seqlen);
    let (contexts, seen) = match c.variant {
        Variant::Mf => (batch * seqlen.div_ceil(w) * c.contexts, c.contexts),
        Variant::Sh | Variant::Mh => (rows, reach),
    };
    if c.variant == Variant::Mf {
        total += linear(contexts, d, h * d);
    }
    total += linear(contexts, d, 2 * h * e);
    // Self-attention over at most a window, cross-attention over a window's contexts; causal halves are not taken off.
    total.flops += 4 * (rows * h * e) as u64 * (reach + seen) as u64;
    let cached = layer.cache_dtype.size_in_bytes();
    let pair = |tokens: usize| (2 * batch * tokens * h * e * cached) as u64;
    total.kv_bytes += pair(reach);
    match c.variant {
        Variant::Mf => total.state_bytes += pair(c.contexts),
        Variant::Sh | Variant::Mh => total.kv_bytes += pair(reach),
    }
    total.parameters = layer.groups.iter().map(|g| g.elements() as u64).sum();
    total
}
