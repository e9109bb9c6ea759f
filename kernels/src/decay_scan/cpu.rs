//! The scan on the CPU: chunk by chunk, in matrix products.
//!
//! A task owns some heads over one sequence, and takes them one after the other in each chunk. In a chunk of tokens, with `E[i,j] = Π_{j<r≤i} exp g_r`, a vector over n:
//! ```text
//! A[i,j] = Σ_n q_i k_j E[i,j]               (c, c)   what the chunk's tokens say to each other
//! Y = (Q ⊙ E[·, start]) S + A V             (c, p)
//! S = diag(E[last, start]) S + (K ⊙ E[last, ·])ᵀ V
//! ```
//! With a bonus a reader i sees `E[i-1, ·]`, and itself through the bonus.
//!
//! Decays are running products of factors at most 1: nothing can overflow, factors of exactly 0 are nothing special, and
//! no rounding grows with the size of a logarithm. Only where the decay since the chunk's start is far from underflow is
//! `A` one product, with keys divided by it; elsewhere it is found pair by pair.

use super::args::Dims;
use super::views::Views;
use crate::host::{self, Disjoint};
use crate::parts;
use crate::simd::{Real, dot, vectorized};
use crate::tile;

/// Tokens of a chunk. Work within a chunk grows with it, and products with the state cost the same whatever it is.
pub(super) const CHUNK: usize = 16;

/// Decays from a chunk's start down to this, 2⁻⁶⁰, may be divided by: what they multiply stays within f32.
const DIVISIBLE: f64 = 8.7e-19;

/// Outputs (b, l, h, p) and final states (sequences, h, n, p).
pub(super) fn forward<T: Real>(v: &Views<T>, dims: &Dims) -> (Vec<T>, Vec<T>) {
    let mut y = host::zeros(dims.b * dims.l * dims.h * dims.p);
    let mut states = vec![T::ZERO; dims.segments.len() * dims.h * dims.n * dims.p];
    let (ys, all_states) = (Disjoint::new(&mut y), Disjoint::new(&mut states));
    let (sequences, size) = (dims.segments.len(), dims.n * dims.p);
    let together = parts::heads_together(sequences, dims.h);
    let groups = dims.h.div_ceil(together);
    host::parallel(sequences * groups, |i| {
        let (segment, first) = (i / groups, i % groups * together);
        let task = |head| Task { v, dims, segment, head };
        let tasks: Vec<_> = (first..dims.h.min(first + together)).map(task).collect();
        // SAFETY: this task alone holds these heads of this sequence.
        let states = unsafe { all_states.slice((segment * dims.h + first) * size, tasks.len() * size) };
        for (task, state) in tasks.iter().zip(states.chunks_exact_mut(size)) {
            task.load_state(v.state, state);
        }
        let (mut chunk, mut out) = (Chunk::new(dims.n), vec![T::ZERO; CHUNK * dims.p]);
        for (k, at) in task(first).chunks().enumerate() {
            let empty = k == 0 && v.state.is_none();
            for (task, state) in tasks.iter().zip(states.chunks_exact_mut(size)) {
                task.forward(at, (&mut chunk, &mut out), (state, empty), &ys);
            }
        }
    });
    (y, states)
}

/// One head over one sequence.
#[derive(Clone, Copy)]
pub(super) struct Task<'a, T> {
    pub(super) v: &'a Views<'a, T>,
    pub(super) dims: &'a Dims,
    pub(super) segment: usize,
    pub(super) head: usize,
}

impl<'a, T: Real> Task<'a, T> {
    /// Where this task's state lies among the states: start and length.
    pub(super) fn state_range(&self) -> (usize, usize) {
        let size = self.dims.n * self.dims.p;
        ((self.segment * self.dims.h + self.head) * size, size)
    }

    /// This task's state, or zeros.
    pub(super) fn load_state(&self, states: Option<&[T]>, out: &mut [T]) {
        let (at, len) = self.state_range();
        match states {
            Some(states) => out.copy_from_slice(&states[at..at + len]),
            None => out.fill(T::ZERO),
        }
    }

    /// The task's short chunks: first token and length.
    pub(super) fn chunks(
        &self,
    ) -> impl DoubleEndedIterator<Item = (usize, usize)> + ExactSizeIterator + use<T> {
        let segment = self.dims.segments[self.segment];
        let end = segment.start + segment.len;
        (0..segment.len.div_ceil(CHUNK)).map(move |k| {
            let start = segment.start + k * CHUNK;
            (start, CHUNK.min(end - start))
        })
    }

    /// Query and key of token `t`, (n) each.
    #[inline(always)]
    pub(super) fn query_key(&self, t: usize) -> (&'a [T], &'a [T]) {
        let (at, n) = (self.head * self.dims.n, self.dims.n);
        (&self.v.q.row(t)[at..at + n], &self.v.k.row(t)[at..at + n])
    }

    /// This head's bonus, (n).
    #[inline(always)]
    pub(super) fn bonus(&self) -> Option<&'a [T]> {
        let n = self.dims.n;
        self.v.bonus.map(|u| &u[self.head * n..][..n])
    }

    /// Values from token `t` on, and the distance between them.
    pub(super) fn values(&self, t: usize) -> (&'a [T], usize) {
        (self.v.v.tail(t, self.head * self.dims.p), self.v.v.stride())
    }

    /// Where token `t`'s numbers of this head start in a buffer (tokens, h, `width`).
    pub(super) fn at(&self, t: usize, width: usize) -> usize {
        (t * self.dims.h + self.head) * width
    }

    /// One chunk, with its scratch; the state, and whether it is zero still.
    fn forward(
        &self,
        (t, c): (usize, usize),
        (chunk, y): (&mut Chunk<T>, &mut [T]),
        (state, empty): (&mut [T], bool),
        out: &Disjoint<T>,
    ) {
        let (n, p) = (self.dims.n, self.dims.p);
        self.prefetch(t + c, out);
        chunk.find(self, (t, c));
        let (v, stride) = self.values(t);
        if !empty {
            tile::product((c, n, p), &chunk.queries, (n, 1), state, (p, 1), y, (p, 1), false);
        }
        tile::product((c, c, p), &chunk.scores, (CHUNK, 1), v, (stride, 1), y, (p, 1), !empty);
        for (i, y) in y.chunks_exact(p).take(c).enumerate() {
            // SAFETY: this task alone writes this head of this sequence.
            unsafe { out.slice(self.at(t + i, p), p) }.copy_from_slice(y);
        }
        chunk.advance(self, (t, c), state, empty);
    }

    /// Asks for the rows of the next chunk: the hardware does not foresee steps of a whole row.
    fn prefetch(&self, t: usize, out: &Disjoint<T>) {
        let (n, p) = (self.dims.n, self.dims.p);
        let (wide, narrow) = (self.head * n..(self.head + 1) * n, self.head * p..(self.head + 1) * p);
        for t in t..t + CHUNK {
            self.v.q.prefetch(t, wide.clone());
            self.v.k.prefetch(t, wide.clone());
            self.v.log_decay.prefetch(t, wide.clone());
            self.v.v.prefetch(t, narrow.clone());
            out.prefetch(self.at(t, p), p);
        }
    }
}

/// What the decays of a chunk make of its queries and keys; (CHUNK, n) each, rows of tokens, where not told otherwise.
pub(super) struct Chunk<T> {
    n: usize,
    /// Decay factors.
    pub(super) factors: Vec<T>,
    /// Decay from the chunk's start to each reader, and from each token to the chunk's end.
    pub(super) from_start: Vec<T>,
    pub(super) to_end: Vec<T>,
    /// Decay over the chunk, (n).
    pub(super) total: Vec<T>,
    /// Queries as they read the state before the chunk, keys as they enter the state after it.
    pub(super) queries: Vec<T>,
    keys: Vec<T>,
    /// Keys over the decay from the chunk's start.
    divided: Vec<T>,
    /// A, (CHUNK, CHUNK), zero above the diagonal.
    pub(super) scores: Vec<T>,
    /// (n)
    row: Vec<T>,
}

impl<T: Real> Chunk<T> {
    pub(super) fn new(n: usize) -> Self {
        let zeros = |len: usize| vec![T::ZERO; len];
        Self {
            n,
            factors: zeros(CHUNK * n),
            from_start: zeros(CHUNK * n),
            to_end: zeros(CHUNK * n),
            total: zeros(n),
            queries: zeros(CHUNK * n),
            keys: zeros(CHUNK * n),
            divided: zeros(CHUNK * n),
            scores: zeros(CHUNK * CHUNK),
            row: zeros(n),
        }
    }

    /// Decays, queries, keys and scores of the `c` tokens from `t` on.
    pub(super) fn find(&mut self, task: &Task<T>, (t, c): (usize, usize)) {
        self.find_decays(task, (t, c));
        let readers = self.divisible(c);
        if readers > 0 {
            let (n, a, b) = (self.n, &self.queries, &self.divided);
            tile::product((c, n, c), a, (n, 1), b, (1, n), &mut self.scores, (CHUNK, 1), false);
        }
        vectorized(
            #[inline(always)]
            || {
                self.pairs(task, t, readers..c);
                self.mask(task, (t, c));
            },
        );
    }

    /// Decays, queries and keys.
    pub(super) fn find_decays(&mut self, task: &Task<T>, at: (usize, usize)) {
        vectorized(
            #[inline(always)]
            || self.decays(task, at),
        );
    }

    /// The first tokens of the chunk whose decay from its start may be divided by. What is found for a reader then
    /// depends on nothing after it, to the last bit.
    fn divisible(&self, c: usize) -> usize {
        let enough = |decays: &[T]| decays.iter().all(|&w| w >= T::real(DIVISIBLE));
        if enough(&self.total) {
            return c;
        }
        let mut decays = vec![T::ONE; self.n];
        let mut steps = self.factors.chunks_exact(self.n).take(c);
        let last = steps.position(|factors| {
            decays.iter_mut().zip(factors).for_each(|(w, &factor)| *w *= factor);
            !enough(&decays)
        });
        last.unwrap_or(c)
    }

    #[inline(always)]
    fn decays(&mut self, task: &Task<T>, (t, c): (usize, usize)) {
        let n = self.n;
        let delayed = task.bonus().is_some();
        let total = &mut self.total[..n];
        total.fill(T::ONE);
        for i in 0..c {
            let log_decay = &task.v.log_decay.row(t + i)[task.head * n..][..n];
            let (q, k) = task.query_key(t + i);
            let (factors, divided) = (&mut self.factors[i * n..][..n], &mut self.divided[i * n..][..n]);
            let (from_start, queries) = (&mut self.from_start[i * n..][..n], &mut self.queries[i * n..][..n]);
            for x in 0..n {
                let (before, factor) = (total[x], Real::exp(log_decay[x]));
                factors[x] = factor;
                total[x] = before * factor;
                from_start[x] = if delayed { before } else { total[x] };
                queries[x] = q[x] * from_start[x];
                divided[x] = k[x] / total[x];
            }
        }
        let to_here = &mut self.row[..n];
        to_here.fill(T::ONE);
        for j in (0..c).rev() {
            let (_, k) = task.query_key(t + j);
            let factors = &self.factors[j * n..][..n];
            let (to_end, keys) = (&mut self.to_end[j * n..][..n], &mut self.keys[j * n..][..n]);
            for x in 0..n {
                to_end[x] = to_here[x];
                keys[x] = k[x] * to_here[x];
                to_here[x] *= factors[x];
            }
        }
    }

    /// These readers' scores below the diagonal, and on it without a bonus, one by one.
    #[inline(always)]
    fn pairs(&mut self, task: &Task<T>, t: usize, readers: std::ops::Range<usize>) {
        let n = self.n;
        let delayed = task.bonus().is_some();
        for i in readers {
            let (q, k) = task.query_key(t + i);
            let decayed = &mut self.row[..n];
            decayed.copy_from_slice(q);
            self.scores[i * CHUNK + i] = dot(decayed, k);
            for j in (0..i).rev() {
                // From j to i, with a bonus to i - 1: one factor less.
                if !(delayed && j + 1 == i) {
                    let factors = &self.factors[(j + 1) * n..][..n];
                    decayed.iter_mut().zip(factors).for_each(|(d, &w)| *d *= w);
                }
                let (_, k) = task.query_key(t + j);
                self.scores[i * CHUNK + j] = dot(decayed, k);
            }
        }
    }

    /// Zeros above the diagonal; with a bonus, its scores on it.
    #[inline(always)]
    fn mask(&mut self, task: &Task<T>, (t, c): (usize, usize)) {
        for i in 0..c {
            self.scores[i * CHUNK..][..c][i + 1..].fill(T::ZERO);
            if let Some(u) = task.bonus() {
                let (q, k) = task.query_key(t + i);
                let with_bonus = &mut self.row[..self.n];
                with_bonus.iter_mut().zip(q).zip(u).for_each(|((b, &q), &u)| *b = q * u);
                self.scores[i * CHUNK + i] = dot(with_bonus, k);
            }
        }
    }

    /// The state after the chunk; `empty` if it was zero before.
    pub(super) fn advance(&self, task: &Task<T>, (t, c): (usize, usize), state: &mut [T], empty: bool) {
        let (n, p) = (self.n, task.dims.p);
        if !empty {
            decay_rows(state, &self.total);
        }
        let (v, stride) = task.values(t);
        tile::product((n, c, p), &self.keys, (1, n), v, (stride, 1), state, (p, 1), !empty);
    }

    /// `out = K̃ G` (c, p): what the state's gradient `g` (n, p) gives to the values, added to `out`.
    pub(super) fn keys_times(&self, c: usize, g: &[T], p: usize, out: &mut [T]) {
        tile::product((c, self.n, p), &self.keys, (self.n, 1), g, (p, 1), out, (p, 1), true);
    }
}

/// Multiplies each row of `state` by its factor.
pub(super) fn decay_rows<T: Real>(state: &mut [T], factors: &[T]) {
    let p = state.len() / factors.len().max(1);
    vectorized(
        #[inline(always)]
        || {
            for (row, &w) in state.chunks_exact_mut(p.max(1)).zip(factors) {
                row.iter_mut().for_each(|s| *s *= w);
            }
        },
    );
}
