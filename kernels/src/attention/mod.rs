//! Softmax attention: causal or not, sliding window, grouped heads, soft cap, packed sequences, key/value caches.
//!
//! ```text
//! s[i,t] = cap · tanh(scale · <q_i, k_t> / cap)         without a cap: scale · <q_i, k_t>
//! o_i    = Σ_t softmax_t(s[i,t]) v_t                    over the keys t that query i sees
//! ```
//! A sequence of lk keys has lq queries, which are its **last** positions: query i stands at position lk - lq + i.
//! `causal` hides the keys after a query, `window` those `window` or more positions before it. A query that sees no key
//! gives zeros.
//!
//! Sources: Vaswani et al. 2017, section 3.2; grouped heads: Ainslie et al. 2023; tiles with an online softmax and
//! recomputation in the backward pass: Dao et al. 2022, algorithms 1 and 4; soft cap: Gemma 2 report, section 2.

mod cpu;
pub mod naive;
mod plan;

use candle_core::{DType, Result, Tensor, bail};

use crate::host;
use crate::simd::Real;
use crate::tape;
use cpu::Heads;
use plan::Plan;

/// What to attend with; [`Attention::new`] gives plain causal attention, the fields change it.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Queries (b, lq, h, p); with `cu_seqlens` packed: (1, total lq, h, p).
    pub q: &'a Tensor,
    /// Keys (b, lk, h_kv, p), in q's dtype; h_kv divides h, and query head j reads key head j / (h / h_kv).
    pub k: &'a Tensor,
    /// Values (b, lk, h_kv, pv).
    pub v: &'a Tensor,
    /// Hides the keys after a query.
    pub causal: bool,
    /// Shows only keys with `q_pos - k_pos < window`; at least 1.
    pub window: Option<usize>,
    /// Bounds the scaled scores to (-softcap, softcap) by a tanh.
    pub softcap: Option<f64>,
    /// Factor of the scores, 1 / sqrt(p) by default.
    pub scale: Option<f64>,
    /// Boundaries `[0, l0, l0 + l1, ..., lq]` of packed query sequences; needs b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
    /// `k` and `v` are a cache (rows, capacity, ...) with a row a sequence, of which this many positions are valid; what
    /// lies beyond is never used. Without it the rows of `k` are the sequences (packed as `q` with `cu_seqlens`).
    pub kv_lens: Option<&'a [usize]>,
}

impl<'a> Attention<'a> {
    /// Causal attention over all earlier positions.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Self {
            q,
            k,
            v,
            causal: true,
            window: None,
            softcap: None,
            scale: None,
            cu_seqlens: None,
            kv_lens: None,
        }
    }
}

/// Attention output (b, lq, h, pv) in q's dtype, differentiable in q, k and v.
///
/// Time and memory are linear in the tokens kept: score tiles outside the causal or window band are never computed, and
/// no score matrix is stored, in the backward pass neither. f32 and f64 are computed as they are, bf16 and f16 in f32.
///
/// # Errors
/// If shapes, dtypes or devices disagree, h_kv does not divide h, the window is 0, a cache row holds fewer keys than it
/// has causal queries or more than its capacity, or the tensors are not on the CPU.
pub fn attention(args: &Attention) -> Result<Tensor> {
    let plan = Plan::new(args)?;
    match args.q.dtype() {
        DType::F64 => run::<f64>(plan, args.q, args.k, args.v),
        DType::F32 => run::<f32>(plan, args.q, args.k, args.v),
        half => {
            // Of a cache only what is in use: the rest would cost a conversion.
            let used = plan.sequences.iter().map(|s| s.k_start + s.lk).max().unwrap_or(0);
            let [k, v] = [args.k, args.v].map(|t| match args.kv_lens {
                Some(_) => t.narrow(1, 0, used)?.to_dtype(DType::F32),
                None => t.to_dtype(DType::F32),
            });
            run::<f32>(plan, &args.q.to_dtype(DType::F32)?, &k?, &v?)?.to_dtype(half)
        }
    }
}

/// In the arithmetic of the data.
fn run<T: Real>(plan: Plan, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (q, k, v) = (with_whole_heads(q)?, with_whole_heads(k)?, with_whole_heads(v)?);
    let inputs = [Some(&q), Some(&k), Some(&v)];
    let keep = tape::any_tracked(&inputs);
    let (o, lse) = {
        let (sq, sk, sv) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
        let heads = [Heads::<T>::new(&sq.0, sq.1)?, Heads::new(&sk.0, sk.1)?, Heads::new(&sv.0, sv.1)?];
        match cpu::is_decode(&plan) && !keep {
            true => (cpu::decode(&plan, heads), Vec::new()),
            false => cpu::forward(&plan, heads, keep),
        }
    };
    let shape = (plan.b, plan.lq, plan.h, plan.pv);
    if !keep {
        return Ok(host::tensor(o, shape));
    }
    let lse = host::tensor(lse, (plan.b, plan.lq, plan.h));
    let mut outputs = tape::record(Flash { plan, lse }, &inputs, vec![(host::storage(o), shape.into())])?;
    Ok(outputs.swap_remove(0))
}

/// The kernels read rows, tokens and heads wherever they lie, but the features of a head in one piece.
fn with_whole_heads(t: &Tensor) -> Result<Tensor> {
    if t.stride()[3] == 1 || t.dims()[3] == 1 { Ok(t.clone()) } else { t.contiguous() }
}

/// What the backward pass needs besides the inputs and the output.
struct Flash {
    plan: Plan,
    lse: Tensor, // (b, lq, h)
}

impl tape::Backward for Flash {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        output: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let ([Some(q), Some(k), Some(v)], [Some(d_o)]) = (inputs, grads) else {
            bail!("attention: an input or the output's gradient is missing in the backward pass")
        };
        match q.dtype() {
            DType::F64 => self.gradients::<f64>([q, k, v, output, d_o]),
            _ => self.gradients::<f32>([q, k, v, output, d_o]),
        }
    }
}

impl Flash {
    fn gradients<T: Real>(&self, [q, k, v, o, d_o]: [&Tensor; 5]) -> Result<Vec<Option<Tensor>>> {
        let stored = [q, k, v, o, d_o].map(Tensor::storage_and_layout);
        let [q_heads, k_heads, v_heads, o, d_o] = stored.each_ref().map(|(s, l)| Heads::<T>::new(s, l));
        let (lse, lse_layout) = self.lse.storage_and_layout();
        let saved = cpu::Saved {
            q: q_heads?,
            k: k_heads?,
            v: v_heads?,
            o: o?,
            d_o: d_o?,
            lse: host::slice(&lse, lse_layout)?,
        };
        let [dq, dk, dv] = cpu::backward(&self.plan, saved, (k.dims()[0], k.dims()[1]));
        let grad = |values, like: &Tensor| Some(host::tensor(values, like.shape()));
        Ok(vec![grad(dq, q), grad(dk, k), grad(dv, v)])
    }
}
