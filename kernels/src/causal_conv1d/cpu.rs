//! The convolution on slices: threads over blocks of tokens, vectors over channels.
//!
//! A task takes some tokens of one sequence and goes through them in blocks of channels, small enough for the k input
//! rows and the taps to stay in the first-level cache. Weights are turned to (k, d) first, so that every access runs
//! along channels. In backward a task recomputes the activations of its tokens and of the k-1 after them; its share of
//! the weight gradient goes to a partial of its own, and partials are added in order, whatever the threads did.

use crate::host::{self, Disjoint};
use crate::segments::Segment;
use crate::simd::{Real, vectorized};

use super::Problem;

/// Tokens of a task, forward and backward.
const TOKENS: (usize, usize) = (32, 64);
/// Channels of a block.
const CHANNELS: usize = 512;

/// A (b, l, d) tensor whose rows lie apart.
pub(super) struct Rows<'a, T> {
    pub(super) data: &'a [T],
    pub(super) batch_stride: usize,
    pub(super) row_stride: usize,
}

/// The inputs of a call as slices.
pub(super) struct Conv<'a, T> {
    p: &'a Problem,
    silu: bool,
    x: Rows<'a, T>,
    /// (k, d)
    taps: Vec<T>,
    /// (d)
    bias: Vec<T>,
    /// (sequences, k-1, d); none: zeros.
    past: Option<Vec<T>>,
    /// A row of d zeros.
    zeros: Vec<T>,
}

/// Gradients of x (b, l, d), weight (d, k), bias (d) and initial state (sequences, d, k-1).
pub(super) struct Grads<T> {
    pub(super) x: Vec<T>,
    pub(super) weight: Vec<T>,
    pub(super) bias: Vec<T>,
    pub(super) initial: Option<Vec<T>>,
}

/// Tokens `start..end` of sequence `n`.
struct Block {
    n: usize,
    start: usize,
    end: usize,
}

impl<'a, T: Real> Conv<'a, T> {
    pub(super) fn new(
        p: &'a Problem,
        silu: bool,
        x: Rows<'a, T>,
        weight: &[T],
        bias: Option<&[T]>,
        initial: Option<&[T]>,
    ) -> Self {
        let zeros = vec![T::ZERO; p.d];
        let past = initial
            .map(|s| s.chunks((p.d * (p.k - 1)).max(1)).flat_map(|s| transposed(s, p.d, p.k - 1)).collect());
        let taps = transposed(weight, p.d, p.k);
        Self { p, silu, x, taps, bias: bias.unwrap_or(&zeros).to_vec(), past, zeros }
    }

    /// y (b, l, d) and the final state (sequences, d, k-1).
    pub(super) fn forward(&self) -> (Vec<T>, Vec<T>) {
        let Problem { b, l, d, ref segments, .. } = *self.p;
        let mut y = vec![T::ZERO; b * l * d];
        let blocks = blocks(segments, TOKENS.0);
        let out = Disjoint::new(&mut y);
        shared(blocks.len(), b * l * d, |i| {
            let block = &blocks[i];
            let first = segments[block.n].start + block.start;
            // SAFETY: blocks are separate ranges of tokens.
            let y = unsafe { out.slice(first * d, (block.end - block.start) * d) };
            vectorized(
                #[inline(always)]
                || self.forward_block(block, y),
            );
        });
        (y, self.final_state())
    }

    #[inline(always)]
    fn forward_block(&self, block: &Block, y: &mut [T]) {
        for c in (0..self.p.d).step_by(CHANNELS) {
            let n = CHANNELS.min(self.p.d - c);
            for (t, y) in (block.start..).zip(y.chunks_exact_mut(self.p.d)) {
                let y = &mut y[c..c + n];
                self.linear(block.n, t, c, y);
                if self.silu {
                    y.iter_mut().for_each(|y| *y = y.silu());
                }
            }
        }
    }

    /// The convolution at token t of sequence n, before the activation, for the channels from c on.
    #[inline(always)]
    fn linear(&self, n: usize, t: usize, c: usize, y: &mut [T]) {
        let len = y.len();
        y.copy_from_slice(&self.bias[c..c + len]);
        let row = |j| &self.padded(n, t + j)[c..c + len];
        add_weighted(self.p.k, |j| self.tap(j, c, len), row, y);
    }

    #[inline(always)]
    fn tap(&self, j: usize, c: usize, len: usize) -> &[T] {
        &self.taps[j * self.p.d + c..][..len]
    }

    /// Row i of a sequence with its k-1 inputs from before.
    #[inline(always)]
    fn padded(&self, n: usize, i: usize) -> &[T] {
        let Problem { l, d, k, ref segments, .. } = *self.p;
        if i + 1 >= k {
            let token = segments[n].start + i + 1 - k;
            &self.x.data[token / l * self.x.batch_stride + token % l * self.x.row_stride..][..d]
        } else if let Some(past) = &self.past {
            &past[(n * (k - 1) + i) * d..][..d]
        } else {
            &self.zeros
        }
    }

    fn final_state(&self) -> Vec<T> {
        let Problem { d, k, ref segments, .. } = *self.p;
        let old = k - 1;
        let mut state = vec![T::ZERO; segments.len() * d * old];
        for (n, state) in state.chunks_mut((d * old).max(1)).enumerate() {
            for i in 0..old {
                let row = self.padded(n, segments[n].len + i);
                state[i..].iter_mut().step_by(old).zip(row).for_each(|(s, x)| *s = *x);
            }
        }
        state
    }

    /// Gradients from those of y (b, l, d) and of the final state.
    pub(super) fn backward(&self, dy: &[T], dfinal: Option<&[T]>) -> Grads<T> {
        let Problem { b, l, d, k, ref segments, .. } = *self.p;
        let mut dx = vec![T::ZERO; b * l * d];
        let blocks = blocks(segments, TOKENS.1);
        let mut partials = vec![T::ZERO; blocks.len() * (k + 1) * d];
        let (dxs, parts) = (Disjoint::new(&mut dx), Disjoint::new(&mut partials));
        shared(blocks.len(), b * l * d, |i| {
            let block = &blocks[i];
            let first = segments[block.n].start + block.start;
            // SAFETY: blocks are separate ranges of tokens, and each has its own partial.
            let (dx, part) = unsafe {
                (
                    dxs.slice(first * d, (block.end - block.start) * d),
                    parts.slice(i * (k + 1) * d, (k + 1) * d),
                )
            };
            vectorized(
                #[inline(always)]
                || self.backward_block(block, dy, dx, part),
            );
        });
        let sums = added(&partials, (k + 1) * d);
        let initial = self.backward_states(dy, dfinal, &mut dx);
        Grads { x: dx, weight: transposed(&sums[..k * d], k, d), bias: sums[k * d..].to_vec(), initial }
    }

    /// dx of the block's tokens, and their share of the gradients of taps and bias, (k + 1, d).
    #[inline(always)]
    fn backward_block(&self, block: &Block, dy: &[T], dx: &mut [T], part: &mut [T]) {
        let Problem { d, k, ref segments, .. } = *self.p;
        let Segment { start, len } = segments[block.n];
        let tokens = block.end - block.start;
        let mut scratch = vec![T::ZERO; (tokens + k - 1) * CHANNELS.min(d)];
        for c in (0..d).step_by(CHANNELS) {
            let n = CHANNELS.min(d - c);
            for (t, g) in (block.start..).zip(scratch.chunks_exact_mut(n).take(tokens + k - 1)) {
                if t < len {
                    self.linear_grad(block.n, t, c, &dy[(start + t) * d + c..][..n], g);
                } else {
                    g.fill(T::ZERO);
                }
            }
            for t in 0..tokens {
                let row = |j| &scratch[(t + k - 1 - j) * n..][..n];
                add_weighted(k, |j| self.tap(j, c, n), row, &mut dx[t * d + c..][..n]);
                let x = |j| &self.padded(block.n, block.start + t + j)[c..c + n];
                add_products(k, row(k - 1), x, &mut part[..k * d], (c, d));
                let sum = &mut part[k * d + c..][..n];
                sum.iter_mut().zip(row(k - 1)).for_each(|(s, g)| *s += *g);
            }
        }
    }

    /// Gradient before the activation.
    #[inline(always)]
    fn linear_grad(&self, n: usize, t: usize, c: usize, dy: &[T], g: &mut [T]) {
        if self.silu {
            self.linear(n, t, c, g);
            g.iter_mut().zip(dy).for_each(|(g, dy)| *g = *dy * g.silu_grad());
        } else {
            g.copy_from_slice(dy);
        }
    }

    /// What passes through the states: adds the final state's gradient to `dx`, gives the initial state's.
    fn backward_states(&self, dy: &[T], dfinal: Option<&[T]>, dx: &mut [T]) -> Option<Vec<T>> {
        let Problem { d, k, ref segments, .. } = *self.p;
        let old = k - 1;
        let mut initial = self.past.as_ref().map(|p| vec![T::ZERO; p.len()]);
        let mut g = vec![T::ZERO; d];
        for (n, s) in segments.iter().enumerate() {
            if let Some(initial) = &mut initial {
                let initial = &mut initial[n * old * d..][..old * d];
                for t in 0..s.len.min(old) {
                    self.linear_grad(n, t, 0, &dy[(s.start + t) * d..][..d], &mut g);
                    for i in t..old {
                        let tap = self.tap(i - t, 0, d);
                        let pairs = g.iter().zip(tap).enumerate();
                        pairs.for_each(|(c, (g, w))| initial[c * old + i] += *g * *w);
                    }
                }
            }
            let Some(dfinal) = dfinal else { continue };
            let dfinal = &dfinal[n * old * d..][..old * d];
            for i in 0..old {
                let from = dfinal[i..].iter().step_by(old);
                if s.len + i >= old {
                    let row = &mut dx[(s.start + s.len + i - old) * d..][..d];
                    row.iter_mut().zip(from).for_each(|(dx, f)| *dx += *f);
                } else if let Some(initial) = &mut initial {
                    let row = initial[n * old * d + s.len + i..].iter_mut().step_by(old);
                    row.zip(from).for_each(|(dx, f)| *dx += *f);
                }
            }
        }
        initial
    }
}

/// Tasks over the threads, unless the values in all are too few to be worth waking one.
fn shared(tasks: usize, values: usize, f: impl Fn(usize) + Send + Sync) {
    if values < 1 << 15 { (0..tasks).for_each(f) } else { host::parallel(tasks, f) }
}

/// Every sequence in pieces of at most this many tokens.
fn blocks(segments: &[Segment], tokens: usize) -> Vec<Block> {
    let pieces = |(n, s): (usize, &Segment)| {
        let len = s.len;
        (0..len).step_by(tokens).map(move |start| Block { n, start, end: len.min(start + tokens) })
    };
    segments.iter().enumerate().flat_map(pieces).collect()
}

/// `out += Σ_j tap(j) ⊙ row(j)`
#[inline(always)]
fn add_weighted<'a, T: Real>(
    k: usize,
    tap: impl Fn(usize) -> &'a [T],
    row: impl Fn(usize) -> &'a [T],
    out: &mut [T],
) {
    let mut from = 0;
    while from < k {
        match k - from {
            1 => add_taps::<T, 1>([tap(from)], [row(from)], out),
            2 => add_taps::<T, 2>([0, 1].map(|j| tap(from + j)), [0, 1].map(|j| row(from + j)), out),
            3 => add_taps::<T, 3>([0, 1, 2].map(|j| tap(from + j)), [0, 1, 2].map(|j| row(from + j)), out),
            _ => add_taps::<T, 4>(
                [0, 1, 2, 3].map(|j| tap(from + j)),
                [0, 1, 2, 3].map(|j| row(from + j)),
                out,
            ),
        }
        from += 4;
    }
}

#[inline(always)]
fn add_taps<T: Real, const K: usize>(taps: [&[T]; K], rows: [&[T]; K], out: &mut [T]) {
    let n = out.len();
    let (taps, rows) = (taps.map(|t| &t[..n]), rows.map(|r| &r[..n]));
    for c in 0..n {
        let mut acc = out[c];
        for j in 0..K {
            acc = rows[j][c].mul_add(taps[j][c], acc);
        }
        out[c] = acc;
    }
}

/// `sums[j, c..] += g ⊙ row(j)` for each tap j, sums being (k, d).
#[inline(always)]
fn add_products<'a, T: Real>(
    k: usize,
    g: &[T],
    row: impl Fn(usize) -> &'a [T],
    sums: &mut [T],
    (c, d): (usize, usize),
) {
    let n = g.len();
    let mut taps = sums.chunks_exact_mut(d).map(|s| &mut s[c..c + n]);
    let mut j = 0;
    while k - j >= 4
        && let (Some(a), Some(b), Some(e), Some(f)) = (taps.next(), taps.next(), taps.next(), taps.next())
    {
        let rows = [row(j), row(j + 1), row(j + 2), row(j + 3)].map(|r| &r[..n]);
        for i in 0..n {
            a[i] = g[i].mul_add(rows[0][i], a[i]);
            b[i] = g[i].mul_add(rows[1][i], b[i]);
            e[i] = g[i].mul_add(rows[2][i], e[i]);
            f[i] = g[i].mul_add(rows[3][i], f[i]);
        }
        j += 4;
    }
    for sum in taps {
        sum.iter_mut().zip(g).zip(row(j)).for_each(|((s, g), x)| *s = g.mul_add(*x, *s));
        j += 1;
    }
}

/// (rows, columns) -> (columns, rows)
fn transposed<T: Real>(a: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| a[r * columns + c])).collect()
}

/// Sum of the pieces of `n` values, added in order.
fn added<T: Real>(pieces: &[T], n: usize) -> Vec<T> {
    let mut sums = vec![T::ZERO; n];
    let out = Disjoint::new(&mut sums);
    shared(n.div_ceil(CHANNELS), pieces.len(), |i| {
        let (c, len) = (i * CHANNELS, CHANNELS.min(n - i * CHANNELS));
        // SAFETY: tasks own separate ranges.
        let sums = unsafe { out.slice(c, len) };
        for piece in pieces.chunks_exact(n) {
            sums.iter_mut().zip(&piece[c..]).for_each(|(s, p)| *s += *p);
        }
    });
    sums
}
