//! Transforms, planned once a length for the whole process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use realfft::num_complex::Complex;
use realfft::{ComplexToReal, FftNum, RealFftPlanner, RealToComplex};

use crate::simd::{Real, vectorized};

/// The transforms of one length.
#[derive(Clone)]
pub(crate) struct Plan<T> {
    /// Points.
    pub(crate) n: usize,
    forward: Arc<dyn RealToComplex<T>>,
    inverse: Arc<dyn ComplexToReal<T>>,
}

/// A real that can be transformed.
pub(crate) trait FftReal: Real + FftNum {
    /// The plans of this type.
    fn plans() -> &'static Mutex<HashMap<usize, Plan<Self>>>;
}

impl FftReal for f32 {
    fn plans() -> &'static Mutex<HashMap<usize, Plan<Self>>> {
        static PLANS: OnceLock<Mutex<HashMap<usize, Plan<f32>>>> = OnceLock::new();
        PLANS.get_or_init(Mutex::default)
    }
}

impl FftReal for f64 {
    fn plans() -> &'static Mutex<HashMap<usize, Plan<Self>>> {
        static PLANS: OnceLock<Mutex<HashMap<usize, Plan<f64>>>> = OnceLock::new();
        PLANS.get_or_init(Mutex::default)
    }
}

impl<T: FftReal> Plan<T> {
    /// The plan for `n` points, which [`fast_length`] gave: there are few such lengths, so that few plans are kept.
    pub(crate) fn of(n: usize) -> Self {
        let mut plans = T::plans().lock().unwrap_or_else(PoisonError::into_inner);
        let plan = || {
            let mut planner = RealFftPlanner::new();
            Self { n, forward: planner.plan_fft_forward(n), inverse: planner.plan_fft_inverse(n) }
        };
        plans.entry(n).or_insert_with(plan).clone()
    }

    /// Elements of a spectrum.
    pub(crate) fn bins(&self) -> usize {
        self.n / 2 + 1
    }

    /// Elements of scratch.
    pub(crate) fn scratch(&self) -> usize {
        self.forward.get_scratch_len().max(self.inverse.get_scratch_len())
    }

    /// The spectrum of `signal` (n), which is overwritten.
    pub(crate) fn forward(&self, signal: &mut [T], spectrum: &mut [Complex<T>], scratch: &mut [Complex<T>]) {
        let done = self.forward.process_with_scratch(signal, spectrum, scratch);
        assert!(done.is_ok(), "buffers of another length than the plan's");
    }

    /// The signal of `spectrum`, times n; the spectrum is overwritten.
    pub(crate) fn inverse(&self, spectrum: &mut [Complex<T>], signal: &mut [T], scratch: &mut [Complex<T>]) {
        // A product of spectra of real signals is real here; not so if an input is infinite.
        spectrum[0].im = T::ZERO;
        spectrum[self.n / 2].im = T::ZERO;
        let done = self.inverse.process_with_scratch(spectrum, signal, scratch);
        assert!(done.is_ok(), "buffers of another length than the plan's");
    }
}

/// The smallest even length of at least `least` points whose transform is fast: a power of two times 1, 9/8, 5/4 or 3/2.
pub(crate) fn fast_length(least: usize) -> usize {
    let power = least.max(16).next_power_of_two();
    let eighth = power / 16; // of the power below
    [9, 10, 12].into_iter().map(|m| m * eighth).find(|&n| n >= least && n.is_multiple_of(2)).unwrap_or(power)
}

/// `a ← a ⊙ b`
pub(crate) fn multiply<T: FftReal>(a: &mut [Complex<T>], b: &[Complex<T>]) {
    vectorized(
        #[inline(always)]
        || {
            for (a, b) in a.iter_mut().zip(b) {
                *a = Complex::new(
                    Real::mul_add(a.re, b.re, -(a.im * b.im)),
                    Real::mul_add(a.re, b.im, a.im * b.re),
                );
            }
        },
    );
}

/// `sum ← sum + a ⊙ conj(x)`, then `a ← a ⊙ conj(k)`: both gradients of a product of spectra in one pass.
pub(crate) fn correlate<T: FftReal>(
    a: &mut [Complex<T>],
    x: &[Complex<T>],
    k: &[Complex<T>],
    sum: &mut [Complex<T>],
) {
    vectorized(
        #[inline(always)]
        || {
            for (((a, x), k), sum) in a.iter_mut().zip(x).zip(k).zip(sum) {
                sum.re = Real::mul_add(a.re, x.re, Real::mul_add(a.im, x.im, sum.re));
                sum.im = Real::mul_add(a.im, x.re, Real::mul_add(-a.re, x.im, sum.im));
                *a = Complex::new(
                    Real::mul_add(a.re, k.re, a.im * k.im),
                    Real::mul_add(a.im, k.re, -(a.re * k.im)),
                );
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_lengths_are_near_and_even() {
        for least in 1..5000 {
            let n = fast_length(least);
            assert!(n >= least && n.is_multiple_of(2) && 3 * n <= (4 * least).max(48) + 4, "{least}: {n}");
        }
        assert_eq!([4096, 4097, 4609, 5121, 6145].map(fast_length), [4096, 4608, 5120, 6144, 8192]);
    }
}
