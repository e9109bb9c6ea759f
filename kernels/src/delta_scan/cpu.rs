//! The scans on the CPU: chunk by chunk, in matrix products.
//!
//! A task owns some heads over one sequence, and takes them one after the other in each chunk of tokens. Inside a chunk
//! of q tokens let `E_t = Π_{1<s≤t} exp(g_s)`, the decay since the chunk's first token, and divide it out: with
//! `Ŝ_t = S_t / E_t`, `q̂ = E q`, `b̂ = b / E` and so on the recurrence has no
//! decay any more. What each token adds to the state is `b̂_t u_tᵀ + k̂_t v_tᵀ`, where `u_t = â_tᵀ Ŝ_{t-1}` reads what the
//! tokens before have added, a triangular system (the UT transform; Yang et al. 2024, section 3):
//! ```text
//! [Aab Aak]   [Â] [B̂]ᵀ
//! [Aqb Aqk] = [Q̂] [K̂]       (2q, 2q)   strictly lower above, lower below
//! U = (I - Aab)⁻¹ (Â S + Aak V)        (q, p)     forward substitution
//! Y = Q̂ S + Aqb U + Aqk V              (q, p)
//! S ← E_q ⊙ (S + B̂ᵀ U + K̂ᵀ V)          (n, p)
//! ```
//! The delta rule has b = k, and `β v` inside U instead of V: half the products. The decay of the chunk's first token is
//! applied to the state itself, and a chunk ends before its other decays multiply up to less than [`SMALLEST`]: nothing overflows,
//! whatever the decays, and steep ones cost shorter chunks.

use super::args::Dims;
use super::views::{RuleViews, Views};
use crate::host::{self, Disjoint};
use crate::parts;
use crate::segments::Segment;
use crate::simd::{Real, vectorized};
use crate::tile;

/// Most tokens of a chunk: with more, the products inside the chunk cost more than those with the state save.
pub(super) const MAX_CHUNK: usize = 32;

/// The smallest factor that is divided out; its inverse is the largest.
const SMALLEST: f64 = 4e-18;

/// Outputs (b, l, h, p) and final states (sequences, h, n, p).
pub(super) fn forward<T: Real>(v: &Views<T>, dims: &Dims) -> (Vec<T>, Vec<T>) {
    let mut y = host::zeros(dims.b * dims.l * dims.h * dims.p);
    let mut states = host::zeros(dims.segments.len() * dims.h * dims.n * dims.p);
    let (ys, all_states) = (Disjoint::new(&mut y), Disjoint::new(&mut states));
    let (sequences, size) = (dims.segments.len(), dims.n * dims.p);
    let together = parts::heads_together(sequences, dims.h);
    let groups = dims.h.div_ceil(together);
    host::parallel(sequences * groups, |i| {
        let (segment, first) = (i / groups, i % groups * together);
        let heads = together.min(dims.h - first);
        let task = |k: usize| Task { v, dims, segment, head: first + k };
        // SAFETY: this task alone holds these heads of this sequence.
        let states = unsafe { all_states.slice((segment * dims.h + first) * size, heads * size) };
        for (k, state) in states.chunks_exact_mut(size).enumerate() {
            task(k).load_state(v.state, state);
        }
        let mut chunk = Chunk::new(task(0));
        let Segment { start, len } = dims.segments[segment];
        // Heads whose decays cut their chunks short do not keep step.
        let mut done = vec![start; heads];
        for block in (start..start + len).step_by(MAX_CHUNK) {
            let until = (block + MAX_CHUNK).min(start + len);
            for (k, state) in states.chunks_exact_mut(size).enumerate() {
                chunk.task = task(k);
                while done[k] < until {
                    done[k] += chunk.forward((done[k], start + len - done[k]), state, &ys);
                }
            }
        }
    });
    (y, states)
}

/// One head over one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task<'a, T> {
    pub(super) v: &'a Views<'a, T>,
    pub(super) dims: &'a Dims,
    pub(super) segment: usize,
    pub(super) head: usize,
}

impl<'a, T: Real> Task<'a, T> {
    /// This task's state, or zeros.
    pub(super) fn load_state(&self, states: Option<&[T]>, out: &mut [T]) {
        let size = self.dims.n * self.dims.p;
        match states {
            Some(states) => {
                out.copy_from_slice(&states[(self.segment * self.dims.h + self.head) * size..][..size]);
            }
            None => out.fill(T::ZERO),
        }
    }

    /// Logarithms of a token's decays: n of them, or one for all.
    #[inline(always)]
    pub(super) fn log_decay(&self, t: usize) -> Option<&'a [T]> {
        let row = self.v.log_decay?.row(t);
        let width = row.len() / self.dims.h;
        Some(&row[self.head * width..][..width])
    }

    /// This head's key channels of a token.
    #[inline(always)]
    pub(super) fn keys(&self, rows: &host::Rows<'a, T>, t: usize) -> &'a [T] {
        &rows.row(t)[self.head * self.dims.n..][..self.dims.n]
    }

    /// This head's value channels of a token.
    #[inline(always)]
    pub(super) fn values(&self, t: usize) -> &'a [T] {
        &self.v.v.row(t)[self.head * self.dims.p..][..self.dims.p]
    }

    /// Asks the cache for a token's rows: the hardware does not foresee steps of a whole row of heads.
    #[inline(always)]
    fn prefetch(&self, t: usize) {
        let (&Dims { h, n, p, .. }, head) = (self.dims, self.head);
        let keys = head * n..(head + 1) * n;
        self.v.q.prefetch(t, keys.clone());
        self.v.k.prefetch(t, keys.clone());
        self.v.v.prefetch(t, head * p..(head + 1) * p);
        if let Some(g) = &self.v.log_decay {
            g.prefetch(t, if g.width > h { keys.clone() } else { head..head + 1 });
        }
        if let RuleViews::Plain { a, b } = &self.v.rule {
            a.prefetch(t, keys.clone());
            b.prefetch(t, keys);
        }
    }
}

/// A chunk at hand. Matrices of one chunk are dense, their rows one after the other.
pub(super) struct Chunk<'a, T> {
    pub(super) task: Task<'a, T>,
    /// Whether the rule has keys and values of its own beside b and u.
    pub(super) plain: bool,
    /// First token and length.
    pub(super) at: (usize, usize),
    /// The decay of the first token, (n).
    pub(super) first: Vec<T>,
    /// E, (q, n).
    pub(super) decays: Vec<T>,
    /// Â over Q̂, (2q, n). The first row of Â is zero where a reads the state before its decay: that is done apart.
    pub(super) readers: Vec<T>,
    /// B̂ over K̂, (s q, n), s being 2 with keys of their own, else 1.
    pub(super) sources: Vec<T>,
    /// U over V, (s q, p); U is what is injected (`β v`) until it is solved for.
    pub(super) values: Vec<T>,
    /// Aab, Aak over Aqb, Aqk: (2q, s q).
    pub(super) scores: Vec<T>,
    /// Â S over Y, (2q, p).
    pub(super) reads: Vec<T>,
}

impl<'a, T: Real> Chunk<'a, T> {
    pub(super) fn new(task: Task<'a, T>) -> Self {
        let Dims { n, p, .. } = *task.dims;
        let plain = matches!(task.v.rule, RuleViews::Plain { .. });
        let s = if plain { 2 } else { 1 };
        let zeros = |len: usize| vec![T::ZERO; len];
        Self {
            task,
            plain,
            at: (0, 0),
            first: zeros(n),
            decays: zeros(MAX_CHUNK * n),
            readers: zeros(2 * MAX_CHUNK * n),
            sources: zeros(s * MAX_CHUNK * n),
            values: zeros(s * MAX_CHUNK * p),
            scores: zeros(2 * s * MAX_CHUNK * MAX_CHUNK),
            reads: zeros(2 * MAX_CHUNK * p),
        }
    }

    /// Up to `most` tokens from `t` on, all of it; gives the number of tokens.
    fn forward(&mut self, (t, most): (usize, usize), state: &mut [T], ys: &Disjoint<T>) -> usize {
        let (h, p, head) = (self.task.dims.h, self.task.dims.p, self.task.head);
        let q = self.load(t, most);
        self.scores();
        self.read(state);
        self.solve();
        self.answer();
        self.advance(state);
        for (i, y) in self.reads[q * p..2 * q * p].chunks_exact(p).enumerate() {
            let at = |t: usize| (t * h + head) * p;
            ys.prefetch(at(t + q + i), p);
            // SAFETY: this task alone writes this head of this sequence.
            unsafe { ys.slice(at(t + i), p) }.copy_from_slice(y);
        }
        q
    }

    /// Rows of sources and values.
    pub(super) fn rows(&self) -> usize {
        if self.plain { 2 * self.at.1 } else { self.at.1 }
    }

    /// Fetches the tensors of up to `most` tokens from `t` on, decays divided out; gives the number of tokens.
    pub(super) fn load(&mut self, t: usize, most: usize) -> usize {
        self.at = (t, most.min(MAX_CHUNK));
        vectorized(
            #[inline(always)]
            || {
                self.at.1 = self.load_decays();
                match self.task.v.rule {
                    RuleViews::Plain { a, b } => self.load_plain(a, b),
                    RuleViews::Correct { beta } => self.load_correct(beta),
                }
            },
        );
        self.at.1
    }

    /// E, up to the token that would take it out of its bounds.
    #[inline(always)]
    fn load_decays(&mut self) -> usize {
        let (n, (t, most)) = (self.task.dims.n, self.at);
        self.first.fill(T::ONE);
        self.decays[..n].fill(T::ONE);
        if let Some(g) = self.task.log_decay(t) {
            multiply_exp(&mut self.first, None, g);
        }
        for i in 1..most {
            let (before, row) = self.decays.split_at_mut(i * n);
            let (before, row) = (&before[(i - 1) * n..], &mut row[..n]);
            match self.task.log_decay(t + i) {
                None => row.fill(T::ONE),
                Some(g) => multiply_exp(row, Some(before), g),
            }
            // Without an early end, in vectors; not a number is not inside either.
            let inside = |ok: bool, &e: &T| ok & (e >= T::real(SMALLEST)) & (e <= T::real(1.0 / SMALLEST));
            if !row.iter().fold(true, inside) {
                return i;
            }
        }
        most
    }

    /// Row `i` of Q̂.
    #[inline(always)]
    fn load_query(&mut self, i: usize) {
        let (n, (t, q), scale) = (self.task.dims.n, self.at, self.task.v.scale);
        let query = self.task.keys(&self.task.v.q, t + i);
        let decays = &self.decays[i * n..][..n];
        for ((out, &x), &e) in self.readers[(q + i) * n..][..n].iter_mut().zip(query).zip(decays) {
            *out = scale * x * e;
        }
    }

    #[inline(always)]
    fn load_plain(&mut self, a: host::Rows<'a, T>, b: host::Rows<'a, T>) {
        let Dims { n, p, .. } = *self.task.dims;
        let (task, (t, q)) = (self.task, self.at);
        self.readers[..n].fill(T::ZERO);
        self.values[..q * p].fill(T::ZERO);
        for i in 0..q {
            task.prefetch(t + q + i);
            self.load_query(i);
            let (a, b) = (task.keys(&a, t + i), task.keys(&b, t + i));
            if i > 0 {
                let before = &self.decays[(i - 1) * n..][..n];
                for ((out, &a), &e) in self.readers[i * n..][..n].iter_mut().zip(a).zip(before) {
                    *out = a * e;
                }
            }
            let (decays, k) = (&self.decays[i * n..][..n], task.keys(&task.v.k, t + i));
            let (bs, ks) = self.sources.split_at_mut(q * n);
            let outs = bs[i * n..][..n].iter_mut().zip(&mut ks[i * n..][..n]);
            for (((out, &b), &k), &e) in outs.zip(b).zip(k).zip(decays) {
                let inverse = T::ONE / e;
                *out.0 = b * inverse;
                *out.1 = k * inverse;
            }
            self.values[(q + i) * p..][..p].copy_from_slice(task.values(t + i));
        }
    }

    #[inline(always)]
    fn load_correct(&mut self, beta: host::Rows<'a, T>) {
        let Dims { n, p, .. } = *self.task.dims;
        let (task, (t, q)) = (self.task, self.at);
        for i in 0..q {
            task.prefetch(t + q + i);
            self.load_query(i);
            let (k, beta) = (task.keys(&task.v.k, t + i), beta.row(t + i)[task.head]);
            let decays = &self.decays[i * n..][..n];
            let outs = self.readers[i * n..][..n].iter_mut().zip(&mut self.sources[i * n..][..n]);
            for ((out, &k), &e) in outs.zip(k).zip(decays) {
                *out.0 = -beta * k * e;
                *out.1 = k / e;
            }
            for (out, &v) in self.values[i * p..][..p].iter_mut().zip(task.values(t + i)) {
                *out = beta * v;
            }
        }
    }

    /// All four products of readers and sources, the future cut off.
    pub(super) fn scores(&mut self) {
        let (n, q, rows) = (self.task.dims.n, self.at.1, self.rows());
        let scores = &mut self.scores;
        tile::product(
            (2 * q, n, rows),
            &self.readers,
            (n, 1),
            &self.sources,
            (1, n),
            scores,
            (rows, 1),
            false,
        );
        cut(scores, q, rows, 1);
    }

    /// Reads the state before the chunk, and applies the first token's decay to it.
    pub(super) fn read(&mut self, state: &mut [T]) {
        let Dims { n, p, .. } = *self.task.dims;
        let (t, q) = self.at;
        vectorized(
            #[inline(always)]
            || {
                if let RuleViews::Plain { a, .. } = self.task.v.rule {
                    for (s, &a) in state.chunks_exact(p).zip(self.task.keys(&a, t)) {
                        self.values[..p].iter_mut().zip(s).for_each(|(u, &s)| *u = a.mul_add(s, *u));
                    }
                }
                scale_rows(state, &self.first, self.task.log_decay(t).is_some());
            },
        );
        tile::product((2 * q, n, p), &self.readers, (n, 1), state, (p, 1), &mut self.reads, (p, 1), false);
    }

    /// U, by forward substitution.
    pub(super) fn solve(&mut self) {
        let (p, (_, q), rows) = (self.task.dims.p, self.at, self.rows());
        let (us, vs) = self.values.split_at_mut(q * p);
        if self.plain {
            tile::product((q, q, p), &self.scores[q..], (rows, 1), vs, (p, 1), us, (p, 1), true);
        }
        vectorized(
            #[inline(always)]
            || {
                for i in 0..q {
                    let (known, rest) = us.split_at_mut(i * p);
                    let row = &mut rest[..p];
                    row.iter_mut().zip(&self.reads[i * p..]).for_each(|(u, &r)| *u += r);
                    add_rows(row, known, |j| self.scores[i * rows + j]);
                }
            },
        );
    }

    /// The lower half of the reads becomes Y.
    fn answer(&mut self) {
        let (p, (_, q), rows) = (self.task.dims.p, self.at, self.rows());
        let (scores, y) = (&self.scores[q * rows..], &mut self.reads[q * p..]);
        tile::product((q, rows, p), scores, (rows, 1), &self.values, (p, 1), y, (p, 1), true);
    }

    /// The state after the chunk, from the one that [`Chunk::read`] left.
    pub(super) fn advance(&mut self, state: &mut [T]) {
        let Dims { n, p, .. } = *self.task.dims;
        let ((t, q), rows) = (self.at, self.rows());
        tile::product((n, rows, p), &self.sources, (1, n), &self.values, (p, 1), state, (p, 1), true);
        let decays = &self.decays[(q - 1) * n..][..n];
        vectorized(
            #[inline(always)]
            || scale_rows(state, decays, self.task.log_decay(t).is_some()),
        );
    }
}

/// `out = before · exp(g)`, `before` being 1 and `g` one for all where absent and single.
#[inline(always)]
fn multiply_exp<T: Real>(out: &mut [T], before: Option<&[T]>, g: &[T]) {
    match g {
        [one] => {
            let factor = Real::exp(*one);
            match before {
                None => out.fill(factor),
                Some(before) => out.iter_mut().zip(before).for_each(|(o, &e)| *o = e * factor),
            }
        }
        _ => {
            in_lanes(out, g, |_, g| Real::exp(g));
            if let Some(before) = before {
                out.iter_mut().zip(before).for_each(|(o, &e)| *o *= e);
            }
        }
    }
}

/// `out = f(out, x)` in whole vectors: of longer functions the compiler by itself makes short ones.
#[inline(always)]
fn in_lanes<T: Real>(out: &mut [T], x: &[T], f: impl Fn(T, T) -> T) {
    let ((outs, rest), (xs, x_rest)) = (out.as_chunks_mut::<16>(), x.as_chunks::<16>());
    for (out, x) in outs.iter_mut().zip(xs) {
        for i in 0..16 {
            out[i] = f(out[i], x[i]);
        }
    }
    rest.iter_mut().zip(x_rest).for_each(|(o, &x)| *o = f(*o, x));
}

/// Zeros what a reader may not see: of the upper half (2q, rows) of `m` the present and the future, of the lower half
/// all from `ahead` tokens on.
pub(super) fn cut<T: Real>(m: &mut [T], q: usize, rows: usize, ahead: usize) {
    for i in 0..q {
        for block in (0..rows).step_by(q) {
            m[i * rows + block..][i..q].fill(T::ZERO);
            m[(q + i) * rows + block..][(i + ahead).min(q)..q].fill(T::ZERO);
        }
    }
}

/// Multiplies each row of `m` by its factor, where there is one.
#[inline(always)]
pub(super) fn scale_rows<T: Real>(m: &mut [T], factors: &[T], any: bool) {
    if any {
        let width = m.len() / factors.len();
        for (row, &factor) in m.chunks_exact_mut(width).zip(factors) {
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// `out += Σ_j weight(j) rows[j]`, four rows at a time.
#[inline(always)]
pub(super) fn add_rows<T: Real>(out: &mut [T], rows: &[T], weight: impl Fn(usize) -> T) {
    let p = out.len();
    let mut fours = rows.chunks_exact(4 * p);
    let mut j = 0;
    for four in &mut fours {
        let (w, [a, b, c, d]) =
            ([0, 1, 2, 3].map(|k| weight(j + k)), [0, 1, 2, 3].map(|k| &four[k * p..][..p]));
        for i in 0..p {
            let (low, high) = (w[0].mul_add(a[i], w[1] * b[i]), w[2].mul_add(c[i], w[3] * d[i]));
            out[i] += low + high;
        }
        j += 4;
    }
    for row in fours.remainder().chunks_exact(p) {
        let w = weight(j);
        out.iter_mut().zip(row).for_each(|(o, &x)| *o = w.mul_add(x, *o));
        j += 1;
    }
}
