//! One token on the CPU: channels shared among threads, the state dimensions of a channel in vector lanes.

use candle_core::{Result, Tensor};

use super::STEP;
use super::args::StepDims;
use super::views::{INPUTS, Views, with_views};
use crate::host::{self, Disjoint};
use crate::inplace::Update;
use crate::simd::{Real, fold, vectorized};

/// Vector lanes, and channels whose step sizes are computed together.
const LANES: usize = 16;
/// Channels a thread takes at least: some microseconds of work.
const GRAIN: usize = 64;

/// One token, ready to run.
pub(super) struct Step {
    pub(super) dims: StepDims,
    pub(super) softplus: bool,
    /// In the order of the scan's inputs, without a state.
    pub(super) inputs: [Option<Tensor>; INPUTS],
}

impl Update for Step {
    fn name(&self) -> &'static str {
        STEP
    }

    fn run<T: Real>(&self, state: &mut [T]) -> Result<Vec<T>> {
        with_views(&self.inputs, 1, self.softplus, |v| {
            let StepDims { b, e, n, .. } = self.dims;
            let mut y = vec![T::ZERO; b * e];
            let (ys, states) = (Disjoint::new(&mut y), Disjoint::new(state));
            host::spinning(b * e, GRAIN, |range| {
                // SAFETY: ranges do not overlap.
                let (y, state) = unsafe {
                    (ys.slice(range.start, range.len()), states.slice(range.start * n, range.len() * n))
                };
                vectorized(
                    #[inline(always)]
                    || self.channels(v, range.start, state, y),
                );
            });
            y
        })
    }
}

impl Step {
    /// Channels from `first` on, counted over all rows.
    #[inline(always)]
    fn channels<T: Real>(&self, v: &Views<T>, first: usize, state: &mut [T], y: &mut [T]) {
        let StepDims { e, n, g, .. } = self.dims;
        let mut done = 0;
        while done < y.len() {
            // Within one row, and no more than lanes.
            let (row, c) = ((first + done) / e, (first + done) % e);
            let len = LANES.min(y.len() - done).min(e - c);
            let (state, y) = (&mut state[done * n..][..len * n], &mut y[done..done + len]);
            let (mut dt, mut x) = ([T::ZERO; LANES], [T::ZERO; LANES]);
            dt[..len].copy_from_slice(&v.dt.row(row)[c..c + len]);
            x[..len].copy_from_slice(&v.x.row(row)[c..c + len]);
            if let Some(bias) = v.dt_bias {
                dt.iter_mut().zip(&bias[c..c + len]).for_each(|(dt, &bias)| *dt += bias);
            }
            if v.softplus {
                dt.iter_mut().for_each(|dt| *dt = dt.softplus());
            }
            let (b, b_map, c_map) = (c..c + len, v.b.row(row), v.c.row(row));
            for (i, channel) in b.enumerate() {
                let group = channel / (e / g) * n;
                let maps = (&b_map[group..group + n], &c_map[group..group + n]);
                let a = &v.a[channel * n..][..n];
                y[i] = advance(&mut state[i * n..][..n], a, maps, dt[i], dt[i] * x[i]);
            }
            if let Some(d) = v.d {
                y.iter_mut().zip(&x).zip(&d[c..c + len]).for_each(|((y, &x), &d)| *y = x.mul_add(d, *y));
            }
            if let Some(z) = v.z {
                y.iter_mut().zip(&z.row(row)[c..c + len]).for_each(|(y, z)| *y *= z.silu());
            }
            done += len;
        }
    }
}

/// One channel's state: `h = exp(Δ a) h + u B`; gives `C h`.
#[inline(always)]
fn advance<T: Real>(h: &mut [T], a: &[T], (b, c): (&[T], &[T]), dt: T, u: T) -> T {
    let rate = dt * T::LOG2_E;
    let mut sums = [T::ZERO; LANES];
    let (h, rest) = h.as_chunks_mut::<LANES>();
    let (a, rest_a) = a.as_chunks::<LANES>();
    let (b, rest_b) = b.as_chunks::<LANES>();
    let (c, rest_c) = c.as_chunks::<LANES>();
    for (((h, a), b), c) in h.iter_mut().zip(a).zip(b).zip(c) {
        for k in 0..LANES {
            h[k] = (rate * a[k]).exp2().mul_add(h[k], u * b[k]);
            sums[k] = h[k].mul_add(c[k], sums[k]);
        }
    }
    for (k, h) in rest.iter_mut().enumerate() {
        *h = (rate * rest_a[k]).exp2().mul_add(*h, u * rest_b[k]);
        sums[k] = h.mul_add(rest_c[k], sums[k]);
    }
    fold(sums)
}
