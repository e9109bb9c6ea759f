//! Attention with contextual positions (CoPE; Golovneva et al. 2024, section 4): a key's position is the number of
//! tokens since it that the query counts.
//!
//! ```text
//! s[t,j] = scale · <q_t, k_j>                     p[t,j] = min(Σ_{n=j..t} σ(s[t,n]), npos - 1)
//! e[t,j] = (1 - w) q_t · E_⌊p⌋ + w q_t · E_⌈p⌉    w = p - ⌊p⌋
//! o_t    = Σ_j softmax_j(s + e)[t,j] v_j          over the keys j that query t sees
//! ```
//! The positions of a row depend on the whole row, so that there is no online softmax: a block of queries holds its rows
//! of scores, and memory is linear in the length all the same.

mod cpu;
pub mod naive;

use candle_core::{DType, Result, Tensor, bail};

use super::plan::Plan;
use super::{Attention, Weighting};
use crate::host;
use crate::simd::Real;
use crate::tape;

const OP: &str = "cope_attention";

/// What to attend with.
#[derive(Debug, Clone, Copy)]
pub struct Cope<'a> {
    /// Queries, keys, values, windows and caches; causal, softmax, without soft cap and bias.
    pub attention: Attention<'a>,
    /// Position embeddings E, (p, npos) for all heads or (h, p, npos), in any float.
    pub pos_emb: &'a Tensor,
}

/// Attention output (b, lq, h, pv) in q's dtype, differentiable in q, k, v and the position embeddings; f32 and f64 are
/// computed as they are, bf16 and f16 in f32.
///
/// # Errors
/// As [`super::attention`], if an option is set that has no contextual form, or the embeddings have another shape.
pub fn cope_attention(args: &Cope) -> Result<Tensor> {
    let (plan, npos) = check(args)?;
    let Attention { q, k, v, .. } = args.attention;
    let work = crate::state_dtype(q.dtype());
    let ready = |t: &Tensor| t.to_dtype(work)?.contiguous();
    let heads = if args.pos_emb.rank() == 3 { plan.h } else { 1 };
    let inputs = [ready(q)?, ready(k)?, ready(v)?, ready(args.pos_emb)?];
    let node = Contextual { plan, npos, heads };
    let o = match work {
        DType::F64 => node.forward::<f64>(inputs),
        _ => node.forward::<f32>(inputs),
    }?;
    o.to_dtype(q.dtype())
}

/// The checked arguments: the plan and the number of positions.
fn check(args: &Cope) -> Result<(Plan, usize)> {
    let a = &args.attention;
    if !a.causal || a.exclude_self || a.weighting != Weighting::Softmax {
        bail!("{OP}: expected causal softmax attention that sees its own position");
    }
    if a.softcap.is_some() || a.bias.is_some() {
        bail!("{OP}: expected no softcap and no bias beside the contextual positions");
    }
    let plan = Plan::new(a)?;
    let npos = match *args.pos_emb.dims() {
        [p, npos] if p == plan.p && npos > 0 => npos,
        [h, p, npos] if h == plan.h && p == plan.p && npos > 0 => npos,
        _ => bail!(
            "{OP}: pos_emb has shape {:?}, expected ({}, npos) or ({}, {}, npos) with npos > 0",
            args.pos_emb.shape(),
            plan.p,
            plan.h,
            plan.p
        ),
    };
    if !args.pos_emb.dtype().is_float() {
        bail!("{OP}: pos_emb is {:?}, expected a float", args.pos_emb.dtype());
    }
    Ok((plan, npos))
}

/// The node of the autograd graph; its inputs are q, k, v and the embeddings.
struct Contextual {
    plan: Plan,
    npos: usize,
    /// Heads with embeddings of their own: all, or one for all.
    heads: usize,
}

/// Runs `f` on the slices of contiguous tensors.
fn with_slices<T: Real, R>(tensors: [&Tensor; 4], f: impl FnOnce([&[T]; 4]) -> R) -> Result<R> {
    let stored = tensors.map(Tensor::storage_and_layout);
    let [q, k, v, e] = stored.each_ref().map(|(storage, layout)| host::slice::<T>(storage, layout));
    Ok(f([q?, k?, v?, e?]))
}

impl Contextual {
    fn sizes(&self, positions: usize) -> cpu::Sizes<'_> {
        cpu::Sizes::new(&self.plan, (self.heads, self.npos), positions)
    }

    fn forward<T: Real>(self, inputs: [Tensor; 4]) -> Result<Tensor> {
        let positions = inputs[1].dims()[1];
        let all = inputs.each_ref();
        let o = with_slices(all, |data| cpu::forward::<T>(&self.sizes(positions), data))?;
        let shape = (self.plan.b, self.plan.lq, self.plan.h, self.plan.pv);
        let outputs = tape::record(self, &all.map(Some), vec![(host::storage(o), shape.into())])?;
        match outputs.into_iter().next() {
            Some(o) => Ok(o),
            None => bail!("{OP}: expected an output"),
        }
    }

    fn gradients<T: Real>(
        &self,
        inputs: [&Tensor; 4],
        o: &Tensor,
        d_o: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let sizes = self.sizes(inputs[1].dims()[1]);
        let (o, d_o) = (o.contiguous()?, d_o.contiguous()?);
        let (o, d_o) = (o.storage_and_layout(), d_o.storage_and_layout());
        let (o, d_o) = (host::slice::<T>(&o.0, o.1)?, host::slice::<T>(&d_o.0, d_o.1)?);
        let grads = with_slices(inputs, |data| cpu::backward::<T>(&sizes, data, o, d_o))?;
        let grad = |(values, like): (Vec<T>, &Tensor)| Some(host::tensor(values, like.shape()));
        Ok(grads.into_iter().zip(inputs).map(grad).collect())
    }
}

impl tape::Backward for Contextual {
    fn name(&self) -> &'static str {
        OP
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        output: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let ([Some(q), Some(k), Some(v), Some(e)], [Some(d_o)]) = (inputs, grads) else {
            bail!("{OP}: an input or the output's gradient is missing in the backward pass")
        };
        match q.dtype() {
            DType::F64 => self.gradients::<f64>([q, k, v, e], output, d_o),
            _ => self.gradients::<f32>([q, k, v, e], output, d_o),
        }
    }
}
