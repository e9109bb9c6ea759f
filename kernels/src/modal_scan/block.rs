//! Channels side by side in vector lanes: the unit of work of the forward and the backward scan.

use super::SystemView;
use super::args::Sizes;
use crate::simd::Real;

/// Channels of a block.
pub(super) const W: usize = 16;

/// One number a channel.
pub(super) type Lanes<T> = [T; W];

/// Real and imaginary part of one mode.
pub(super) type Pair<T> = [Lanes<T>; 2];

/// The systems of up to [`W`] channels, or their gradients; lanes past the last channel hold zeros.
pub(super) struct Block<T> {
    /// First channel, and how many there are.
    pub(super) first: usize,
    pub(super) len: usize,
    pub(super) sizes: Sizes,
    /// `Λ - 1`, (n).
    pub(super) poles: Vec<Pair<T>>,
    /// (n)
    pub(super) input: Vec<Pair<T>>,
    /// `2 Re C, -2 Im C`, (c, n): what the parts of the state are multiplied by.
    pub(super) output: Vec<Pair<T>>,
    /// (r, n)
    pub(super) left: Vec<Pair<T>>,
    /// `2 Re Q, -2 Im Q`, (r, n).
    pub(super) right: Vec<Pair<T>>,
    /// (c)
    pub(super) skip: Vec<Lanes<T>>,
}

/// All zeros.
pub(super) fn zero<T: Real>() -> Pair<T> {
    [[T::ZERO; W]; 2]
}

impl<T: Real> Block<T> {
    pub(super) fn new(v: &SystemView<'_>, sizes: Sizes, first: usize) -> Self {
        let len = W.min(sizes.d - first);
        let mut block = Self::zeros(sizes, first, len);
        let Sizes { d, p, n, .. } = sizes;
        let fill = |out: &mut [Pair<T>], values: &[f64], change: fn(f64, f64) -> [f64; 2]| {
            for (k, rows) in out.chunks_exact_mut(n).enumerate() {
                for lane in 0..len {
                    let system = k * p + (first + lane) / (d / p);
                    let values = &values[system * n * 2..][..n * 2];
                    for (mode, value) in rows.iter_mut().zip(values.chunks_exact(2)) {
                        let [re, im] = change(value[0], value[1]);
                        mode[0][lane] = T::real(re);
                        mode[1][lane] = T::real(im);
                    }
                }
            }
        };
        fill(&mut block.poles, v.poles, |re, im| [re - 1.0, im]);
        fill(&mut block.input, v.input, |re, im| [re, im]);
        fill(&mut block.output, v.output, |re, im| [2.0 * re, -2.0 * im]);
        fill(&mut block.left, v.left, |re, im| [re, im]);
        fill(&mut block.right, v.right, |re, im| [2.0 * re, -2.0 * im]);
        if let Some(skip) = v.skip {
            for (k, lanes) in block.skip.iter_mut().enumerate() {
                for (lane, out) in lanes[..len].iter_mut().enumerate() {
                    *out = T::real(skip[k * p + (first + lane) / (d / p)]);
                }
            }
        }
        block
    }

    pub(super) fn zeros(sizes: Sizes, first: usize, len: usize) -> Self {
        let Sizes { n, c, rank, .. } = sizes;
        let pairs = |count: usize| vec![zero(); count];
        Self {
            first,
            len,
            sizes,
            poles: pairs(n),
            input: pairs(n),
            output: pairs(c * n),
            left: pairs(rank * n),
            right: pairs(rank * n),
            skip: vec![[T::ZERO; W]; c],
        }
    }

    /// This block's part of a row of channels.
    #[inline(always)]
    pub(super) fn load(&self, row: &[T]) -> Lanes<T> {
        let row = &row[self.first..self.first + self.len];
        match row.first_chunk::<W>() {
            Some(full) => *full,
            None => {
                let mut lanes = [T::ZERO; W];
                lanes[..row.len()].copy_from_slice(row);
                lanes
            }
        }
    }

    /// This block's part of one sequence's state (d, n, 2), turned; zeros if there is none.
    #[inline(always)]
    pub(super) fn load_state(&self, state: Option<&[T]>, h: &mut [Pair<T>]) {
        h.fill(zero());
        let Some(state) = state else { return };
        let n = self.sizes.n;
        for (lane, values) in state[self.first * n * 2..][..self.len * n * 2].chunks_exact(n * 2).enumerate()
        {
            for (mode, value) in h.iter_mut().zip(values.chunks_exact(2)) {
                mode[0][lane] = value[0];
                mode[1][lane] = value[1];
            }
        }
    }

    /// Writes a turned state to this block's part of (d, n, 2), given alone.
    #[inline(always)]
    pub(super) fn store_state(&self, h: &[Pair<T>], state: &mut [T]) {
        for (lane, values) in state.chunks_exact_mut(self.sizes.n * 2).enumerate() {
            for (value, mode) in values.chunks_exact_mut(2).zip(h) {
                value[0] = mode[0][lane];
                value[1] = mode[1][lane];
            }
        }
    }

    /// One token of a diagonal bank: the state after it in `next`, and the first output without the skip.
    #[inline(always)]
    pub(super) fn advance(&self, h: &[Pair<T>], next: &mut [Pair<T>], u: &Lanes<T>) -> Lanes<T> {
        let [mut even, mut odd] = zero();
        let modes = h.iter().zip(next).zip(&self.poles).zip(&self.input).zip(&self.output);
        for ((((h, next), a), b), c) in modes {
            let ([re, im], [ar, ai], [br, bi], [cr, ci]) = (*h, *a, *b, *c);
            let moved =
                lanes(|j| Real::mul_add(br[j], u[j], re[j]) + Real::mul_add(ar[j], re[j], -(ai[j] * im[j])));
            let turned =
                lanes(|j| Real::mul_add(bi[j], u[j], im[j]) + Real::mul_add(ar[j], im[j], ai[j] * re[j]));
            even = lanes(|j| Real::mul_add(cr[j], moved[j], even[j]));
            odd = lanes(|j| Real::mul_add(ci[j], turned[j], odd[j]));
            *next = [moved, turned];
        }
        lanes(|j| even[j] + odd[j])
    }

    /// The correction's part of one token: `next -= P g` with `g = 2 Re Qᵀ h`, left in `g`.
    #[inline(always)]
    pub(super) fn correct(&self, h: &[Pair<T>], next: &mut [Pair<T>], g: &mut [Lanes<T>]) {
        let n = self.sizes.n;
        for (k, g) in g.iter_mut().enumerate() {
            *g = read(&self.right[k * n..][..n], h);
            let minus = g.map(|g| -g);
            add_scaled(next, &self.left[k * n..][..n], &minus);
        }
    }

    /// One token: the state after it in `next`, and its outputs handed to `out`; `g` holds one row a rank.
    #[inline(always)]
    pub(super) fn token(
        &self,
        h: &[Pair<T>],
        next: &mut [Pair<T>],
        u: &Lanes<T>,
        g: &mut [Lanes<T>],
        mut out: impl FnMut(usize, Lanes<T>),
    ) {
        let n = self.sizes.n;
        let first = self.advance(h, next, u);
        self.correct(h, next, g);
        for (k, skip) in self.skip.iter().enumerate() {
            let y = if k == 0 && g.is_empty() { first } else { read(&self.output[k * n..][..n], next) };
            out(k, lanes(|j| Real::mul_add(skip[j], u[j], y[j])));
        }
    }
}

/// A number for each lane. Made from copies, as here, loops over lanes need not fear that their stores change what they
/// read next, and become vector instructions.
#[inline(always)]
pub(super) fn lanes<T: Real>(f: impl Fn(usize) -> T) -> Lanes<T> {
    let mut out = [T::ZERO; W];
    for (j, out) in out.iter_mut().enumerate() {
        *out = f(j);
    }
    out
}

/// `Σ_n weights[n] · h[n]` over both parts.
#[inline(always)]
pub(super) fn read<T: Real>(weights: &[Pair<T>], h: &[Pair<T>]) -> Lanes<T> {
    let [mut even, mut odd] = zero();
    for (w, h) in weights.iter().zip(h) {
        let ([wr, wi], [re, im]) = (*w, *h);
        even = lanes(|j| Real::mul_add(wr[j], re[j], even[j]));
        odd = lanes(|j| Real::mul_add(wi[j], im[j], odd[j]));
    }
    lanes(|j| even[j] + odd[j])
}

/// `sums[n] += values[n] · factor`
#[inline(always)]
pub(super) fn add_scaled<T: Real>(sums: &mut [Pair<T>], values: &[Pair<T>], factor: &Lanes<T>) {
    let factor = *factor;
    for (s, v) in sums.iter_mut().zip(values) {
        let ([sr, si], [vr, vi]) = (*s, *alone(v));
        *s = [
            lanes(|j| Real::mul_add(vr[j], factor[j], sr[j])),
            lanes(|j| Real::mul_add(vi[j], factor[j], si[j])),
        ];
    }
}

/// The same mode, of which the compiler knows nothing: else it gathers several modes of a loop without a running sum into
/// one vector, lane by lane, although the lanes of one mode fill a vector already. Thirty times slower.
#[inline(always)]
pub(super) fn alone<T>(mode: &T) -> &T {
    std::hint::black_box(mode)
}
