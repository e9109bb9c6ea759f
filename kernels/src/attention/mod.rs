//! Softmax attention: causal or not, windows, grouped heads, soft cap, bias by distance, packed sequences, key/value
//! caches.
//!
//! ```text
//! s[i,t] = cap · tanh(scale · <q_i, k_t> / cap)         without a cap: scale · <q_i, k_t> + bias[i - t]
//! o_i    = Σ_t softmax_t(s[i,t]) v_t                    over the keys t that query i sees
//!    or    Σ_t relu(s[i,t])² v_t                        not normalised: the gated attention unit's
//! ```
//! A sequence of lk keys has lq queries, which are its **last** positions: query i stands at position lk - lq + i.
//! `causal` hides the keys after a query; `window` those `window` or more positions before it, or those outside its
//! block of so many positions. A query that sees no key gives zeros.
//!
//! Sources: Vaswani et al. 2017, section 3.2; grouped heads: Ainslie et al. 2023; tiles with an online softmax and
//! recomputation in the backward pass: Dao et al. 2022, algorithms 1 and 4; soft cap: Gemma 2 report, section 2; bias by
//! distance: Raffel et al. 2020, section 2.1 (learned), Press et al. 2022 (linear); squared relu: Hua et al. 2022.

pub mod cope;
mod cpu;
pub mod naive;
mod plan;

use candle_core::{DType, Result, Tensor, bail};

use crate::host;
use crate::simd::Real;
use crate::tape;
use cpu::{Bias, Heads};
use plan::Plan;

/// Which keys a window shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WindowMode {
    /// Those less than `window` positions before the query.
    #[default]
    Sliding,
    /// Those in the query's own block, where positions are cut into blocks of `window` from 0.
    Block,
}

/// How scores become weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Weighting {
    /// `exp(s) / Σ exp(s)`
    #[default]
    Softmax,
    /// `relu(s)²`
    ReluSquared,
}

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
    /// Shows only keys with `q_pos - k_pos < window`, or those of the query's block; at least 1.
    pub window: Option<usize>,
    /// What `window` means.
    pub window_mode: WindowMode,
    /// Hides a query's own position, too; needs `causal`.
    pub exclude_self: bool,
    /// Added to the scaled scores: (h, n), head by distance `q_pos - k_pos`; distances from n - 1 on take the last
    /// entry. Needs `causal`, and no `softcap`.
    pub bias: Option<&'a Tensor>,
    /// How scores become weights.
    pub weighting: Weighting,
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
            window_mode: WindowMode::Sliding,
            exclude_self: false,
            bias: None,
            weighting: Weighting::Softmax,
            softcap: None,
            scale: None,
            cu_seqlens: None,
            kv_lens: None,
        }
    }
}

/// Attention output (b, lq, h, pv) in q's dtype, differentiable in q, k, v and the bias.
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
        DType::F64 => run::<f64>(plan, args.q, args.k, args.v, args.bias),
        DType::F32 => run::<f32>(plan, args.q, args.k, args.v, args.bias),
        half => {
            // Of a cache only what is in use: the rest would cost a conversion.
            let used = plan.sequences.iter().map(|s| s.k_start + s.lk).max().unwrap_or(0);
            let [k, v] = [args.k, args.v].map(|t| match args.kv_lens {
                Some(_) => t.narrow(1, 0, used)?.to_dtype(DType::F32),
                None => t.to_dtype(DType::F32),
            });
            run::<f32>(plan, &args.q.to_dtype(DType::F32)?, &k?, &v?, args.bias)?.to_dtype(half)
        }
    }
}

/// In the arithmetic of the data.
fn run<T: Real>(plan: Plan, q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (q, k, v) = (with_whole_heads(q)?, with_whole_heads(k)?, with_whole_heads(v)?);
    let bias = bias.map(|b| b.to_dtype(q.dtype())?.contiguous()).transpose()?;
    let inputs = [Some(&q), Some(&k), Some(&v), bias.as_ref()];
    let keep = tape::any_tracked(&inputs);
    let (o, lse) = {
        let (sq, sk, sv) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
        let heads = [Heads::<T>::new(&sq.0, sq.1)?, Heads::new(&sk.0, sk.1)?, Heads::new(&sv.0, sv.1)?];
        let bias = bias.as_ref().map(|b| laid_out::<T>(&plan, b)).transpose()?;
        match cpu::is_decode(&plan) && !keep {
            true => (cpu::decode(&plan, heads, bias.as_ref()), Vec::new()),
            false => cpu::forward(&plan, heads, bias.as_ref(), keep),
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

/// The bias table as the kernels read it.
fn laid_out<T: Real>(plan: &Plan, bias: &Tensor) -> Result<Bias<T>> {
    let (storage, layout) = bias.storage_and_layout();
    Ok(Bias::new(plan, host::slice(&storage, layout)?, bias.dims()[1]))
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
        let ([Some(q), Some(k), Some(v), bias], [Some(d_o)]) = (inputs, grads) else {
            bail!("attention: an input or the output's gradient is missing in the backward pass")
        };
        match q.dtype() {
            DType::F64 => self.gradients::<f64>([q, k, v, output, d_o], bias.as_ref()),
            _ => self.gradients::<f32>([q, k, v, output, d_o], bias.as_ref()),
        }
    }
}

impl Flash {
    fn gradients<T: Real>(
        &self,
        [q, k, v, o, d_o]: [&Tensor; 5],
        bias: Option<&Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
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
        let table = bias.map(|b| laid_out::<T>(&self.plan, b)).transpose()?;
        let distances = bias.map_or(0, |b| b.dims()[1]);
        let size = (k.dims()[0], k.dims()[1]);
        let [dq, dk, dv, d_bias] = cpu::backward(&self.plan, saved, table.as_ref(), size, distances);
        let grad = |values, like: &Tensor| Some(host::tensor(values, like.shape()));
        Ok(vec![grad(dq, q), grad(dk, k), grad(dv, v), bias.and_then(|b| grad(d_bias, b))])
    }
}
