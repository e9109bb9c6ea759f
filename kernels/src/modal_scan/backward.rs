//! Gradients of the scan: states are kept every few tokens and computed again in between, then the adjoint state
//! `λ_{t-1} = Āᴴ λ_t` runs backwards.

use super::Views;
use super::args::{Dims, Sizes};
use super::block::{Block, Lanes, Pair, W, add_scaled, alone, lanes, read, zero};
use crate::host::{self, Disjoint};
use crate::segments::Segment;
use crate::simd::{Real, vectorized};

/// Tokens between kept states: their states fit the second-level cache.
const TILE: usize = 16;

/// Gradients of a bank, as its tensors are.
pub(super) struct SystemGrads {
    pub(super) poles: Vec<f64>,
    pub(super) input: Vec<f64>,
    pub(super) output: Vec<f64>,
    pub(super) left: Vec<f64>,
    pub(super) right: Vec<f64>,
    pub(super) skip: Vec<f64>,
}

/// Gradients of everything.
pub(super) struct Grads<T> {
    pub(super) u: Vec<T>,
    pub(super) state: Vec<T>,
    pub(super) system: SystemGrads,
}

/// From those of the outputs (b l, c, d) and of the final states (sequences, d, n, 2), where there are any.
pub(super) fn gradients<T: Real>(
    v: &Views<T>,
    dims: &Dims,
    dy: Option<&[T]>,
    d_state: Option<&[T]>,
) -> Grads<T> {
    let Sizes { d, n, .. } = dims.sizes;
    let count = dims.segments.len();
    let blocks: Vec<Block<T>> =
        (0..d).step_by(W).map(|first| Block::new(&v.system, dims.sizes, first)).collect();
    // A task takes a block through a few sequences, whose sums it keeps.
    let groups = (4 * host::threads()).div_ceil(blocks.len().max(1)).min(count).max(1);
    let share = count.div_ceil(groups);
    let (mut du, mut dh) = (host::zeros(dims.b * dims.l * d), host::zeros(count * d * n * 2));
    let mut sums: Vec<Option<Block<T>>> = (0..groups * blocks.len()).map(|_| None).collect();
    let (du_out, dh_out, sums_out) =
        (Disjoint::new(&mut du), Disjoint::new(&mut dh), Disjoint::new(&mut sums));
    host::parallel(groups * blocks.len(), |i| {
        let (group, block) = (i / blocks.len(), &blocks[i % blocks.len()]);
        let mut task = Task::new(v, dims, block, dy, &du_out);
        for k in (group * share).min(count)..((group + 1) * share).min(count) {
            let [initial, last] = [v.state, d_state].map(|s| s.map(|s| &s[k * d * n * 2..][..d * n * 2]));
            // SAFETY: each task has its own channels, and its own sequences.
            let dh = unsafe { dh_out.slice((k * d + block.first) * n * 2, block.len * n * 2) };
            vectorized(
                #[inline(always)]
                || task.sequence(dims.segments[k], initial, last, dh),
            );
        }
        // SAFETY: each task has its own slot.
        let slot = unsafe { sums_out.slice(i, 1) };
        slot[0] = Some(task.sums);
    });
    Grads { u: du, state: dh, system: total(&sums, dims.sizes) }
}

/// A block of channels and what it collects.
struct Task<'a, T> {
    v: &'a Views<'a, T>,
    block: &'a Block<T>,
    dy: Option<&'a [T]>,
    du: &'a Disjoint<T>,
    sums: Block<T>,
    /// States before each token of a tile and after the last, (TILE + 1, n).
    states: Vec<Pair<T>>,
    /// `2 Re Qᵀ h` before each token of a tile, (TILE, r).
    corrections: Vec<Lanes<T>>,
    /// The adjoint state, (n).
    adjoint: Vec<Pair<T>>,
}

impl<'a, T: Real> Task<'a, T> {
    fn new(
        v: &'a Views<'a, T>,
        dims: &Dims,
        block: &'a Block<T>,
        dy: Option<&'a [T]>,
        du: &'a Disjoint<T>,
    ) -> Self {
        let Sizes { n, rank, .. } = dims.sizes;
        Self {
            v,
            block,
            dy,
            du,
            sums: Block::zeros(dims.sizes, block.first, block.len),
            states: vec![zero(); (TILE + 1) * n],
            corrections: vec![[T::ZERO; W]; TILE * rank],
            adjoint: vec![zero(); n],
        }
    }

    #[inline(always)]
    fn sequence(&mut self, segment: Segment, initial: Option<&[T]>, last: Option<&[T]>, dh: &mut [T]) {
        let Sizes { n, .. } = self.block.sizes;
        let tiles = segment.len.div_ceil(TILE);
        let mut kept = vec![zero(); tiles.max(1) * n];
        self.block.load_state(initial, &mut kept[..n]);
        for tile in 1..tiles {
            let (before, after) = kept.split_at_mut(tile * n);
            self.advance_tile(&before[(tile - 1) * n..], segment.start + (tile - 1) * TILE, TILE);
            after[..n].copy_from_slice(&self.states[TILE * n..]);
        }
        self.block.load_state(last, &mut self.adjoint);
        for tile in (0..tiles).rev() {
            let start = tile * TILE;
            let len = TILE.min(segment.len - start);
            self.advance_tile(&kept[tile * n..][..n], segment.start + start, len);
            for t in (0..len).rev() {
                self.token(segment.start + start + t, t);
            }
        }
        self.block.store_state(&self.adjoint, dh);
    }

    /// The states of `len` tokens from `start` on, from `h` before them.
    #[inline(always)]
    fn advance_tile(&mut self, h: &[Pair<T>], start: usize, len: usize) {
        let Sizes { n, rank, .. } = self.block.sizes;
        self.states[..n].copy_from_slice(&h[..n]);
        for t in 0..len {
            let u = self.block.load(self.v.u.row(start + t));
            let (before, after) = self.states.split_at_mut((t + 1) * n);
            let (h, next) = (&before[t * n..], &mut after[..n]);
            self.block.advance(h, next, &u);
            self.block.correct(h, next, &mut self.corrections[t * rank..][..rank]);
        }
    }

    /// Token `row` of the batch, the `t`-th of its tile: collects gradients, and takes the adjoint state past it.
    #[inline(always)]
    fn token(&mut self, row: usize, t: usize) {
        let Sizes { d, n, c, rank, .. } = self.block.sizes;
        let (block, sums) = (self.block, &mut self.sums);
        let u = block.load(self.v.u.row(row));
        let (h, after) = self.states[t * n..].split_at(n);
        let after = &after[..n];
        let mut du = [T::ZERO; W];
        for k in 0..c {
            let Some(dy) = self.dy.map(|dy| block.load(&dy[(row * c + k) * d..][..d])) else { break };
            let (skip, sum) = (block.skip[k], sums.skip[k]);
            du = lanes(|j| Real::mul_add(skip[j], dy[j], du[j]));
            sums.skip[k] = lanes(|j| Real::mul_add(dy[j], u[j], sum[j]));
            let weights = &block.output[k * n..][..n];
            add_scaled(&mut self.adjoint, weights, &dy);
            add_scaled(&mut sums.output[k * n..][..n], after, &dy);
        }
        let through = read(&block.input, &self.adjoint);
        du.iter_mut().zip(through).for_each(|(du, t)| *du += t);
        // The correction's gradient, before the adjoint state moves on.
        let mut dg = [[T::ZERO; W]; super::args::MAX_RANK];
        for (k, dg) in dg.iter_mut().enumerate().take(rank) {
            let g = self.corrections[t * rank + k];
            *dg = read(&block.left[k * n..][..n], &self.adjoint).map(|s| -s);
            add_scaled(&mut sums.left[k * n..][..n], &self.adjoint, &g.map(|g| -g));
        }
        back(block, sums, &mut self.adjoint, h, &u);
        for (k, dg) in dg.iter().enumerate().take(rank) {
            add_scaled(&mut self.adjoint, &block.right[k * n..][..n], dg);
            add_scaled(&mut sums.right[k * n..][..n], h, dg);
        }
        // SAFETY: this task's own channels of its own sequence's token.
        let out = unsafe { self.du.slice(row * d + block.first, block.len) };
        out.copy_from_slice(&du[..block.len]);
    }
}

/// Gradients of poles and input map, and `λ ← Λᴴ λ`.
#[inline(always)]
fn back<T: Real>(
    block: &Block<T>,
    sums: &mut Block<T>,
    adjoint: &mut [Pair<T>],
    h: &[Pair<T>],
    u: &Lanes<T>,
) {
    let grads = sums.poles.iter_mut().zip(&mut sums.input);
    for (((lambda, h), a), (da, db)) in adjoint.iter_mut().zip(h).zip(&block.poles).zip(grads) {
        let ([re, im], [hr, hi], [ar, ai]) = (*lambda, *alone(h), *a);
        let ([dar, dai], [dbr, dbi]) = (*da, *db);
        *da = [
            lanes(|j| dar[j] + Real::mul_add(re[j], hr[j], im[j] * hi[j])),
            lanes(|j| dai[j] + Real::mul_add(im[j], hr[j], -(re[j] * hi[j]))),
        ];
        *db = [lanes(|j| Real::mul_add(re[j], u[j], dbr[j])), lanes(|j| Real::mul_add(im[j], u[j], dbi[j]))];
        *lambda = [
            lanes(|j| re[j] + Real::mul_add(ar[j], re[j], ai[j] * im[j])),
            lanes(|j| im[j] + Real::mul_add(ar[j], im[j], -(ai[j] * re[j]))),
        ];
    }
}

/// The sums of all tasks, in their order, as gradients of the bank's tensors.
fn total<T: Real>(sums: &[Option<Block<T>>], sizes: Sizes) -> SystemGrads {
    let Sizes { d, p, n, c, rank } = sizes;
    let mut grads = SystemGrads {
        poles: vec![0.0; p * n * 2],
        input: vec![0.0; p * n * 2],
        output: vec![0.0; c * p * n * 2],
        left: vec![0.0; rank * p * n * 2],
        right: vec![0.0; rank * p * n * 2],
        skip: vec![0.0; c * p],
    };
    for block in sums.iter().flatten() {
        let system = |lane: usize| (block.first + lane) / (d / p);
        let add = |out: &mut [f64], rows: &[Pair<T>], scale: [f64; 2]| {
            for (i, mode) in rows.iter().enumerate() {
                for (lane, (re, im)) in mode[0].iter().zip(&mode[1]).enumerate().take(block.len) {
                    let at = (((i / n) * p + system(lane)) * n + i % n) * 2;
                    out[at] += scale[0] * re.to_f64();
                    out[at + 1] += scale[1] * im.to_f64();
                }
            }
        };
        add(&mut grads.poles, &block.poles, [1.0; 2]);
        add(&mut grads.input, &block.input, [1.0; 2]);
        add(&mut grads.output, &block.output, [2.0, -2.0]);
        add(&mut grads.left, &block.left, [1.0; 2]);
        add(&mut grads.right, &block.right, [2.0, -2.0]);
        for (k, lanes) in block.skip.iter().enumerate() {
            for (lane, s) in lanes[..block.len].iter().enumerate() {
                grads.skip[k * p + system(lane)] += s.to_f64();
            }
        }
    }
    grads
}
