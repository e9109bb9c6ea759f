//! The recurrence over rows that are at hand: a block of tokens in the cache.

use crate::diagonal_scan::lanes::{Channels, Lanes, add, conj, load, mul, mul_add, store};
use crate::diagonal_scan::plan::gather;
use crate::host::Disjoint;
use crate::simd::{Real, vectorized};

/// Channels side by side, and for what is left of them.
const WIDE: usize = 32;
pub(super) const NARROW: usize = 16;

/// Tokens that all channels go through together: their rows stay in the first cache.
const TOKENS: usize = 16;

/// A decay for rows of numbers.
#[derive(Clone, Copy)]
pub(super) struct Decay<'a, T> {
    /// (p), or (2, p).
    pub(super) a: &'a [T],
    pub(super) p: usize,
    /// From the last row to the first.
    pub(super) backwards: bool,
}

/// What is done with some channels of some rows.
trait Work<T: Real> {
    /// `first..first + len` are the rows, in memory's order.
    fn run<const C: usize, const W: usize>(&mut self, channels: Channels, first: usize, len: usize);
}

/// All channels of `channels` through `rows` rows, a few rows at a time.
#[inline(always)]
fn each<T: Real, const C: usize>(channels: Channels, rows: usize, backwards: bool, work: &mut impl Work<T>) {
    let end = channels.first + channels.len;
    for offset in (0..rows).step_by(TOKENS) {
        let len = TOKENS.min(rows - offset);
        let from = if backwards { rows - offset - len } else { offset };
        let mut first = channels.first;
        while first + WIDE <= end {
            work.run::<C, WIDE>(Channels { first, len: WIDE }, from, len);
            first += WIDE;
        }
        while first < end {
            let count = NARROW.min(end - first);
            work.run::<C, NARROW>(Channels { first, len: count }, from, len);
            first += count;
        }
    }
}

struct Forward<'a, T> {
    decay: Decay<'a, T>,
    rows: &'a Disjoint<T>,
    at: usize,
    carry: &'a Disjoint<T>,
    carry_at: usize,
}

impl<T: Real> Work<T> for Forward<'_, T> {
    #[inline(always)]
    fn run<const C: usize, const W: usize>(&mut self, channels: Channels, first: usize, len: usize) {
        let Decay { a, p, backwards } = self.decay;
        let a: Lanes<T, C, W> = load(a, p, channels);
        // SAFETY: as of `scan`: these channels of the rows and of the carry are the caller's alone.
        unsafe {
            let mut h: Lanes<T, C, W> = gather(self.carry, self.carry_at, p, channels);
            for i in 0..len {
                let t = first + if backwards { len - 1 - i } else { i };
                let at = self.at + t * C * p;
                h = mul_add(&a, &h, &gather(self.rows, at, p, channels));
                store(&h, self.rows, at, p, channels);
            }
            store(&h, self.carry, self.carry_at, p, channels);
        }
    }
}

/// `h_t = a h_{t-1} + x_t` in place, for some channels of `count` rows from element `rows.1` on; the state before them,
/// at element `carry.1`, becomes the one after.
///
/// # Safety
/// Nobody else uses these channels of the rows and of the carry meanwhile.
pub(super) unsafe fn scan<T: Real>(
    decay: Decay<T>,
    rows: (&Disjoint<T>, usize),
    count: usize,
    carry: (&Disjoint<T>, usize),
    channels: Channels,
) {
    let mut work = Forward { decay, rows: rows.0, at: rows.1, carry: carry.0, carry_at: carry.1 };
    vectorized(
        #[inline(always)]
        || {
            if decay.a.len() == decay.p {
                each::<T, 1>(channels, count, decay.backwards, &mut work);
            } else {
                each::<T, 2>(channels, count, decay.backwards, &mut work);
            }
        },
    );
}

/// The gradients' side of a block.
pub(super) struct Adjoint<'a, T> {
    /// The states, rows as those of the gradients, and the state before the first token walked.
    pub(super) states: &'a [T],
    pub(super) before: &'a [T],
    /// Gradients of the states through the outputs, which become those through everything.
    pub(super) grads: &'a mut [T],
    /// `conj(a) g` of the token walked before, and in the end of the last one.
    pub(super) carry: &'a mut [T],
    /// Where `Σ g conj(h_{t-1})` is added.
    pub(super) decay: &'a mut [T],
}

/// `g_t = ∂h_t + conj(a) g_{t+1}` against the direction of the scan whose `decay` is given.
pub(super) fn adjoint<T: Real>(decay: Decay<T>, block: Adjoint<T>) {
    let all = Channels { first: 0, len: decay.p };
    let count = block.states.len() / decay.a.len();
    let mut work = Backward {
        decay,
        count,
        states: block.states,
        before: block.before,
        grads: Disjoint::new(block.grads),
        carry: Disjoint::new(block.carry),
        sums: Disjoint::new(block.decay),
    };
    vectorized(
        #[inline(always)]
        || {
            if decay.a.len() == decay.p {
                each::<T, 1>(all, count, !decay.backwards, &mut work);
            } else {
                each::<T, 2>(all, count, !decay.backwards, &mut work);
            }
        },
    );
}

struct Backward<'a, T> {
    decay: Decay<'a, T>,
    count: usize,
    states: &'a [T],
    before: &'a [T],
    grads: Disjoint<T>,
    carry: Disjoint<T>,
    sums: Disjoint<T>,
}

impl<T: Real> Work<T> for Backward<'_, T> {
    #[inline(always)]
    fn run<const C: usize, const W: usize>(&mut self, channels: Channels, first: usize, len: usize) {
        let Decay { a, p, backwards } = self.decay;
        let a: Lanes<T, C, W> = conj(&load(a, p, channels));
        // SAFETY: one thread, and slices that end before the next begins.
        let (mut c, mut sum) = unsafe {
            (gather::<T, C, W>(&self.carry, 0, p, channels), gather::<T, C, W>(&self.sums, 0, p, channels))
        };
        for i in 0..len {
            let t = first + if backwards { i } else { len - 1 - i };
            // SAFETY: as above.
            let g = add(&unsafe { gather(&self.grads, t * C * p, p, channels) }, &c);
            // SAFETY: as above.
            unsafe { store(&g, &self.grads, t * C * p, p, channels) };
            let earlier = if backwards { (t + 1 < self.count).then_some(t + 1) } else { t.checked_sub(1) };
            let h = earlier.map_or(self.before, |t| &self.states[t * C * p..]);
            sum = add(&sum, &mul(&g, &conj(&load(h, p, channels))));
            c = mul(&a, &g);
        }
        // SAFETY: as above.
        unsafe {
            store(&c, &self.carry, 0, p, channels);
            store(&sum, &self.sums, 0, p, channels);
        }
    }
}
