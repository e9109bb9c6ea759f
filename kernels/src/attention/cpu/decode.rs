//! Few queries against many keys: the cache is read once, in the order it lies in memory, all heads together.
//!
//! Keys go in chunks, each with a softmax of its own; the chunks are weighed against each other at the end. The floor is
//! the time that memory takes to deliver the keys and values.

use super::super::Weighting;
use super::super::plan::{Plan, Sequence};
use super::forward::relu_squared;
use super::{Bias, Heads, LANES, cap_scores, lanes};
use crate::host::{self, Disjoint};
use crate::simd::{Real, vectorized};

/// Keys a chunk.
const CHUNK: usize = 128;
/// Query rows a key head up to which a row of dot products beats a tile.
const FEW: usize = 16;
/// Elements of keys and values below which one thread alone is faster.
const SMALL: usize = 1 << 15;

/// Whether [`decode`] is the faster way.
pub(in super::super) fn is_decode(plan: &Plan) -> bool {
    plan.sequences.iter().all(|s| s.lq * plan.group <= FEW)
}

/// One chunk of keys of one sequence.
struct Chunk {
    sequence: Sequence,
    start: usize,
    end: usize,
    /// Where its partial results and the sequence's queries begin, in rows.
    partial: usize,
    queries: usize,
}

/// Output (b, lq, h, pv).
pub(in super::super) fn decode<T: Real>(
    plan: &Plan,
    [q, k, v]: [Heads<T>; 3],
    bias: Option<&Bias<T>>,
) -> Vec<T> {
    let (chunks, partials) = chunks(plan);
    let queries = pack_queries(plan, q);
    let mut sums = vec![T::ZERO; partials * plan.pv];
    let mut stats = vec![[T::ZERO; 2]; partials]; // top score, sum of weights
    let (to_sums, to_stats) = (Disjoint::new(&mut sums), Disjoint::new(&mut stats));
    let run = |range: std::ops::Range<usize>| {
        let mut weights = Vec::new();
        for chunk in &chunks[range] {
            let rows = chunk.sequence.lq * plan.h;
            // SAFETY: the partial results of a chunk are its own.
            let sums = unsafe { to_sums.slice(chunk.partial * plan.pv, rows * plan.pv) };
            // SAFETY: as above.
            let stats = unsafe { to_stats.slice(chunk.partial, rows) };
            let q = &queries[chunk.queries * plan.p..(chunk.queries + rows) * plan.p];
            weights.clear();
            weights.resize(rows * CHUNK, T::ZERO);
            pulp::Arch::new().dispatch(Attend {
                plan,
                chunk,
                q,
                k,
                v,
                bias,
                weights: &mut weights,
                sums,
                stats,
            });
        }
    };
    let elements: usize = chunks.iter().map(|c| c.end - c.start).sum::<usize>() * plan.h / plan.group;
    if elements * (plan.p + plan.pv) <= SMALL {
        run(0..chunks.len());
    } else {
        host::spinning(chunks.len(), 1, run);
    }
    vectorized(
        #[inline(always)]
        || combine(plan, &chunks, &sums, &stats),
    )
}

/// One chunk, compiled for the instruction set at hand.
struct Attend<'a, T> {
    plan: &'a Plan,
    chunk: &'a Chunk,
    q: &'a [T],
    k: Heads<'a, T>,
    v: Heads<'a, T>,
    bias: Option<&'a Bias<T>>,
    weights: &'a mut [T],
    sums: &'a mut [T],
    stats: &'a mut [[T; 2]],
}

impl<T: Real> pulp::WithSimd for Attend<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { plan, chunk, q, k, v, bias, weights, sums, stats } = self;
        score(simd, plan, chunk, q, k, weights);
        if let Some(bias) = bias {
            add_bias(plan, chunk, bias, weights);
        }
        soften(plan, chunk, weights, stats);
        gather(plan, chunk, v, weights, sums);
    }
}

/// Chunks in order, those of one sequence together, and the number of partial rows.
fn chunks(plan: &Plan) -> (Vec<Chunk>, usize) {
    let (mut chunks, mut partial, mut queries) = (Vec::new(), 0, 0);
    for s in plan.sequences.iter().filter(|s| s.lq > 0) {
        let keys = plan.keys(s, 0).start..plan.keys(s, s.lq - 1).end;
        for start in keys.clone().step_by(CHUNK) {
            chunks.push(Chunk { sequence: *s, start, end: keys.end.min(start + CHUNK), partial, queries });
            partial += s.lq * plan.h;
        }
        queries += s.lq * plan.h;
    }
    (chunks, partial)
}

/// Scaled queries, for each sequence as (h_kv, lq, group, p).
fn pack_queries<T: Real>(plan: &Plan, q: Heads<T>) -> Vec<T> {
    let scale = T::real(plan.scale);
    let mut packed = Vec::with_capacity(plan.b * plan.lq * plan.h * plan.p);
    for s in &plan.sequences {
        for g in 0..plan.h / plan.group {
            for i in 0..s.lq {
                for j in 0..plan.group {
                    let row = q.at(s.q_row, s.q_start + i, g * plan.group + j);
                    packed.extend(row[..plan.p].iter().map(|&x| x * scale));
                }
            }
        }
    }
    packed
}

/// Scores (rows, CHUNK) of all rows against all keys of the chunk.
#[inline(always)]
fn score<T: Real, S: pulp::Simd>(
    simd: S,
    plan: &Plan,
    chunk: &Chunk,
    q: &[T],
    k: Heads<T>,
    scores: &mut [T],
) {
    let s = &chunk.sequence;
    let rows = s.lq * plan.group;
    for t in 0..chunk.end - chunk.start {
        for g in 0..plan.h / plan.group {
            let key = &k.keys(s, chunk.start + t, g)[..plan.p];
            for row in g * rows..(g + 1) * rows {
                scores[row * CHUNK + t] = T::dot(simd, &q[row * plan.p..(row + 1) * plan.p], key);
            }
        }
    }
    cap_scores(scores, plan.softcap);
}

/// Adds the bias to the scores of the keys up to each query.
#[inline(always)]
fn add_bias<T: Real>(plan: &Plan, chunk: &Chunk, bias: &Bias<T>, scores: &mut [T]) {
    let (s, group) = (&chunk.sequence, plan.group);
    for (row, scores) in scores.chunks_exact_mut(CHUNK).enumerate() {
        let (g, i, j) = (row / (s.lq * group), row / group % s.lq, row % group);
        let table = bias.head(plan, g);
        let position = s.lk - s.lq + i;
        for (t, score) in (chunk.start..chunk.end.min(position + 1)).zip(scores) {
            if let Some(&b) = table.get((position - t) * group + j) {
                *score += b;
            }
        }
    }
}

/// Scores to weights relative to each row's top; zero where the query does not see the key.
#[inline(always)]
fn soften<T: Real>(plan: &Plan, chunk: &Chunk, weights: &mut [T], stats: &mut [[T; 2]]) {
    let s = &chunk.sequence;
    for (row, (weights, stats)) in weights.chunks_exact_mut(CHUNK).zip(stats).enumerate() {
        let seen = plan.keys(s, row / plan.group % s.lq);
        let at = |t: usize| t.clamp(chunk.start, chunk.end) - chunk.start;
        let (start, end) = (at(seen.start), at(seen.end));
        weights[..start].fill(T::NEG_INFINITY);
        weights[end.max(start)..].fill(T::NEG_INFINITY);
        if plan.weighting == Weighting::ReluSquared {
            relu_squared(weights);
            *stats = [T::ZERO, T::ONE];
            continue;
        }
        let mut tops = [T::NEG_INFINITY; LANES];
        for c in (0..CHUNK).step_by(LANES) {
            let w = lanes(weights, c);
            for l in 0..LANES {
                tops[l] = if w[l] > tops[l] { w[l] } else { tops[l] };
            }
        }
        let top = tops.into_iter().fold(T::NEG_INFINITY, Real::max);
        let base = if top == T::NEG_INFINITY { T::ZERO } else { top };
        let mut sums = [T::ZERO; LANES];
        for c in (0..CHUNK).step_by(LANES) {
            let mut w = lanes(weights, c);
            for l in 0..LANES {
                w[l] = Real::exp(w[l] - base);
                sums[l] += w[l];
            }
            weights[c..c + LANES].copy_from_slice(&w);
        }
        *stats = [top, sums.into_iter().sum()];
    }
}

/// Sums (rows, pv) of the values under the weights.
#[inline(always)]
fn gather<T: Real>(plan: &Plan, chunk: &Chunk, v: Heads<T>, weights: &[T], sums: &mut [T]) {
    let s = &chunk.sequence;
    let rows = s.lq * plan.group;
    for t in 0..chunk.end - chunk.start {
        for g in 0..plan.h / plan.group {
            let value = &v.keys(s, chunk.start + t, g)[..plan.pv];
            for row in g * rows..(g + 1) * rows {
                let w = weights[row * CHUNK + t];
                for (sum, &value) in sums[row * plan.pv..].iter_mut().zip(value) {
                    *sum = Real::mul_add(w, value, *sum);
                }
            }
        }
    }
}

/// Weighs the chunks of each sequence against each other.
#[inline(always)]
fn combine<T: Real>(plan: &Plan, chunks: &[Chunk], sums: &[T], stats: &[[T; 2]]) -> Vec<T> {
    let mut out = vec![T::ZERO; plan.b * plan.lq * plan.h * plan.pv];
    for chunks in chunks.chunk_by(|a, b| a.queries == b.queries) {
        let s = &chunks[0].sequence;
        for row in 0..s.lq * plan.h {
            let (g, i, j) = (row / (s.lq * plan.group), row / plan.group % s.lq, row % plan.group);
            let at = (plan.row(s, i, g) + j) * plan.pv;
            let out = &mut out[at..at + plan.pv];
            let stat = |c: &Chunk| stats[c.partial + row];
            let top = chunks.iter().map(|c| stat(c)[0]).fold(T::NEG_INFINITY, Real::max);
            let base = if top == T::NEG_INFINITY { T::ZERO } else { top };
            let share = |c: &Chunk| Real::exp(stat(c)[0] - base);
            let total: T = chunks.iter().map(|c| share(c) * stat(c)[1]).sum();
            if total == T::ZERO {
                continue;
            }
            for c in chunks {
                let weight = if plan.weighting == Weighting::Softmax { share(c) / total } else { T::ONE };
                let sums = &sums[(c.partial + row) * plan.pv..][..plan.pv];
                for (out, &sum) in out.iter_mut().zip(sums) {
                    *out = Real::mul_add(weight, sum, *out);
                }
            }
        }
    }
    out
}
