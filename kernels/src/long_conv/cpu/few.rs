//! A few new tokens after a long history: filter and inputs are read once, row by row, and nothing is rearranged.

use super::{FftReal, Filter, Views};
use crate::host::{self, Disjoint};
use crate::long_conv::args::{Dims, Span};
use crate::simd::{Real, vectorized};

/// y (len, d) of a span, whose filter lies in rows of taps.
pub(super) fn forward<T: FftReal>(dims: &Dims, v: &Views<T>, span: &Span, y: &mut [T]) {
    /// Taps of a task.
    const GRAIN: usize = 256;
    let Filter::Taps(k) = &v.k else { return };
    let (d, lags, first) = (dims.d, span.lags(), dims.ahead - span.fore);
    let tasks = lags.div_ceil(GRAIN);
    let mut partial = vec![T::ZERO; tasks * y.len()];
    let sums = Disjoint::new(&mut partial);
    host::parallel(tasks, |i| {
        // SAFETY: each task has its own sums.
        let sums = unsafe { sums.slice(i * span.len * d, span.len * d) };
        vectorized(
            #[inline(always)]
            || {
                for (t, y) in sums.chunks_exact_mut(d).enumerate() {
                    // Lag index j meets input `now - j`.
                    let now = span.past + t + span.fore;
                    let low = (now + 1).saturating_sub(span.inputs()).max(i * GRAIN);
                    let high = lags.min(now + 1).min((i + 1) * GRAIN);
                    let mut j = low;
                    while j + 4 <= high {
                        let k: [&[T]; 4] = std::array::from_fn(|r| k.row(first + j + r));
                        let x: [&[T]; 4] = std::array::from_fn(|r| v.input(span, now - j - r));
                        add_four(y, k, x);
                        j += 4;
                    }
                    for j in j..high {
                        let (k, x) = (k.row(first + j), v.input(span, now - j));
                        y.iter_mut().zip(k).zip(x).for_each(|((y, &k), &x)| *y = Real::mul_add(k, x, *y));
                    }
                }
            },
        );
    });
    y.copy_from_slice(&crate::parts::sum(partial, span.len * d));
    if let Some(bias) = v.bias {
        for (t, y) in y.chunks_exact_mut(d).enumerate() {
            let x = v.input(span, span.past + t);
            y.iter_mut().zip(bias).zip(x).for_each(|((y, &b), &x)| *y = Real::mul_add(b, x, *y));
        }
    }
}

/// `y += Σ_r k_r ⊙ x_r`
#[inline(always)]
fn add_four<T: Real>(y: &mut [T], k: [&[T]; 4], x: [&[T]; 4]) {
    let n = y.len();
    let (k, x) = (k.map(|k| &k[..n]), x.map(|x| &x[..n]));
    for c in 0..n {
        let pair = Real::mul_add(k[0][c], x[0][c], k[1][c] * x[1][c]);
        let other = Real::mul_add(k[2][c], x[2][c], k[3][c] * x[3][c]);
        y[c] += pair + other;
    }
}
