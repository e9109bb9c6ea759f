//! Forward by tiles, softmax online: one pass over the keys, nothing kept but the output and the log-sum-exp.

use super::super::Weighting;
use super::super::plan::Plan;
use super::buffer::Buffer;
use super::{Bias, Block, Heads, KEYS, LANES, block_tokens, cap_scores, lanes, widest, work};
use crate::host::{self, Disjoint};
use crate::simd::{Real, vectorized};

/// Output (b, lq, h, pv) and, where `keep`, the log-sum-exp of the scores (b, lq, h): +∞ for a query without keys.
pub(in super::super) fn forward<T: Real>(
    plan: &Plan,
    [q, k, v]: [Heads<T>; 3],
    bias: Option<&Bias<T>>,
    keep: bool,
) -> (Vec<T>, Vec<T>) {
    let tokens = block_tokens(plan);
    let mut blocks = Vec::new();
    for &sequence in &plan.sequences {
        for head in 0..plan.h / plan.group {
            for first in (0..sequence.lq).step_by(tokens) {
                blocks.push(Block { sequence, head, first, tokens: tokens.min(sequence.lq - first) });
            }
        }
    }
    // The longest first, so that no thread ends alone with one of them.
    blocks.sort_by_key(|b| std::cmp::Reverse(b.keys(plan).len()));
    let rows = plan.b * plan.lq * plan.h;
    let (mut out, mut lse) = (vec![T::ZERO; rows * plan.pv], vec![T::ZERO; if keep { rows } else { 0 }]);
    let (to_out, to_lse) = (Disjoint::new(&mut out), Disjoint::new(&mut lse));
    let scratch = || Scratch::new(plan, widest(plan, tokens));
    work(blocks.len(), scratch, |scratch, n| {
        let block = &blocks[n];
        scratch.attend(plan, block, [q, k, v], bias);
        for i in 0..block.tokens {
            let row = plan.row(&block.sequence, block.first + i, block.head);
            // SAFETY: a block owns the rows of its tokens and heads, and no two blocks share one.
            let out = unsafe { to_out.slice(row * plan.pv, plan.group * plan.pv) };
            scratch.write(plan, block, i, out);
            if keep {
                // SAFETY: as above.
                let lse = unsafe { to_lse.slice(row, plan.group) };
                for (lse, c) in lse.iter_mut().zip(i * plan.group..) {
                    *lse = scratch.log_sum_exp(c);
                }
            }
        }
    });
    (out, lse)
}

/// What one block needs; `m` padded columns.
struct Scratch<T> {
    q: Buffer<T>,      // (p, m), scaled
    scores: Buffer<T>, // (KEYS, m)
    out: Buffer<T>,    // (pv, m), relative to `top`
    top: Buffer<T>,    // (m) largest score so far
    base: Buffer<T>,   // (m) `top`, or 0 where there is no score yet
    fade: Buffer<T>,   // (m) factor of what was summed under the earlier top
    sum: Buffer<T>,    // (m)
}

impl<T: Real> Scratch<T> {
    fn new(plan: &Plan, m: usize) -> Self {
        Self {
            q: Buffer::new(plan.p * m),
            scores: Buffer::new(KEYS * m),
            out: Buffer::new(plan.pv * m),
            top: Buffer::new(m),
            base: Buffer::new(m),
            fade: Buffer::new(m),
            sum: Buffer::new(m),
        }
    }

    fn attend(&mut self, plan: &Plan, block: &Block, [q, k, v]: [Heads<T>; 3], bias: Option<&Bias<T>>) {
        let (_, m) = block.columns(plan);
        let (p, pv, s) = (plan.p, plan.pv, &block.sequence);
        q.pack_columns(plan, block, p, T::real(plan.scale), &mut self.q);
        self.out[..pv * m].fill(T::ZERO);
        self.top.fill(T::NEG_INFINITY);
        self.sum.fill(T::ZERO);
        let keys = block.keys(plan);
        for key in keys.clone().step_by(KEYS) {
            let n = KEYS.min(keys.end - key);
            let scores = &mut self.scores[..n * m];
            let k_tile = k.keys(s, key, block.head);
            host::gemm((n, p, m), k_tile, (k.token, 1), &self.q, (m, 1), scores, (m, 1), false);
            vectorized(
                #[inline(always)]
                || {
                    cap_scores(scores, plan.softcap);
                    if let Some(bias) = bias {
                        bias.add(plan, block, key, m, scores);
                    }
                },
            );
            block.mask(plan, key, m, scores, T::NEG_INFINITY);
            vectorized(
                #[inline(always)]
                || match plan.weighting {
                    Weighting::Softmax => self.online_softmax(n, m, pv),
                    Weighting::ReluSquared => relu_squared(&mut self.scores[..n * m]),
                },
            );
            let v_tile = v.keys(s, key, block.head);
            let (weights, out) = (&self.scores[..n * m], &mut self.out[..pv * m]);
            host::gemm((pv, n, m), v_tile, (1, v.token), weights, (m, 1), out, (m, 1), true);
        }
    }

    /// Scores to weights relative to the new top; what is summed so far, too.
    #[inline(always)]
    fn online_softmax(&mut self, n: usize, m: usize, pv: usize) {
        let mut moved = false;
        for c in (0..m).step_by(LANES) {
            let old = lanes(&self.top, c);
            let mut top = old;
            for row in self.scores[..n * m].chunks_exact(m) {
                let s = lanes(row, c);
                for l in 0..LANES {
                    top[l] = if s[l] > top[l] { s[l] } else { top[l] };
                }
            }
            let mut fade = [T::ONE; LANES];
            let mut base = top;
            for l in 0..LANES {
                base[l] = if top[l] == T::NEG_INFINITY { T::ZERO } else { top[l] };
                fade[l] = Real::exp(old[l] - base[l]);
                moved |= old[l] != top[l];
            }
            self.top[c..c + LANES].copy_from_slice(&top);
            self.base[c..c + LANES].copy_from_slice(&base);
            self.fade[c..c + LANES].copy_from_slice(&fade);
        }
        for c in (0..m).step_by(LANES) {
            let base = lanes(&self.base, c);
            let mut sum = [T::ZERO; LANES];
            for row in self.scores[..n * m].chunks_exact_mut(m) {
                let s = lanes(row, c);
                let mut w = [T::ZERO; LANES];
                for l in 0..LANES {
                    w[l] = Real::exp(s[l] - base[l]);
                    sum[l] += w[l];
                }
                row[c..c + LANES].copy_from_slice(&w);
            }
            for ((total, &fade), sum) in self.sum[c..c + LANES].iter_mut().zip(&self.fade[c..]).zip(sum) {
                *total = *total * fade + sum;
            }
        }
        if moved {
            for row in self.out[..pv * m].chunks_exact_mut(m) {
                for (o, &fade) in row.iter_mut().zip(&self.fade[..m]) {
                    *o *= fade;
                }
            }
        }
    }

    /// Token `i` of the block as (group, pv).
    fn write(&self, plan: &Plan, block: &Block, i: usize, out: &mut [T]) {
        let (_, m) = block.columns(plan);
        for (j, out) in out.chunks_exact_mut(plan.pv).enumerate() {
            let c = i * plan.group + j;
            let normalised = plan.weighting == Weighting::Softmax;
            let inverse = if !normalised {
                T::ONE
            } else if self.sum[c] == T::ZERO {
                T::ZERO
            } else {
                T::ONE / self.sum[c]
            };
            for (d, out) in out.iter_mut().enumerate() {
                *out = self.out[d * m + c] * inverse;
            }
        }
    }

    fn log_sum_exp(&self, c: usize) -> T {
        if self.sum[c] == T::ZERO {
            return -T::NEG_INFINITY;
        }
        self.top[c] + T::real(self.sum[c].to_f64().ln())
    }
}

/// Scores to weights without a norm.
#[inline(always)]
pub(super) fn relu_squared<T: Real>(scores: &mut [T]) {
    for s in scores {
        let r = if *s < T::ZERO { T::ZERO } else { *s }; // NaN stays
        *s = r * r;
    }
}
