//! Backward by tiles: the weights are computed again from the scores and the saved log-sum-exp.
//!
//! ```text
//! P  = exp(s - lse)           dP = dO Vᵀ           D = Σ_d dO ∘ O
//! dS = P ∘ (dP - D) ∘ (1 - (s/cap)²)
//! dV = Pᵀ dO                  dK = scale · dSᵀ Q   dQ = scale · dS K
//! ```
//! A task takes some query blocks of one key head, owns their dQ, and sums dK and dV in memory of its own. Where tasks
//! share a key head, their sums are added in a fixed order.

use std::sync::{Mutex, PoisonError};

use super::super::Weighting;
use super::super::plan::{Plan, Sequence};
use super::bias::{fold, gather};
use super::buffer::Buffer;
use super::{Bias, Block, Heads, KEYS, block_tokens, cap_scores, widest, work};
use crate::host::{self, Disjoint};
use crate::simd::{Real, vectorized};

/// Most tasks that share a key head: each has its own dK and dV.
const PARTS: usize = 16;

/// What the backward pass reads.
#[derive(Clone, Copy)]
pub(in super::super) struct Saved<'a, T> {
    pub(in super::super) q: Heads<'a, T>,
    pub(in super::super) k: Heads<'a, T>,
    pub(in super::super) v: Heads<'a, T>,
    /// Output and its gradient (b, lq, h, pv).
    pub(in super::super) o: Heads<'a, T>,
    pub(in super::super) d_o: Heads<'a, T>,
    /// (b, lq, h)
    pub(in super::super) lse: &'a [T],
}

/// dQ (b, lq, h, p), dK and dV as (rows, positions, h_kv, ..) like k and v, and the gradient of the bias (h, distances).
pub(in super::super) fn backward<T: Real>(
    plan: &Plan,
    saved: Saved<T>,
    bias: Option<&Bias<T>>,
    (rows, positions): (usize, usize),
    distances: usize,
) -> [Vec<T>; 4] {
    let tokens = block_tokens(plan);
    let tasks = tasks(plan, tokens);
    let h_kv = plan.h / plan.group;
    let mut dq = vec![T::ZERO; plan.b * plan.lq * plan.h * plan.p];
    let mut dk = vec![T::ZERO; rows * positions * h_kv * plan.p];
    let mut dv = vec![T::ZERO; rows * positions * h_kv * plan.pv];
    let size = bias.map_or(0, |bias| bias.head(plan, 0).len());
    // One a task: the sums of a key head over all sequences are added in order afterwards.
    let mut d_bias = vec![T::ZERO; tasks.len() * size];
    let (to_dq, to_bias) = (Disjoint::new(&mut dq), Disjoint::new(&mut d_bias));
    let target = Target { dk: Disjoint::new(&mut dk), dv: Disjoint::new(&mut dv), positions, h_kv };
    let shares: Vec<Share<T>> = tasks.iter().map(|_| Mutex::new(None)).collect();
    let scratch = || Scratch::new(plan, widest(plan, tokens));
    work(tasks.len(), scratch, |scratch, n| {
        let task = &tasks[n];
        // SAFETY: each task has a piece of its own.
        let d_bias = unsafe { to_bias.slice(n * size, size) };
        let bias = bias.map(|bias| (bias, d_bias));
        let sums = scratch.run(plan, task, tokens, saved, bias, &to_dq);
        if task.parts == 1 {
            target.write(plan, task, &[sums]);
        } else {
            *shares[n].lock().unwrap_or_else(PoisonError::into_inner) = Some(sums);
        }
    });
    let shared: Vec<usize> = (0..tasks.len()).filter(|&n| tasks[n].parts > 1 && tasks[n].part == 0).collect();
    host::parallel(shared.len(), |i| {
        let n = shared[i];
        let take = |share: &Share<T>| share.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sums: Vec<Sums<T>> = shares[n..n + tasks[n].parts].iter().filter_map(take).collect();
        target.write(plan, &tasks[n], &sums);
    });
    let mut sums = vec![T::ZERO; if size > 0 { h_kv * size } else { 0 }];
    for (task, part) in tasks.iter().zip(d_bias.chunks_exact(size.max(1))) {
        add(&mut sums[task.head * size..(task.head + 1) * size], part);
    }
    [dq, dk, dv, fold(plan, &sums, distances)]
}

/// The query blocks `part`, `part + parts`, ... of one key head of one sequence: under causality as long as any other
/// part's.
#[derive(Debug, Clone, Copy)]
struct Task {
    sequence: Sequence,
    head: usize,
    part: usize,
    parts: usize,
}

fn tasks(plan: &Plan, tokens: usize) -> Vec<Task> {
    let h_kv = plan.h / plan.group;
    let pairs = plan.sequences.iter().filter(|s| s.lq > 0 && s.lk > 0).count() * h_kv;
    let wanted = (2 * host::threads()).div_ceil(pairs.max(1)).min(PARTS);
    let mut tasks = Vec::new();
    for &sequence in plan.sequences.iter().filter(|s| s.lq > 0 && s.lk > 0) {
        let parts = wanted.min(sequence.lq.div_ceil(tokens));
        for head in 0..h_kv {
            tasks.extend((0..parts).map(|part| Task { sequence, head, part, parts }));
        }
    }
    tasks
}

/// dK (lk, p) and dV (lk, pv) of one key head of one sequence.
struct Sums<T> {
    dk: Vec<T>,
    dv: Vec<T>,
}

type Share<T> = Mutex<Option<Sums<T>>>;

/// Where the gradients of keys and values go.
struct Target<T> {
    dk: Disjoint<T>,
    dv: Disjoint<T>,
    positions: usize,
    h_kv: usize,
}

impl<T: Real> Target<T> {
    /// Adds the sums of all parts up, in order.
    fn write(&self, plan: &Plan, task: &Task, sums: &[Sums<T>]) {
        let s = &task.sequence;
        for t in 0..s.lk {
            let at = (s.k_row * self.positions + s.k_start + t) * self.h_kv + task.head;
            // SAFETY: each key position of each head belongs to one sequence, which writes it once.
            let dk = unsafe { self.dk.slice(at * plan.p, plan.p) };
            // SAFETY: as above.
            let dv = unsafe { self.dv.slice(at * plan.pv, plan.pv) };
            for part in sums {
                add(dk, &part.dk[t * plan.p..]);
                add(dv, &part.dv[t * plan.pv..]);
            }
        }
    }
}

#[inline(always)]
fn add<T: Real>(to: &mut [T], from: &[T]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// What one block needs; `m` padded columns.
struct Scratch<T> {
    q: Buffer<T>,        // (p, m), scaled
    q_rows: Buffer<T>,   // (used, p), scaled
    d_o: Buffer<T>,      // (pv, m)
    d_o_rows: Buffer<T>, // (used, pv)
    dq: Buffer<T>,       // (p, m)
    weights: Buffer<T>,  // (KEYS, m): scores, then P
    slopes: Buffer<T>,   // (KEYS, m): dP, then dS
    lse: Buffer<T>,      // (m)
    dot: Buffer<T>,      // (m): D
}

impl<T: Real> Scratch<T> {
    fn new(plan: &Plan, m: usize) -> Self {
        Self {
            q: Buffer::new(plan.p * m),
            q_rows: Buffer::new(m * plan.p),
            d_o: Buffer::new(plan.pv * m),
            d_o_rows: Buffer::new(m * plan.pv),
            dq: Buffer::new(plan.p * m),
            weights: Buffer::new(KEYS * m),
            slopes: Buffer::new(KEYS * m),
            lse: Buffer::new(m),
            dot: Buffer::new(m),
        }
    }

    fn run(
        &mut self,
        plan: &Plan,
        task: &Task,
        tokens: usize,
        saved: Saved<T>,
        mut bias: Option<(&Bias<T>, &mut [T])>,
        dq: &Disjoint<T>,
    ) -> Sums<T> {
        let Task { sequence, head, .. } = *task;
        let mut sums =
            Sums { dk: vec![T::ZERO; sequence.lk * plan.p], dv: vec![T::ZERO; sequence.lk * plan.pv] };
        for first in (task.part * tokens..sequence.lq).step_by(task.parts * tokens) {
            let block = Block { sequence, head, first, tokens: tokens.min(sequence.lq - first) };
            self.load(plan, &block, saved);
            let keys = block.keys(plan);
            for key in keys.clone().step_by(KEYS) {
                let n = KEYS.min(keys.end - key);
                let bias = bias.as_mut().map(|(bias, sums)| (*bias, &mut **sums));
                self.tile(plan, &block, saved, bias, (key, n), &mut sums);
            }
            for i in 0..block.tokens {
                let row = plan.row(&sequence, first + i, head);
                // SAFETY: a block owns the rows of its tokens and heads, and no two blocks share one.
                let dq = unsafe { dq.slice(row * plan.p, plan.group * plan.p) };
                self.write_dq(plan, &block, i, dq);
            }
        }
        sums
    }

    fn load(&mut self, plan: &Plan, block: &Block, saved: Saved<T>) {
        let (_, m) = block.columns(plan);
        let scale = T::real(plan.scale);
        saved.q.pack_columns(plan, block, plan.p, scale, &mut self.q);
        saved.q.pack_rows(plan, block, plan.p, scale, &mut self.q_rows);
        saved.d_o.pack_columns(plan, block, plan.pv, T::ONE, &mut self.d_o);
        saved.d_o.pack_rows(plan, block, plan.pv, T::ONE, &mut self.d_o_rows);
        self.dq[..plan.p * m].fill(T::ZERO);
        self.lse.fill(T::ZERO);
        self.dot.fill(T::ZERO);
        for i in 0..block.tokens {
            let row = plan.row(&block.sequence, block.first + i, block.head);
            for j in 0..plan.group {
                let c = i * plan.group + j;
                let s = &block.sequence;
                let o = saved.o.at(s.q_row, s.q_start + block.first + i, block.head * plan.group + j);
                let d_o = &self.d_o_rows[c * plan.pv..(c + 1) * plan.pv];
                self.dot[c] = d_o.iter().zip(o).map(|(&g, &o)| g * o).sum();
                self.lse[c] = saved.lse[row + j];
            }
        }
    }

    fn tile(
        &mut self,
        plan: &Plan,
        block: &Block,
        saved: Saved<T>,
        bias: Option<(&Bias<T>, &mut [T])>,
        (key, n): (usize, usize),
        sums: &mut Sums<T>,
    ) {
        let (used, m) = block.columns(plan);
        let (p, pv, s) = (plan.p, plan.pv, &block.sequence);
        let (k, v) = (saved.k.keys(s, key, block.head), saved.v.keys(s, key, block.head));
        let (k_step, v_step) = (saved.k.token, saved.v.token);
        let (weights, slopes) = (&mut self.weights[..n * m], &mut self.slopes[..n * m]);
        host::gemm((n, p, m), k, (k_step, 1), &self.q, (m, 1), weights, (m, 1), false);
        host::gemm((n, pv, m), v, (v_step, 1), &self.d_o, (m, 1), slopes, (m, 1), false);
        vectorized(
            #[inline(always)]
            || {
                cap_scores(weights, plan.softcap);
                if let Some((bias, _)) = &bias {
                    bias.add(plan, block, key, m, weights);
                }
                match plan.weighting {
                    Weighting::Softmax => {
                        softmax_slopes(weights, slopes, &self.lse[..m], &self.dot[..m], plan.softcap);
                    }
                    Weighting::ReluSquared => relu_slopes(weights, slopes, plan.softcap),
                }
            },
        );
        block.mask(plan, key, m, weights, T::ZERO);
        block.mask(plan, key, m, slopes, T::ZERO);
        if let Some((_, sums)) = bias {
            vectorized(
                #[inline(always)]
                || gather(plan, block, key, m, slopes, sums),
            );
        }
        let (dk, dv) = (&mut sums.dk[key * p..], &mut sums.dv[key * pv..]);
        host::gemm((n, used, pv), weights, (m, 1), &self.d_o_rows, (pv, 1), dv, (pv, 1), true);
        host::gemm((n, used, p), slopes, (m, 1), &self.q_rows, (p, 1), dk, (p, 1), true);
        host::gemm((p, n, m), k, (1, k_step), slopes, (m, 1), &mut self.dq[..p * m], (m, 1), true);
    }

    fn write_dq(&self, plan: &Plan, block: &Block, i: usize, out: &mut [T]) {
        let (_, m) = block.columns(plan);
        let scale = T::real(plan.scale);
        for (j, out) in out.chunks_exact_mut(plan.p).enumerate() {
            let c = i * plan.group + j;
            for (d, out) in out.iter_mut().enumerate() {
                *out = self.dq[d * m + c] * scale;
            }
        }
    }
}

/// Scores and dP to P and dS.
#[inline(always)]
fn softmax_slopes<T: Real>(weights: &mut [T], slopes: &mut [T], lse: &[T], dot: &[T], cap: Option<f64>) {
    let inverse = cap.map_or(T::ZERO, |cap| T::real(1.0 / cap));
    let m = lse.len();
    for (weights, slopes) in weights.chunks_exact_mut(m).zip(slopes.chunks_exact_mut(m)) {
        for (((w, ds), &lse), &dot) in weights.iter_mut().zip(slopes).zip(lse).zip(dot) {
            let flat = *w * inverse;
            *w = Real::exp(*w - lse);
            *ds = *w * (*ds - dot) * (T::ONE - flat * flat);
        }
    }
}

/// Scores and dP to P = relu(s)² and dS = 2 relu(s) dP.
#[inline(always)]
fn relu_slopes<T: Real>(weights: &mut [T], slopes: &mut [T], cap: Option<f64>) {
    let inverse = cap.map_or(T::ZERO, |cap| T::real(1.0 / cap));
    for (w, ds) in weights.iter_mut().zip(slopes) {
        let flat = *w * inverse;
        let r = if *w < T::ZERO { T::ZERO } else { *w };
        *w = r * r;
        *ds = (r + r) * *ds * (T::ONE - flat * flat);
    }
}
