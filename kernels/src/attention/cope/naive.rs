//! The definition: score and position matrices for each sequence, differentiated by autograd.

use candle_core::{D, Result, Tensor};

use super::super::naive::{keys, seen, softmax};
use super::super::plan::{Plan, Sequence};
use super::{Cope, check};

/// [`super::cope_attention`] by its definition: slow, memory quadratic in the length, simple.
///
/// # Errors
/// As [`super::cope_attention`].
pub fn cope_attention(args: &Cope) -> Result<Tensor> {
    let (plan, _) = check(args)?;
    let a = &args.attention;
    let mut rows = Vec::new();
    for s in plan.sequences.iter().filter(|s| s.lq > 0) {
        let v = keys(&plan, s, a.v)?;
        rows.push(one(&plan, s, args)?.matmul(&v)?.transpose(0, 1)?.contiguous()?);
    }
    let shape = (plan.b, plan.lq, plan.h, plan.pv);
    if rows.is_empty() {
        return Tensor::zeros(shape, a.q.dtype(), a.q.device());
    }
    Tensor::cat(&rows, 0)?.reshape(shape)?.to_dtype(a.q.dtype())
}

/// The weights of the values: (b, h, lq, lk) in q's dtype. Not for packed sequences or caches.
///
/// # Errors
/// As [`super::cope_attention`].
pub fn weights(args: &Cope) -> Result<Tensor> {
    let (plan, _) = check(args)?;
    let a = &args.attention;
    if plan.b * plan.lq == 0 {
        return Tensor::zeros((plan.b, plan.h, plan.lq, a.k.dim(1)?), a.q.dtype(), a.q.device());
    }
    let all: Vec<Tensor> = plan.sequences.iter().map(|s| one(&plan, s, args)).collect::<Result<_>>()?;
    Tensor::stack(&all, 0)?.to_dtype(a.q.dtype())
}

/// Weights of one sequence: (h, lq, lk).
fn one(plan: &Plan, s: &Sequence, args: &Cope) -> Result<Tensor> {
    let q = args.attention.q.narrow(0, s.q_row, 1)?.narrow(1, s.q_start, s.lq)?.squeeze(0)?;
    let q = q.to_dtype(crate::state_dtype(q.dtype()))?.transpose(0, 1)?.contiguous()?;
    let scores = (q.matmul(&keys(plan, s, args.attention.k)?.t()?.contiguous()?)? * plan.scale)?;
    let seen = seen(plan, s, &scores)?;
    let gates = (scores.affine(0.5, 0.0)?.tanh()? * 0.5)?.affine(1.0, 0.5)?;
    let gates = seen.where_cond(&gates, &gates.zeros_like()?)?;
    // later[n, j] = 1 where n is at or after j: a sum from each key on.
    let later: Vec<u8> = (0..s.lk * s.lk).map(|i| u8::from(i / s.lk >= i % s.lk)).collect();
    let later = Tensor::from_vec(later, (s.lk, s.lk), q.device())?.to_dtype(q.dtype())?;
    let count = gates.broadcast_matmul(&later)?;
    let e = per_head(args.pos_emb, plan.h)?.to_dtype(q.dtype())?.contiguous()?;
    let last = (e.dim(D::Minus1)? - 1) as f64;
    let end = Tensor::full(last as f32, count.shape(), q.device())?.to_dtype(q.dtype())?;
    let p = count.lt(last)?.where_cond(&count, &end)?;
    let (below, above) = (p.detach().floor()?, p.detach().ceil()?);
    let at = q.matmul(&e)?; // (h, lq, npos)
    let pick = |index: &Tensor| at.gather(&index.to_dtype(candle_core::DType::U32)?, D::Minus1);
    let w = (&p - &below)?;
    let by_position = ((pick(&below)? * w.affine(-1.0, 1.0)?)? + (pick(&above)? * &w)?)?;
    softmax(&(scores + by_position)?, &seen)
}

/// Embeddings as (h, p, npos).
fn per_head(pos_emb: &Tensor, h: usize) -> Result<Tensor> {
    match *pos_emb.dims() {
        [p, npos] => pos_emb.unsqueeze(0)?.broadcast_as((h, p, npos)),
        _ => Ok(pos_emb.clone()),
    }
}
