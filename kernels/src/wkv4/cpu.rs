//! The average on the CPU: sequential in time, threads over sequences and channels, channels in vector lanes.

use super::EMPTY;
use super::args::Dims;
use super::views::Views;
use crate::host::{self, Disjoint};
use crate::parts::{Part, parts};
use crate::simd::{Real, lanes, put, vectorized};

/// Channels side by side.
pub(super) const LANES: usize = 32;

/// Tokens between asking for a row and using it.
const AHEAD: usize = 4;

type Lanes<T> = [T; LANES];

/// Numerator, denominator and maximum of some channels.
#[derive(Clone, Copy)]
pub(super) struct State<T> {
    pub(super) a: Lanes<T>,
    pub(super) b: Lanes<T>,
    pub(super) max: Lanes<T>,
}

/// Up to [`LANES`] channels of one sequence; lanes past the last channel come to nothing.
pub(super) struct Block<'a, T> {
    v: &'a Views<'a, T>,
    pub(super) first: usize,
    pub(super) len: usize,
    pub(super) w: Lanes<T>,
    pub(super) u: Lanes<T>,
}

impl<'a, T: Real> Block<'a, T> {
    #[inline(always)]
    pub(super) fn new(v: &'a Views<'a, T>, first: usize, len: usize) -> Self {
        let part = |values: &[T]| lanes(&values[first..first + len]);
        Self { v, first, len, w: part(v.w), u: part(v.u) }
    }

    #[inline(always)]
    pub(super) fn part(&self, row: &[T]) -> Lanes<T> {
        lanes(&row[self.first..self.first + self.len])
    }

    /// Key and value of token `t`; asks for those of a later one.
    #[inline(always)]
    pub(super) fn token(&self, t: usize) -> (Lanes<T>, Lanes<T>) {
        let at = self.first..self.first + self.len;
        self.v.k.prefetch(t + AHEAD, at.clone());
        self.v.v.prefetch(t + AHEAD, at);
        (self.part(self.v.k.row(t)), self.part(self.v.v.row(t)))
    }

    /// The state before the first token of this sequence.
    #[inline(always)]
    pub(super) fn start(&self, sequence: usize, c: usize) -> State<T> {
        match self.v.state {
            Some(state) => self.load(&state[3 * sequence * c..][..3 * c], c),
            None => State { a: [T::ZERO; LANES], b: [T::ZERO; LANES], max: [T::real(EMPTY); LANES] },
        }
    }

    /// This block's part of one sequence's (3, c).
    #[inline(always)]
    pub(super) fn load(&self, state: &[T], c: usize) -> State<T> {
        State { a: self.part(state), b: self.part(&state[c..]), max: self.part(&state[2 * c..]) }
    }

    /// Writes this block's part of one sequence's state.
    #[inline(always)]
    pub(super) fn store(&self, state: &State<T>, to: &Disjoint<T>, sequence: usize, c: usize) {
        for (row, values) in [&state.a, &state.b, &state.max].into_iter().enumerate() {
            // SAFETY: one task alone holds these channels of this sequence.
            let to = unsafe { to.slice((3 * sequence + row) * c + self.first, self.len) };
            put(to, values);
        }
    }
}

/// `exp(x - max(x, y))` and `exp(y - max(x, y))`, of which one is 1: one exponential.
#[inline(always)]
pub(super) fn weights<T: Real>(x: T, y: T) -> (T, T) {
    let e = Real::exp(-(x - y).abs());
    if x >= y { (T::ONE, e) } else { (e, T::ONE) }
}

/// One token: the output; the state is advanced.
#[inline(always)]
pub(super) fn advance<T: Real>(
    s: &mut State<T>,
    (k, v): (&Lanes<T>, &Lanes<T>),
    (w, u): (&Lanes<T>, &Lanes<T>),
) -> Lanes<T> {
    let mut y = [T::ZERO; LANES];
    for i in 0..LANES {
        let (old, new) = weights(s.max[i], u[i] + k[i]);
        y[i] = old.mul_add(s.a[i], new * v[i]) / old.mul_add(s.b[i], new);
        let faded = s.max[i] + w[i];
        let (old, new) = weights(faded, k[i]);
        s.a[i] = old.mul_add(s.a[i], new * v[i]);
        s.b[i] = old.mul_add(s.b[i], new);
        s.max[i] = Real::max(faded, k[i]);
    }
    y
}

/// Outputs (b, l, c) and final states (sequences, 3, c).
pub(super) fn forward<T: Real>(v: &Views<T>, dims: &Dims) -> (Vec<T>, Vec<T>) {
    let mut y = host::zeros(dims.b * dims.l * dims.c);
    let mut states = vec![T::ZERO; dims.segments.len() * 3 * dims.c];
    let outputs = (Disjoint::new(&mut y), Disjoint::new(&mut states));
    let (tasks, _) = parts(dims.segments.len(), 1, dims.c, LANES);
    host::parallel(tasks.len(), |i| {
        vectorized(
            #[inline(always)]
            || {
                blocks(
                    &tasks[i],
                    #[inline(always)]
                    |first, len| average(v, dims, first, len, &tasks[i], &outputs),
                );
            },
        );
    });
    (y, states)
}

/// The blocks of a task: first channel and number of channels of each.
#[inline(always)]
pub(super) fn blocks(part: &Part, mut f: impl FnMut(usize, usize)) {
    let end = part.start + part.len;
    for first in (part.start..end).step_by(LANES) {
        f(first, LANES.min(end - first));
    }
}

#[inline(always)]
fn average<T: Real>(
    v: &Views<T>,
    dims: &Dims,
    first: usize,
    len: usize,
    part: &Part,
    (y, states): &(Disjoint<T>, Disjoint<T>),
) {
    let (block, segment) = (Block::new(v, first, len), dims.segments[part.segment]);
    let mut state = block.start(part.segment, dims.c);
    for t in segment.start..segment.start + segment.len {
        y.prefetch((t + AHEAD) * dims.c + first, len);
        let (k, value) = block.token(t);
        let out = advance(&mut state, (&k, &value), (&block.w, &block.u));
        // SAFETY: this task alone writes these channels of this sequence.
        put(unsafe { y.slice(t * dims.c + first, len) }, &out);
    }
    block.store(&state, states, part.segment, dims.c);
}
