//! The dense map of few rows: each weight is read once, for all rows.
//!
//! Its floor is the memory's read bandwidth: the outputs are shared out over spinning threads in contiguous blocks, a
//! few weight rows are read side by side, and the partial sums of a tile stay in registers.

use pulp::{Simd, WithSimd};

use super::stored::{Register, Stored};
use crate::host::{self, Disjoint, Rows};

/// Weights that a thread must have to itself to be worth waking: about a microsecond's read.
const GRAIN_BYTES: usize = 32 << 10;

/// How far before their use weights are asked for: the machine's own guess at what is read next is not enough to keep the
/// memory busy while narrow weights are being widened.
const AHEAD_BYTES: usize = 2 << 10;

/// Room for the widest pair of registers of the narrowest stored type, 2 x 16 lanes.
const PAIR: usize = 32;

/// `y = x wᵀ + bias` for `w` (outputs, x.width) row-major, into the first `outputs` of each row of `y`, `stride` apart.
pub(super) fn linear<T: Register, W: Stored<T>>(
    x: Rows<T>,
    w: &[W],
    bias: Option<&[T]>,
    y: &mut [T],
    (outputs, stride): (usize, usize),
) {
    assert!(w.len() == outputs * x.width && outputs <= stride);
    let arch = pulp::Arch::new();
    let arranged = arch.dispatch(Arrange { x, stored: std::marker::PhantomData::<W> });
    let y = Disjoint::new(y);
    let grain = (GRAIN_BYTES / (x.width * size_of::<W>()).max(1)).max(1).next_multiple_of(4);
    host::spinning(outputs, grain, |range| {
        let sweep = Sweep { x: &arranged, rows: x.rows, width: x.width, w, bias, y: &y, stride, range };
        arch.dispatch(sweep);
    });
}

/// Copies the rows of x in the order in which [`Stored::load`] delivers weights.
///
/// What does not fill a pair of registers becomes a last pair with zeros: in front, to go with the last whole pair of a
/// weight row, or behind, where the weight row is shorter than a pair.
struct Arrange<'a, T, W> {
    x: Rows<'a, T>,
    stored: std::marker::PhantomData<W>,
}

impl<T: Register, W: Stored<T>> WithSimd for Arrange<'_, T, W> {
    type Output = Vec<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<T> {
        let lanes = T::lanes::<S>();
        let pair = 2 * lanes;
        let padded = self.x.width.next_multiple_of(pair);
        let mut arranged = vec![T::ZERO; self.x.rows * padded];
        for (i, to) in arranged.chunks_exact_mut(padded.max(1)).enumerate() {
            let (pairs, rest) = self.x.row(i).split_at(self.x.width / pair * pair);
            let (to, last) = to.split_at_mut(pairs.len());
            for (from, to) in pairs.chunks_exact(pair).zip(to.chunks_exact_mut(pair)) {
                W::arrange(from, to, lanes);
            }
            if !rest.is_empty() {
                let mut from = [T::ZERO; PAIR];
                let skipped = if pairs.is_empty() { 0 } else { pair - rest.len() };
                from[skipped..skipped + rest.len()].copy_from_slice(rest);
                W::arrange(&from[..pair], last, lanes);
            }
        }
        arranged
    }
}

/// All rows of x against the weight rows of `range`.
struct Sweep<'a, T, W> {
    /// Arranged rows.
    x: &'a [T],
    rows: usize,
    width: usize,
    w: &'a [W],
    bias: Option<&'a [T]>,
    y: &'a Disjoint<T>,
    /// From one row of y to the next.
    stride: usize,
    range: std::ops::Range<usize>,
}

impl<T: Register, W: Stored<T>> WithSimd for Sweep<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut o = self.range.start;
        if self.rows < 4 || S::REGISTER_COUNT >= 32 {
            o = self.strips::<S, 4>(simd, o);
        }
        o = self.strips::<S, 2>(simd, o);
        self.strips::<S, 1>(simd, o);
    }
}

impl<T: Register, W: Stored<T>> Sweep<'_, T, W> {
    /// Outputs from `start` on, as many as R divides: R strips of weight rows side by side, so that memory is read in
    /// R places at once. Returns the first output that is left.
    #[inline(always)]
    fn strips<S: Simd, const R: usize>(&self, simd: S, start: usize) -> usize {
        let strip = (self.range.end - start) / R;
        for o in start..start + strip {
            let mut row = 0;
            while row < self.rows {
                // Eight partial sums in registers keep the multipliers busy; more would not fit the smaller sets.
                row += match self.rows - row {
                    4.. if R <= 2 || R == 4 && S::REGISTER_COUNT >= 32 => {
                        self.tile::<S, 4, R>(simd, row, o, strip)
                    }
                    2.. if R <= 4 => self.tile::<S, 2, R>(simd, row, o, strip),
                    _ => self.tile::<S, 1, R>(simd, row, o, strip),
                };
            }
        }
        start + R * strip
    }

    /// Rows `row..row + M` of x against the R weight rows from `o` on, `strip` apart; returns M.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const R: usize>(
        &self,
        simd: S,
        row: usize,
        o: usize,
        strip: usize,
    ) -> usize {
        let pair = 2 * T::lanes::<S>();
        let padded = self.width.next_multiple_of(pair);
        let (whole, rest) = (self.width / pair, self.width % pair);
        let xs = self.x[row * padded..(row + M) * padded].as_ptr();
        let ws = self.w[o * self.width..(o + (R - 1) * strip + 1) * self.width].as_ptr();
        let strides = (padded, strip * self.width);
        let mut sums = [[[T::none(simd); 2]; R]; M];
        for block in 0..whole {
            let at = block * pair;
            if row == 0 {
                for r in 0..R {
                    prefetch(ws.wrapping_add(at + r * strides.1 + AHEAD_BYTES / size_of::<W>()), pair);
                }
            }
            // SAFETY: block < whole: the pairs lie inside the rows of x and of the weights that were sliced above.
            unsafe { accumulate::<T, W, S, M, R>(simd, &mut sums, xs.add(at), ws.add(at), strides) };
        }
        if rest > 0 {
            let x = self.x[row * padded + whole * pair..].as_ptr();
            let mut short = [[W::zero(); PAIR]; R];
            let (w, stride) = if whole > 0 {
                (ws.wrapping_add(self.width - pair), strides.1)
            } else {
                for (r, short) in short.iter_mut().enumerate() {
                    short[..rest].copy_from_slice(&self.w[(o + r * strip) * rest..][..rest]);
                }
                (short.as_ptr().cast(), PAIR)
            };
            // SAFETY: x has this last pair; the weights either end the sliced rows or are those of `short`.
            unsafe { accumulate::<T, W, S, M, R>(simd, &mut sums, x, w, (padded, stride)) };
        }
        for (m, sums) in sums.iter().enumerate() {
            for (r, sums) in sums.iter().enumerate() {
                let o = o + r * strip;
                let sum = if M * R > 4 { sums[0] } else { T::plus(simd, sums[0], sums[1]) };
                // SAFETY: an output belongs to the one thread whose range holds it.
                let y = unsafe { self.y.slice((row + m) * self.stride + o, 1) };
                y[0] = T::total(simd, sum) + self.bias.map_or(T::ZERO, |b| b[o]);
            }
        }
        M
    }
}

/// Adds the products of a pair of registers of each of M rows of x and R of weights to `sums`.
///
/// # Safety
/// A pair is readable at `x`, `w`, and at M - 1 and R - 1 more places at their distances in `strides`.
#[inline(always)]
unsafe fn accumulate<T: Register, W: Stored<T>, S: Simd, const M: usize, const R: usize>(
    simd: S,
    sums: &mut [[[T::V<S>; 2]; R]; M],
    x: *const T,
    w: *const W,
    strides: (usize, usize),
) {
    let mut ws = [[T::none(simd); 2]; R];
    for (r, pair) in ws.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *pair = unsafe { W::load(simd, w.add(r * strides.1)) };
    }
    for (m, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let x = unsafe { x.add(m * strides.0).cast::<[T::V<S>; 2]>().read_unaligned() };
        for (w, sums) in ws.iter().zip(sums) {
            // Few sums need both halves apart, to be independent of each other for as long as a product takes.
            let second = if M * R > 4 { 0 } else { 1 };
            sums[0] = T::fused(simd, w[0], x[0], sums[0]);
            sums[second] = T::fused(simd, w[1], x[1], sums[second]);
        }
    }
}

/// Asks for the memory of `count` weights from `at` on, wherever that may be.
#[inline(always)]
fn prefetch<W>(at: *const W, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..(count * size_of::<W>()).div_ceil(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint that reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(line * 64)) };
    }
}
