//! The definition: a score matrix for each sequence, differentiated by autograd.

use candle_core::{D, Result, Tensor};

use super::plan::{Plan, Sequence};
use super::{Attention, plan};

/// [`super::attention`] by its definition, with full score matrices: slow, memory quadratic in the length, simple.
///
/// # Errors
/// As [`super::attention`].
pub fn attention(args: &Attention) -> Result<Tensor> {
    let plan = plan::Plan::new(args)?;
    let dtype = args.q.dtype();
    let compute = crate::state_dtype(dtype);
    let mut rows = Vec::new();
    for s in plan.sequences.iter().filter(|s| s.lq > 0) {
        let q = args.q.narrow(0, s.q_row, 1)?.narrow(1, s.q_start, s.lq)?.squeeze(0)?;
        let keys = |t: &Tensor| t.narrow(0, s.k_row, 1)?.narrow(1, s.k_start, s.lk)?.squeeze(0);
        let (k, v) = (keys(args.k)?, keys(args.v)?);
        rows.push(one(&plan, s, &q.to_dtype(compute)?, &k.to_dtype(compute)?, &v.to_dtype(compute)?)?);
    }
    let shape = (plan.b, plan.lq, plan.h, plan.pv);
    if rows.is_empty() {
        return Tensor::zeros(shape, dtype, args.q.device());
    }
    Tensor::cat(&rows, 0)?.reshape(shape)?.to_dtype(dtype)
}

/// One sequence: q (lq, h, p), k (lk, h_kv, p), v (lk, h_kv, pv) to (lq, h, pv).
fn one(plan: &Plan, s: &Sequence, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    if s.lk == 0 {
        return Tensor::zeros((s.lq, plan.h, plan.pv), q.dtype(), q.device());
    }
    let heads = |t: &Tensor| {
        let (l, h_kv, p) = t.dims3()?;
        let shared = t.unsqueeze(2)?.broadcast_as((l, h_kv, plan.group, p))?;
        shared.reshape((l, plan.h, p))?.transpose(0, 1)?.contiguous()
    };
    let (k, v) = (heads(k)?, heads(v)?); // (h, lk, p)
    let scores = (q.transpose(0, 1)?.contiguous()?.matmul(&k.t()?.contiguous()?)? * plan.scale)?; // (h, lq, lk)
    let scores = match plan.softcap {
        Some(cap) => ((scores / cap)?.tanh()? * cap)?,
        None => scores,
    };
    let seen: Vec<u8> =
        (0..s.lq).flat_map(|i| (0..s.lk).map(move |t| plan.keys(s, i).contains(&t).into())).collect();
    let seen = Tensor::from_vec(seen, (1, s.lq, s.lk), q.device())?.broadcast_as(scores.shape())?;
    let hidden = Tensor::full(f32::NEG_INFINITY, scores.shape(), q.device())?.to_dtype(q.dtype())?;
    let scores = seen.where_cond(&scores, &hidden)?;
    // The maximum of a row cancels in the quotient: a constant for the gradient.
    let top = scores.max_keepdim(D::Minus1)?.detach();
    let weights = scores.broadcast_sub(&top)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&v)?.transpose(0, 1)?.contiguous()
}
