//! One token on the CPU, the state advanced in place, in f64 from the stored state to the stored state.

use candle_core::{Result, Tensor};

use super::args::{MAX_RANK, Sizes};
use super::{SystemView, with_views};
use crate::host::{self, Disjoint};
use crate::inplace::Update;
use crate::simd::{Real, vectorized};

pub(super) const OP: &str = "modal_update";

/// One token of every row: its inputs are u and the bank's tensors.
pub(super) struct Step {
    pub(super) sizes: Sizes,
    pub(super) inputs: [Option<Tensor>; 7],
}

impl Update for Step {
    fn name(&self) -> &'static str {
        OP
    }

    fn inputs(&self) -> &[Option<Tensor>] {
        &self.inputs
    }

    fn run<T: Real>(&self, state: &mut [T]) -> Result<Vec<T>> {
        /// Channels that are worth a thread's attention.
        const GRAIN: usize = 32;
        let Sizes { d, n, c, .. } = self.sizes;
        with_views::<T, _>(&self.inputs, 1, |v| {
            let mut y = host::zeros(v.u.rows * c * d);
            let (y_out, state) = (Disjoint::new(&mut y), Disjoint::new(state));
            host::spinning(v.u.rows * d, GRAIN, |range| {
                vectorized(
                    #[inline(always)]
                    || {
                        for i in range {
                            let (row, channel) = (i / d, i % d);
                            // SAFETY: ranges do not overlap, and every i is one channel of one row.
                            let h = unsafe { state.slice(i * n * 2, n * 2) };
                            let u = v.u.row(row)[channel];
                            advance(&v.system, &self.sizes, channel, h, u);
                            for k in 0..c {
                                // SAFETY: as above.
                                let y = unsafe { y_out.slice((row * c + k) * d + channel, 1) };
                                y[0] = output(&v.system, &self.sizes, channel, k, h, u);
                            }
                        }
                    },
                );
            });
            y
        })
    }
}

fn wide<T: Real>(v: T) -> f64 {
    v.to_f64()
}

/// `h ← Λ h - P (2 Re Qᵀ h) + B u`
#[inline(always)]
fn advance<T: Real>(v: &SystemView<'_>, sizes: &Sizes, channel: usize, h: &mut [T], u: T) {
    let Sizes { d, p, n, rank, .. } = *sizes;
    let (system, u) = (channel / (d / p), wide(u));
    let of = |values: &'_ [f64], k: usize| -> std::ops::Range<usize> {
        debug_assert!(values.len() >= (k + 1) * p * n * 2);
        (k * p + system) * n * 2..(k * p + system + 1) * n * 2
    };
    let g: [f64; MAX_RANK] =
        std::array::from_fn(|k| if k < rank { twice_real(&v.right[of(v.right, k)], h) } else { 0.0 });
    let (poles, input) = (&v.poles[of(v.poles, 0)], &v.input[of(v.input, 0)]);
    for ((h, a), b) in h.chunks_exact_mut(2).zip(poles.chunks_exact(2)).zip(input.chunks_exact(2)) {
        let (re, im) = (wide(h[0]), wide(h[1]));
        h[0] = T::real(a[0] * re - a[1] * im + b[0] * u);
        h[1] = T::real(a[0] * im + a[1] * re + b[1] * u);
    }
    for (k, g) in g.iter().enumerate().take(rank) {
        for (h, p) in h.iter_mut().zip(&v.left[of(v.left, k)]) {
            *h = T::real(wide(*h) - p * g);
        }
    }
}

/// `2 Re Cᵀ h + D u`
#[inline(always)]
fn output<T: Real>(v: &SystemView<'_>, sizes: &Sizes, channel: usize, k: usize, h: &[T], u: T) -> T {
    let Sizes { d, p, n, .. } = *sizes;
    let at = k * p + channel / (d / p);
    let skip = v.skip.map_or(0.0, |skip| skip[at]);
    T::real(twice_real(&v.output[at * n * 2..][..n * 2], h) + skip * wide(u))
}

#[inline(always)]
fn twice_real<T: Real>(weights: &[f64], h: &[T]) -> f64 {
    let mut sums = [0.0; 8];
    let (w8, h8) = (weights.chunks_exact(8), h.chunks_exact(8));
    for (j, (w, h)) in w8.remainder().iter().zip(h8.remainder()).enumerate() {
        sums[j] = w * wide(*h);
    }
    for (w, h) in w8.zip(h8) {
        for j in 0..8 {
            sums[j] += w[j] * wide(h[j]);
        }
    }
    2.0 * ((sums[0] - sums[1]) + (sums[2] - sums[3]) + (sums[4] - sums[5]) + (sums[6] - sums[7]))
}
