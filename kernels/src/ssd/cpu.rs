//! The scan on the CPU: chunk by chunk, in matrix products.
//!
//! A task owns some heads of one group over one sequence. In a chunk of q tokens, with `L[i,j] = Π_{j<k≤i} decay_k`:
//! ```text
//! S = C Bᵀ                     (q, q)         once for all heads of the task
//! Y = decay_to ⊙ (C Hᵀ)        (q, heads p)   what the state before the chunk says; one product for all heads
//!   + (S ∘ L Δ) X              (q, p)         what the chunk's tokens say to each other, head by head
//! H = decay ⊙ H + (w ⊙ X)ᵀ B   (heads p, n)   w_j = L[last, j] Δ_j; one product for all heads
//! ```
//! Decays are running products of factors `exp(Δ A)`: never differences of cumulative sums, whose rounding grows with
//! the sums, and never an exponential that could overflow.

use super::args::Dims;
use super::views::{Steps, Views};
use crate::host::{self, Disjoint};
use crate::parts::{Part, parts};
use crate::simd::{Real, vectorized};
use crate::tile;

/// Most tokens of a chunk: beyond it the products inside the chunk cost more than those with the state save.
pub(super) const MAX_CHUNK: usize = 64;

/// Outputs (b, l, h, p) and final states (sequences, h, p, n).
pub(super) fn forward<T: Real>(v: &Views<T>, dims: &Dims, chunk: usize) -> (Vec<T>, Vec<T>) {
    let mut y = host::zeros(dims.b * dims.l * dims.h * dims.p);
    let mut states = vec![T::ZERO; dims.segments.len() * dims.h * dims.p * dims.n];
    let (ys, all_states) = (Disjoint::new(&mut y), Disjoint::new(&mut states));
    let steps = Steps::new(v, dims.b * dims.l, dims.h);
    let (tasks, _) = parts(dims.segments.len(), dims.g, dims.h / dims.g, 1);
    host::parallel(tasks.len(), |i| {
        let task = Task { v, dims, steps: &steps, part: tasks[i] };
        let (at, len) = task.state_range();
        // SAFETY: this task alone holds these heads of this sequence.
        let state = unsafe { all_states.slice(at, len) };
        task.load_state(v.state, state);
        Forward::new(task, chunk).run(state, &ys);
    });
    (y, states)
}

/// Rows of a matrix, and the distance between them.
type Strided<'a, T> = (&'a [T], usize);

/// Some heads of one group over one sequence.
#[derive(Clone, Copy)]
pub(super) struct Task<'a, T> {
    pub(super) v: &'a Views<'a, T>,
    pub(super) dims: &'a Dims,
    pub(super) steps: &'a Steps<T>,
    pub(super) part: Part,
}

impl<T: Real> Task<'_, T> {
    /// Channels: heads times head dimension.
    pub(super) fn width(&self) -> usize {
        self.part.len * self.dims.p
    }

    /// Where this task's part of the states lies: start and length.
    pub(super) fn state_range(&self) -> (usize, usize) {
        let size = self.dims.p * self.dims.n;
        ((self.part.segment * self.dims.h + self.part.start) * size, self.part.len * size)
    }

    /// This task's part of the states, or zeros.
    pub(super) fn load_state(&self, states: Option<&[T]>, out: &mut [T]) {
        let (at, len) = self.state_range();
        match states {
            Some(states) => out.copy_from_slice(&states[at..at + len]),
            None => out.fill(T::ZERO),
        }
    }

    /// The task's chunks of at most `chunk` tokens: first token and length.
    pub(super) fn chunks(
        &self,
        chunk: usize,
    ) -> impl DoubleEndedIterator<Item = (usize, usize)> + ExactSizeIterator + use<T> {
        let segment = self.dims.segments[self.part.segment];
        let end = segment.start + segment.len;
        (0..segment.len.div_ceil(chunk)).map(move |k| {
            let start = segment.start + k * chunk;
            (start, chunk.min(end - start))
        })
    }

    /// (Δ, decay) of one token and head.
    #[inline(always)]
    pub(super) fn step(&self, t: usize, head: usize) -> (T, T) {
        let at = t * self.dims.h + head;
        (self.steps.dt[at], self.steps.decay[at])
    }

    /// `out = C Bᵀ` for the `q` tokens from `t` on, rows `stride` apart.
    pub(super) fn scores(&self, (t, q): (usize, usize), out: &mut [T], stride: usize) {
        let n = self.dims.n;
        let (b, c) = self.maps(t);
        tile::product((q, n, q), c.0, (c.1, 1), b.0, (1, b.1), out, (stride, 1), false);
    }

    /// B and C of this group from token `t` on, each with the distance between its rows.
    pub(super) fn maps(&self, t: usize) -> (Strided<'_, T>, Strided<'_, T>) {
        let at = self.part.group * self.dims.n;
        let (b, c) = (&self.v.b, &self.v.c);
        ((b.tail(t, at), b.stride()), (c.tail(t, at), c.stride()))
    }

    /// `state = decay ⊙ state + weightedᵀ B`: one head's decay over the chunk is `decays[head]`.
    pub(super) fn advance(&self, (t, q): (usize, usize), weighted: &[T], decays: &[T], state: &mut [T]) {
        let (n, width) = (self.dims.n, self.width());
        let (b, _) = self.maps(t);
        vectorized(
            #[inline(always)]
            || scale_heads(state, decays),
        );
        tile::product((width, q, n), weighted, (1, width), b.0, (b.1, 1), state, (n, 1), true);
    }

    /// One head's inputs weighted for the state after the chunk: `L[last, j] Δ_j x_j`; gives the decay over the chunk.
    #[inline(always)]
    pub(super) fn weigh(&self, (t, q): (usize, usize), k: usize, weighted: &mut [T]) -> T {
        let (p, width, head) = (self.dims.p, self.width(), self.part.start + k);
        let mut decay = T::ONE;
        for j in (0..q).rev() {
            let (dt, factor) = self.step(t + j, head);
            let x = &self.v.x.row(t + j)[head * p..][..p];
            let weight = decay * dt;
            for (out, &x) in weighted[j * width + k * p..][..p].iter_mut().zip(x) {
                *out = weight * x;
            }
            decay *= factor;
        }
        decay
    }
}

/// Multiplies each head's equal share of `state` by its factor.
#[inline(always)]
pub(super) fn scale_heads<T: Real>(state: &mut [T], factors: &[T]) {
    let size = state.len() / factors.len().max(1);
    for (state, &factor) in state.chunks_exact_mut(size.max(1)).zip(factors) {
        state.iter_mut().for_each(|h| *h *= factor);
    }
}

/// The forward pass of one task, and its scratch.
struct Forward<'a, T> {
    task: Task<'a, T>,
    chunk: usize,
    /// S, and S ∘ L Δ of the head at hand, (chunk, chunk).
    scores: Vec<T>,
    mixed: Vec<T>,
    /// (chunk, heads p)
    y: Vec<T>,
    weighted: Vec<T>,
    /// A row of L Δ.
    decays: Vec<T>,
    /// Each head's decay over the chunk.
    totals: Vec<T>,
}

impl<'a, T: Real> Forward<'a, T> {
    fn new(task: Task<'a, T>, chunk: usize) -> Self {
        let zeros = |len: usize| vec![T::ZERO; len];
        Self {
            task,
            chunk,
            scores: zeros(chunk * chunk),
            mixed: zeros(chunk * chunk),
            y: zeros(chunk * task.width()),
            weighted: zeros(chunk * task.width()),
            decays: zeros(chunk),
            totals: zeros(task.part.len),
        }
    }

    fn run(mut self, state: &mut [T], y: &Disjoint<T>) {
        let mut empty = self.task.v.state.is_none();
        for (t, q) in self.task.chunks(self.chunk) {
            self.prefetch(t + q, y);
            self.task.scores((t, q), &mut self.scores, self.chunk);
            if !empty {
                self.read_state((t, q), state);
            }
            for k in 0..self.task.part.len {
                vectorized(
                    #[inline(always)]
                    || self.mix((t, q), k, empty),
                );
                self.inside((t, q), k, empty);
            }
            self.task.advance((t, q), &self.weighted, &self.totals, state);
            vectorized(
                #[inline(always)]
                || self.finish((t, q), y),
            );
            empty = false;
        }
    }

    /// Asks for the rows of the next chunk: the hardware does not foresee steps of a whole row.
    fn prefetch(&self, t: usize, y: &Disjoint<T>) {
        let (task, width) = (self.task, self.task.width());
        let first = task.part.start * task.dims.p;
        for t in t..t + self.chunk {
            task.v.x.prefetch(t, first..first + width);
            if let Some(z) = &task.v.z {
                z.prefetch(t, first..first + width);
            }
            y.prefetch(t * task.dims.h * task.dims.p + first, width);
        }
    }

    /// `Y = C Hᵀ`, decays still to come.
    fn read_state(&mut self, (t, q): (usize, usize), state: &[T]) {
        let (n, width) = (self.task.dims.n, self.task.width());
        let (_, c) = self.task.maps(t);
        tile::product((q, n, width), c.0, (c.1, 1), state, (1, n), &mut self.y, (width, 1), false);
    }

    /// Head `k`'s mixing matrix and weighted inputs; decays what [`Forward::read_state`] found.
    #[inline(always)]
    fn mix(&mut self, (t, q): (usize, usize), k: usize, empty: bool) {
        let (task, p, width) = (self.task, self.task.dims.p, self.task.width());
        let mut from_start = T::ONE;
        for i in 0..q {
            let (dt, decay) = task.step(t + i, task.part.start + k);
            self.decays[..i].iter_mut().for_each(|l| *l *= decay);
            self.decays[i] = dt;
            from_start *= decay;
            let row = &mut self.mixed[i * self.chunk..][..q];
            let (row, later) = row.split_at_mut(i + 1);
            for ((m, &s), &l) in row.iter_mut().zip(&self.scores[i * self.chunk..]).zip(&self.decays) {
                *m = s * l;
            }
            later.fill(T::ZERO);
            if !empty {
                self.y[i * width + k * p..][..p].iter_mut().for_each(|y| *y *= from_start);
            }
        }
        self.totals[k] = task.weigh((t, q), k, &mut self.weighted);
    }

    /// `Y += (S ∘ L Δ) X` of head `k`.
    fn inside(&mut self, (t, q): (usize, usize), k: usize, empty: bool) {
        let (task, p, width) = (self.task, self.task.dims.p, self.task.width());
        let x = task.v.x.tail(t, (task.part.start + k) * p);
        let stride = task.v.x.stride();
        let y = &mut self.y[k * p..];
        tile::product((q, q, p), &self.mixed, (self.chunk, 1), x, (stride, 1), y, (width, 1), !empty);
    }

    /// Skip and gate, and out.
    #[inline(always)]
    fn finish(&mut self, (t, q): (usize, usize), out: &Disjoint<T>) {
        let (task, p, width) = (self.task, self.task.dims.p, self.task.width());
        let (h, first) = (task.dims.h, task.part.start);
        for i in 0..q {
            let row = &mut self.y[i * width..][..width];
            for (k, y) in row.chunks_exact_mut(p).enumerate() {
                task.v.add_skip(task.dims, t + i, first + k, y);
            }
            if let Some(z) = task.v.z {
                let z = &z.row(t + i)[first * p..][..width];
                row.iter_mut().zip(z).for_each(|(y, z)| *y *= z.silu());
            }
            // SAFETY: this task alone writes these heads of this sequence.
            let out = unsafe { out.slice(((t + i) * h + first) * p, width) };
            out.copy_from_slice(row);
        }
    }
}
