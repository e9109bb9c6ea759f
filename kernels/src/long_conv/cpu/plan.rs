//! Transforms, planned once a length for the whole process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use realfft::num_complex::Complex;
use realfft::{ComplexToReal, FftNum, RealFftPlanner, RealToComplex};
use rustfft::{Fft, FftPlanner};

use crate::simd::{Real, vectorized};

/// The transforms of one length.
#[derive(Clone)]
pub(crate) struct Plan<T> {
    /// Points.
    pub(crate) n: usize,
    forward: Arc<dyn RealToComplex<T>>,
    inverse: Arc<dyn ComplexToReal<T>>,
    /// Of n / 2 points.
    packed_forward: Arc<dyn Fft<T>>,
    packed_inverse: Arc<dyn Fft<T>>,
    /// `(1 + exp(-2πi k / m)) / 4`, m = n / 2, for k up to the middle.
    twist: Arc<[Complex<T>]>,
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
            let (m, mut packed) = (n / 2, FftPlanner::new());
            let twist = (0..=m / 2).map(|k| {
                let angle = -2.0 * std::f64::consts::PI * k as f64 / m as f64;
                Complex::new(T::real((1.0 + angle.cos()) / 4.0), T::real(angle.sin() / 4.0))
            });
            Self {
                n,
                forward: planner.plan_fft_forward(n),
                inverse: planner.plan_fft_inverse(n),
                packed_forward: packed.plan_fft_forward(m),
                packed_inverse: packed.plan_fft_inverse(m),
                twist: twist.collect(),
            }
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

/// Circular convolution without the spectra of its real signals.
///
/// A signal of n = 2 m points is taken as m complex ones, `z_j = x_2j + i x_2j+1`. With E and O the transforms of the even
/// and the odd points, `Z = E + i O`, the product of two signals is `E E' + V O O'` at even and `E O' + O E'` at odd
/// points, `V_k = exp(-2πi k / m)` being a shift by one. Hence its packed transform, in one pass over pairs (k, m - k):
///
/// ```text
/// Y_k = Z_k Z'_k + (1 + V_k) O_k O'_k = Z_k Z'_k - (1 + V_k)/4 (Z_k - conj Z_m-k) (Z'_k - conj Z'_m-k)
/// ```
impl<T: FftReal> Plan<T> {
    /// Points of a packed signal and its transform.
    pub(crate) fn packed(&self) -> usize {
        self.n / 2
    }

    /// Elements of scratch of the packed transforms.
    pub(crate) fn packed_scratch(&self) -> usize {
        let (to, back) = (&self.packed_forward, &self.packed_inverse);
        to.get_outofplace_scratch_len().max(back.get_outofplace_scratch_len())
    }

    /// The transform of a packed signal, which is overwritten.
    pub(crate) fn pack(
        &self,
        signal: &mut [Complex<T>],
        spectrum: &mut [Complex<T>],
        scratch: &mut [Complex<T>],
    ) {
        self.packed_forward.process_outofplace_with_scratch(signal, spectrum, scratch);
    }

    /// The packed signal, times n / 2, of a transform, which is overwritten.
    pub(crate) fn unpack(
        &self,
        spectrum: &mut [Complex<T>],
        signal: &mut [Complex<T>],
        scratch: &mut [Complex<T>],
    ) {
        self.packed_inverse.process_outofplace_with_scratch(spectrum, signal, scratch);
    }

    /// `z` becomes the packed transform of the convolution of its signal with that of `k`.
    pub(crate) fn convolve(&self, z: &mut [Complex<T>], k: &[Complex<T>]) {
        let m = self.packed();
        assert!(z.len() == m && k.len() == m && self.twist.len() == m / 2 + 1);
        let pairs = (m - 1) / 2;
        // Points that are their own partners: the first, and that in the middle, where 1 + V is zero.
        let (first, half) = (z[0].im * k[0].im, T::real(2.0));
        z[0] = product(z[0], k[0]);
        z[0].re += half * first;
        if m.is_multiple_of(2) {
            z[m / 2] = product(z[m / 2], k[m / 2]);
        }
        let (low, high) = z.split_at_mut(pairs + 1);
        let (low, high) = (&mut low[1..], &mut high[m - 1 - 2 * pairs..]);
        let (k_low, k_high) = (&k[1..=pairs], &k[m - pairs..]);
        let twist = &self.twist[1..=pairs];
        vectorized(
            #[inline(always)]
            || {
                let (high, k_high) = (high.iter_mut().rev(), k_high.iter().rev());
                for ((((a, b), ka), kb), &c) in low.iter_mut().zip(high).zip(k_low).zip(k_high).zip(twist) {
                    let (d, g) =
                        (Complex::new(a.re - b.re, a.im + b.im), Complex::new(ka.re - kb.re, ka.im + kb.im));
                    let t = product(product(d, g), c);
                    let (ya, yb) = (product(*a, *ka), product(*b, *kb));
                    *a = Complex::new(ya.re - t.re, ya.im - t.im);
                    *b = Complex::new(yb.re - t.re, yb.im + t.im);
                }
            },
        );
    }
}

/// The real points of a packed signal, in their order.
pub(crate) fn reals<T: FftReal>(packed: &mut [Complex<T>]) -> &mut [T] {
    // SAFETY: a complex number is two reals side by side (`repr(C)`), and the slice is borrowed whole.
    unsafe { std::slice::from_raw_parts_mut(packed.as_mut_ptr().cast(), 2 * packed.len()) }
}

#[inline(always)]
fn product<T: FftReal>(a: Complex<T>, b: Complex<T>) -> Complex<T> {
    Complex::new(Real::mul_add(a.re, b.re, -(a.im * b.im)), Real::mul_add(a.re, b.im, a.im * b.re))
}

/// The smallest even length of at least `least` points whose transform is fast: a power of two times 1, 9/8, 5/4 or 3/2.
pub(crate) fn fast_length(least: usize) -> usize {
    let power = least.max(16).next_power_of_two();
    let eighth = power / 16; // of the power below
    [9, 10, 12].into_iter().map(|m| m * eighth).find(|&n| n >= least && n.is_multiple_of(2)).unwrap_or(power)
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

    /// The packed product against the sums, for odd and even halves.
    #[test]
    fn packed_products_are_convolutions() {
        for n in [16, 18, 20, 24, 32, 40, 256] {
            let value = |seed: usize| move |i: usize| ((i * 7 + seed * 13) % 11) as f64 - 4.5;
            let (x, k): (Vec<f64>, Vec<f64>) =
                ((0..n).map(value(1)).collect(), (0..n).map(value(2)).collect());
            let (plan, m) = (Plan::<f64>::of(n), n / 2);
            let mut buffers = [(); 3].map(|()| vec![Complex::new(0.0, 0.0); m]);
            let mut scratch = vec![Complex::new(0.0, 0.0); plan.packed_scratch()];
            let [signal, zx, zk] = &mut buffers;
            reals(signal).copy_from_slice(&x);
            plan.pack(signal, zx, &mut scratch);
            reals(signal).copy_from_slice(&k);
            plan.pack(signal, zk, &mut scratch);
            plan.convolve(zx, zk);
            plan.unpack(zx, signal, &mut scratch);
            for (t, got) in reals(signal).iter().enumerate() {
                let want: f64 = (0..n).map(|j| k[j] * x[(n + t - j) % n]).sum();
                assert!((got / m as f64 - want).abs() < 1e-9 * n as f64, "{n} {t}: {got} {want}");
            }
        }
    }

    #[test]
    fn fast_lengths_are_near_and_even() {
        for least in 1..5000 {
            let n = fast_length(least);
            assert!(n >= least && n.is_multiple_of(2) && 3 * n <= (4 * least).max(48) + 4, "{least}: {n}");
        }
        assert_eq!([4096, 4097, 4609, 5121, 6145].map(fast_length), [4096, 4608, 5120, 6144, 8192]);
    }
}
