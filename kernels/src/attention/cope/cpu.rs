//! Blocks of queries against all keys that they see: products as matrices, what is contextual row by row.
//!
//! Backward, with `a` the weights, `g = σ(s)`, `z = q · E` and `D = Σ dO ∘ O`:
//! ```text
//! dE_t,j = a (dP - D)                         the gradient of s + e
//! dp_j   = dE_t,j (z_⌈p⌉ - z_⌊p⌋)             below the last position, else 0
//! dS_n   = dE_t,n + g_n (1 - g_n) Σ_{j≤n} dp_j
//! ```

use std::ops::Range;

use super::super::plan::{Plan, Sequence};
use crate::host::{self, Disjoint};
use crate::simd::{Real, dot, vectorized};

/// Queries a block.
const QUERIES: usize = 64;

/// Queries that are taken one by one: a product of matrices would first copy all keys of the cache.
const FEW: usize = 4;

/// Keys whose values are added up together.
const RUN: usize = 128;

/// What is computed on contiguous q (b, lq, h, p), k and v (rows, positions, h_kv, ..) and
/// embeddings (h or 1, p, npos).
pub(super) struct Sizes<'a> {
    plan: &'a Plan,
    heads: usize,
    npos: usize,
    positions: usize,
}

/// Some queries of one head.
struct Block {
    sequence: Sequence,
    head: usize,
    first: usize,
    tokens: usize,
    keys: Range<usize>,
}

impl<'a> Sizes<'a> {
    pub(super) fn new(plan: &'a Plan, (heads, npos): (usize, usize), positions: usize) -> Self {
        Self { plan, heads, npos, positions }
    }

    /// Key heads.
    fn h_kv(&self) -> usize {
        self.plan.h / self.plan.group
    }

    /// Row of (b · lq · h) for query `i` of a block.
    fn query(&self, block: &Block, i: usize) -> usize {
        let s = &block.sequence;
        (s.q_row * self.plan.lq + s.q_start + block.first + i) * self.plan.h + block.head
    }

    /// Row of (rows · positions · h_kv) for key `t` of a sequence.
    fn key(&self, s: &Sequence, t: usize, g: usize) -> usize {
        (s.k_row * self.positions + s.k_start + t) * self.h_kv() + g
    }

    /// Where the embeddings of a head begin.
    fn embedding(&self, head: usize) -> usize {
        head % self.heads * self.plan.p * self.npos
    }

    fn blocks(&self, s: &Sequence, head: usize) -> impl Iterator<Item = Block> {
        let (plan, s) = (self.plan, *s);
        (0..s.lq).step_by(QUERIES).map(move |first| {
            let tokens = QUERIES.min(s.lq - first);
            let keys = plan.keys(&s, first).start..plan.keys(&s, first + tokens - 1).end;
            Block { sequence: s, head, first, tokens, keys }
        })
    }
}

/// Output (b, lq, h, pv).
pub(super) fn forward<T: Real>(sizes: &Sizes, [q, k, v, e]: [&[T]; 4]) -> Vec<T> {
    let Plan { b, lq, h, pv, .. } = *sizes.plan;
    let mut out = vec![T::ZERO; b * lq * h * pv];
    let to_out = Disjoint::new(&mut out);
    let heads = sizes.plan.sequences.iter().flat_map(|s| (0..h).map(move |head| (s, head)));
    let blocks: Vec<Block> = heads.flat_map(|(s, head)| sizes.blocks(s, head)).collect();
    host::parallel(blocks.len(), |n| {
        let block = &blocks[n];
        let rows = Rows::new(sizes, block, [q, k, e]);
        let keys = block.keys.len();
        let v_at = sizes.key(&block.sequence, block.keys.start, block.head / sizes.plan.group) * pv;
        let mut o = vec![T::ZERO; block.tokens * pv];
        let (v, step) = (&v[v_at..], sizes.h_kv() * pv);
        if block.tokens <= FEW {
            for (weights, o) in rows.weights.chunks_exact(keys).zip(o.chunks_exact_mut(pv)) {
                vectorized(
                    #[inline(always)]
                    || gather(weights, v, step, o),
                );
            }
        } else {
            let product = (block.tokens, keys, pv);
            host::gemm(product, &rows.weights, (keys, 1), v, (step, 1), &mut o, (pv, 1), false);
        }
        for (i, o) in o.chunks_exact(pv).enumerate() {
            // SAFETY: each query of each head belongs to one block.
            unsafe { to_out.slice(sizes.query(block, i) * pv, pv) }.copy_from_slice(o);
        }
    });
    out
}

/// `s_t = q · k_t`, the keys `step` apart.
#[inline(always)]
fn products<T: Real>(q: &[T], k: &[T], step: usize, scores: &mut [T]) {
    for (t, score) in scores.iter_mut().enumerate() {
        *score = dot(q, &k[t * step..][..q.len()]);
    }
}

/// `o = Σ_t w_t v_t`, the values `step` apart.
#[inline(always)]
fn gather<T: Real>(weights: &[T], v: &[T], step: usize, o: &mut [T]) {
    let mut sum = vec![T::ZERO; o.len()];
    for (run, weights) in weights.chunks(RUN).enumerate() {
        sum.fill(T::ZERO);
        for (t, &w) in weights.iter().enumerate() {
            let value = &v[(run * RUN + t) * step..][..sum.len()];
            for (sum, &value) in sum.iter_mut().zip(value) {
                *sum += w * value;
            }
        }
        for (o, &sum) in o.iter_mut().zip(&sum) {
            *o += sum;
        }
    }
}

/// One block's rows, (tokens, keys) unless said otherwise; zero where a query does not see a key.
struct Rows<T> {
    scores: Vec<T>,
    /// Counted positions, before they are bounded.
    counts: Vec<f64>,
    weights: Vec<T>,
    /// Query times embedding, (tokens, npos).
    at: Vec<T>,
}

impl<T: Real> Rows<T> {
    fn new(sizes: &Sizes, block: &Block, [q, k, e]: [&[T]; 3]) -> Self {
        let (plan, npos, n) = (sizes.plan, sizes.npos, block.keys.len());
        let (p, h, tokens) = (plan.p, plan.h, block.tokens);
        let q = &q[sizes.query(block, 0) * p..];
        let k = &k[sizes.key(&block.sequence, block.keys.start, block.head / plan.group) * p..];
        let mut scores = vec![T::ZERO; tokens * n];
        let step = sizes.h_kv() * p;
        if tokens <= FEW {
            for (i, scores) in scores.chunks_exact_mut(n).enumerate() {
                let q = &q[i * h * p..][..p];
                vectorized(
                    #[inline(always)]
                    || products(q, k, step, scores),
                );
            }
        } else {
            host::gemm((tokens, p, n), q, (h * p, 1), k, (1, step), &mut scores, (n, 1), false);
        }
        let mut at = vec![T::ZERO; tokens * npos];
        let e = &e[sizes.embedding(block.head)..];
        host::gemm((tokens, p, npos), q, (h * p, 1), e, (npos, 1), &mut at, (npos, 1), false);
        let mut rows = Self { scores, counts: vec![0.0; tokens * n], weights: vec![T::ZERO; tokens * n], at };
        let scale = T::real(plan.scale);
        for i in 0..tokens {
            let seen = seen(plan, block, i);
            vectorized(
                #[inline(always)]
                || rows.row(i, n, npos, seen, scale),
            );
        }
        rows
    }

    /// Row `i`: gates, their sums from each key on, the scores with positions, the softmax.
    #[inline(always)]
    fn row(&mut self, i: usize, n: usize, npos: usize, seen: Range<usize>, scale: T) {
        let row = i * n + seen.start..i * n + seen.end;
        let (scores, counts) = (&mut self.scores[row.clone()], &mut self.counts[row.clone()]);
        let weights = &mut self.weights[row];
        for (count, s) in counts.iter_mut().zip(scores.iter_mut()) {
            *s *= scale;
            *count = s.sigmoid().to_f64();
        }
        // In f64: far back, a position in f32 would have few digits left behind the point.
        let mut sum = 0.0;
        for count in counts.iter_mut().rev() {
            sum += *count;
            *count = sum;
        }
        let at = &self.at[i * npos..(i + 1) * npos];
        let mut top = T::NEG_INFINITY;
        for ((weight, &s), &count) in weights.iter_mut().zip(scores.iter()).zip(counts.iter()) {
            let (below, above, w) = position::<T>(count, npos);
            *weight = s + (T::ONE - w) * at[below] + w * at[above];
            top = Real::max(top, *weight);
        }
        let mut sum = T::ZERO;
        for weight in weights.iter_mut() {
            *weight = Real::exp(*weight - top);
            sum += *weight;
        }
        let inverse = T::ONE / sum;
        for weight in weights {
            *weight *= inverse;
        }
    }
}

/// The keys that query `i` of a block sees, from the first of the block's.
fn seen(plan: &Plan, block: &Block, i: usize) -> Range<usize> {
    let seen = plan.keys(&block.sequence, block.first + i);
    seen.start - block.keys.start..seen.end - block.keys.start
}

/// The positions below and above a count, and the weight of the one above.
#[inline(always)]
fn position<T: Real>(count: f64, npos: usize) -> (usize, usize, T) {
    // NaN counts as the last position: the scores carry it on.
    let below = (count as usize).min(npos - 1);
    if below + 1 >= npos {
        return (npos - 1, npos - 1, T::ZERO);
    }
    (below, below + 1, T::real(count - below as f64))
}

/// Gradients of q, k, v and the embeddings, in their shapes.
pub(super) fn backward<T: Real>(sizes: &Sizes, data: [&[T]; 4], o: &[T], d_o: &[T]) -> [Vec<T>; 4] {
    let Plan { h, group, p, pv, .. } = *sizes.plan;
    let [q, k, v, e] = data;
    let (mut dq, mut dk, mut dv) = (vec![T::ZERO; q.len()], vec![T::ZERO; k.len()], vec![T::ZERO; v.len()]);
    let tasks: Vec<(Sequence, usize)> =
        sizes.plan.sequences.iter().flat_map(|&s| (0..h / group).map(move |g| (s, g))).collect();
    let part = group * p * sizes.npos;
    let mut de = vec![T::ZERO; tasks.len() * part];
    let outputs = [&mut dq, &mut dk, &mut dv, &mut de].map(|g| Disjoint::new(g));
    let [to_dq, to_dk, to_dv, to_de] = &outputs;
    host::parallel(tasks.len(), |n| {
        let (s, g) = tasks[n];
        let (mut dk, mut dv) = (vec![T::ZERO; s.lk * p], vec![T::ZERO; s.lk * pv]);
        // SAFETY: each task has a piece of its own.
        let de = unsafe { to_de.slice(n * part, part) };
        for j in 0..group {
            let de = &mut de[j * p * sizes.npos..(j + 1) * p * sizes.npos];
            for block in sizes.blocks(&s, g * group + j) {
                let sums = [&mut dk[block.keys.start * p..], &mut dv[block.keys.start * pv..], &mut *de];
                let dq = block_gradients(sizes, &block, data, [o, d_o], sums);
                for (i, dq) in dq.chunks_exact(p).enumerate() {
                    // SAFETY: each query of each head belongs to one block.
                    unsafe { to_dq.slice(sizes.query(&block, i) * p, p) }.copy_from_slice(dq);
                }
            }
        }
        for t in 0..s.lk {
            let at = sizes.key(&s, t, g);
            // SAFETY: each key of each head belongs to one sequence.
            unsafe { to_dk.slice(at * p, p) }.copy_from_slice(&dk[t * p..(t + 1) * p]);
            // SAFETY: as above.
            unsafe { to_dv.slice(at * pv, pv) }.copy_from_slice(&dv[t * pv..(t + 1) * pv]);
        }
    });
    let mut sum = vec![T::ZERO; e.len()];
    let heads = tasks.iter().flat_map(|&(_, g)| (0..group).map(move |j| g * group + j));
    for (head, of_head) in heads.zip(de.chunks_exact(p * sizes.npos)) {
        for (to, &from) in sum[sizes.embedding(head)..].iter_mut().zip(of_head) {
            *to += from;
        }
    }
    [dq, dk, dv, sum]
}

/// dQ (tokens, p) of a block; what it adds to dK and dV, from its first key on, and to its head's dE.
fn block_gradients<T: Real>(
    sizes: &Sizes,
    block: &Block,
    [q, k, v, e]: [&[T]; 4],
    [o, d_o]: [&[T]; 2],
    [dk, dv, de]: [&mut [T]; 3],
) -> Vec<T> {
    let (plan, npos, n, tokens) = (sizes.plan, sizes.npos, block.keys.len(), block.tokens);
    let (p, pv, h, h_kv) = (plan.p, plan.pv, plan.h, sizes.h_kv());
    let rows = Rows::new(sizes, block, [q, k, e]);
    let (query, key) =
        (sizes.query(block, 0), sizes.key(&block.sequence, block.keys.start, block.head / plan.group));
    let (q, k, v) = (&q[query * p..], &k[key * p..], &v[key * pv..]);
    let (o, d_o, e) = (&o[query * pv..], &d_o[query * pv..], &e[sizes.embedding(block.head)..]);
    let mut slopes = vec![T::ZERO; tokens * n];
    host::gemm((tokens, pv, n), d_o, (h * pv, 1), v, (1, h_kv * pv), &mut slopes, (n, 1), false);
    let mut d_at = vec![T::ZERO; tokens * npos];
    for i in 0..tokens {
        let at = i * h * pv..i * h * pv + pv;
        let dot: T = d_o[at.clone()].iter().zip(&o[at]).map(|(&g, &o)| g * o).sum();
        let seen = seen(plan, block, i);
        slopes[i * n..i * n + seen.start].fill(T::ZERO);
        slopes[i * n + seen.end..(i + 1) * n].fill(T::ZERO);
        let row = i * n + seen.start..i * n + seen.end;
        let of = Row {
            scores: &rows.scores[row.clone()],
            counts: &rows.counts[row.clone()],
            weights: &rows.weights[row.clone()],
            at: &rows.at[i * npos..(i + 1) * npos],
        };
        of.slopes(dot, T::real(plan.scale), &mut slopes[row], &mut d_at[i * npos..(i + 1) * npos]);
    }
    let mut dq = vec![T::ZERO; tokens * p];
    host::gemm((tokens, n, p), &slopes, (n, 1), k, (h_kv * p, 1), &mut dq, (p, 1), false);
    host::gemm((tokens, npos, p), &d_at, (npos, 1), e, (1, npos), &mut dq, (p, 1), true);
    host::gemm((n, tokens, p), &slopes, (1, n), q, (h * p, 1), dk, (p, 1), true);
    host::gemm((n, tokens, pv), &rows.weights, (1, n), d_o, (h * pv, 1), dv, (pv, 1), true);
    host::gemm((p, tokens, npos), q, (1, h * p), &d_at, (npos, 1), de, (npos, 1), true);
    dq
}

/// What one query sees.
struct Row<'a, T> {
    scores: &'a [T],
    counts: &'a [f64],
    weights: &'a [T],
    at: &'a [T],
}

impl<T: Real> Row<'_, T> {
    /// dP to the gradient of the unscaled products, and that of query times embedding.
    fn slopes(&self, dot: T, scale: T, slopes: &mut [T], d_at: &mut [T]) {
        let npos = self.at.len();
        let mut counted = T::ZERO; // Σ dp up to this key
        for (j, ds) in slopes.iter_mut().enumerate() {
            let d = self.weights[j] * (*ds - dot);
            let (below, above, w) = position::<T>(self.counts[j], npos);
            d_at[below] += (T::ONE - w) * d;
            d_at[above] += w * d;
            counted += d * (self.at[above] - self.at[below]);
            let g = self.scores[j].sigmoid();
            *ds = scale * (d + counted * g * (T::ONE - g));
        }
    }
}
