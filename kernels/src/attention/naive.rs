//! The definition: a score matrix for each sequence, differentiated by autograd.

use candle_core::{D, Result, Tensor, bail};

use super::plan::{Plan, Sequence};
use super::{Attention, Weighting, plan};

/// [`super::attention`] by its definition, with full score matrices: slow, memory quadratic in the length, simple.
///
/// # Errors
/// As [`super::attention`].
pub fn attention(args: &Attention) -> Result<Tensor> {
    let plan = plan::Plan::new(args)?;
    let dtype = args.q.dtype();
    let mut rows = Vec::new();
    for s in plan.sequences.iter().filter(|s| s.lq > 0) {
        if s.lk == 0 {
            let shape = (s.lq, plan.h, plan.pv);
            rows.push(Tensor::zeros(shape, crate::state_dtype(dtype), args.q.device())?);
            continue;
        }
        let v = keys(&plan, s, args.v)?;
        rows.push(one(&plan, s, args)?.matmul(&v)?.transpose(0, 1)?.contiguous()?);
    }
    let shape = (plan.b, plan.lq, plan.h, plan.pv);
    if rows.is_empty() {
        return Tensor::zeros(shape, dtype, args.q.device());
    }
    Tensor::cat(&rows, 0)?.reshape(shape)?.to_dtype(dtype)
}

/// The weights of the values, 0 where a query does not see a key: (b, h, lq, lk), in q's dtype. Not for packed
/// sequences or caches.
///
/// # Errors
/// As [`super::attention`], and with `cu_seqlens` or `kv_lens`.
pub fn weights(args: &Attention) -> Result<Tensor> {
    if args.cu_seqlens.is_some() || args.kv_lens.is_some() {
        bail!("attention: weights of packed sequences or of caches are not to be had");
    }
    let plan = plan::Plan::new(args)?;
    let lk = args.k.dim(1)?;
    if plan.b * plan.lq * lk == 0 {
        return Tensor::zeros((plan.b, plan.h, plan.lq, lk), args.q.dtype(), args.q.device());
    }
    let all: Vec<Tensor> = plan.sequences.iter().map(|s| one(&plan, s, args)).collect::<Result<_>>()?;
    Tensor::stack(&all, 0)?.to_dtype(args.q.dtype())
}

/// Keys or values of a sequence for each query head: (h, lk, ..).
pub(super) fn keys(plan: &Plan, s: &Sequence, t: &Tensor) -> Result<Tensor> {
    let t = t.narrow(0, s.k_row, 1)?.narrow(1, s.k_start, s.lk)?.squeeze(0)?;
    let (l, h_kv, p) = t.dims3()?;
    let shared = t.unsqueeze(2)?.broadcast_as((l, h_kv, plan.group, p))?;
    shared.reshape((l, plan.h, p))?.transpose(0, 1)?.contiguous()?.to_dtype(crate::state_dtype(t.dtype()))
}

/// Weights of one sequence: (h, lq, lk).
fn one(plan: &Plan, s: &Sequence, args: &Attention) -> Result<Tensor> {
    let q = args.q.narrow(0, s.q_row, 1)?.narrow(1, s.q_start, s.lq)?.squeeze(0)?;
    let q = q.to_dtype(crate::state_dtype(q.dtype()))?.transpose(0, 1)?.contiguous()?;
    let k = keys(plan, s, args.k)?;
    let mut scores = (q.matmul(&k.t()?.contiguous()?)? * plan.scale)?; // (h, lq, lk)
    if let Some(cap) = plan.softcap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    if let Some(bias) = args.bias {
        scores = (scores + by_distance(bias, s)?.to_dtype(q.dtype())?)?;
    }
    let seen = seen(plan, s, &scores)?;
    match plan.weighting {
        Weighting::Softmax => softmax(&scores, &seen),
        Weighting::ReluSquared => seen.where_cond(&scores.relu()?.sqr()?, &scores.zeros_like()?),
    }
}

/// Ones where a query sees a key, in the shape of the scores (h, lq, lk).
pub(super) fn seen(plan: &Plan, s: &Sequence, scores: &Tensor) -> Result<Tensor> {
    let seen: Vec<u8> =
        (0..s.lq).flat_map(|i| (0..s.lk).map(move |t| plan.keys(s, i).contains(&t).into())).collect();
    Tensor::from_vec(seen, (1, s.lq, s.lk), scores.device())?.broadcast_as(scores.shape())
}

/// Softmax over the keys that are seen; zeros where there are none.
pub(super) fn softmax(scores: &Tensor, seen: &Tensor) -> Result<Tensor> {
    let hidden =
        Tensor::full(f32::NEG_INFINITY, scores.shape(), scores.device())?.to_dtype(scores.dtype())?;
    let scores = seen.where_cond(scores, &hidden)?;
    // The maximum of a row cancels in the quotient: a constant for the gradient. A row that sees nothing has none, and
    // sums to 0.
    let top = scores.max_keepdim(D::Minus1)?.detach().maximum(f64::from(f32::MIN))?;
    let weights = scores.broadcast_sub(&top)?.exp()?;
    let sum = weights.sum_keepdim(D::Minus1)?;
    let sum = (&sum + sum.eq(0.0)?.to_dtype(sum.dtype())?)?;
    weights.broadcast_div(&sum)
}

/// The bias table (h, n) spread over the pairs of a sequence: (h, lq, lk).
fn by_distance(bias: &Tensor, s: &Sequence) -> Result<Tensor> {
    let (h, n) = bias.dims2()?;
    let distance = |i: usize, t: usize| (s.lk + i - s.lq).saturating_sub(t).min(n - 1) as u32;
    let index: Vec<u32> = (0..s.lq).flat_map(|i| (0..s.lk).map(move |t| distance(i, t))).collect();
    let index = Tensor::from_vec(index, s.lq * s.lk, bias.device())?;
    bias.index_select(&index, 1)?.reshape((h, s.lq, s.lk))
}
