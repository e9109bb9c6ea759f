//! One token on the CPU: rows of the state shared among threads, one pass over memory.

use candle_core::{Result, Tensor};

use super::STEP;
use super::args::Dims;
use super::views::{INPUTS, StepRule, Views, with_views};
use crate::host::{self, Disjoint};
use crate::inplace::Update;
use crate::simd::{Real, fold, vectorized};

const LANES: usize = 16;
/// Numbers of the state that a thread takes at least: some microseconds of work.
const GRAIN: usize = 8192;

/// One token, ready to run.
pub(super) struct Step {
    pub(super) dims: Dims,
    pub(super) rule: StepRule,
    /// In the order of the scan's inputs, without a state.
    pub(super) inputs: [Option<Tensor>; INPUTS],
}

impl Update for Step {
    fn name(&self) -> &'static str {
        STEP
    }

    fn run<T: Real>(&self, state: &mut [T]) -> Result<Vec<T>> {
        with_views(&self.inputs, 1, self.rule, |v| {
            let Dims { b, h, p, n, .. } = self.dims;
            let mut y = vec![T::ZERO; b * h * p];
            let (ys, states) = (Disjoint::new(&mut y), Disjoint::new(state));
            host::spinning(b * h * p, GRAIN.div_ceil(n.max(1)), |range| {
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
    /// Channels (of all heads and rows) from `first` on.
    #[inline(always)]
    fn channels<T: Real>(&self, v: &Views<T>, first: usize, state: &mut [T], y: &mut [T]) {
        let Dims { h, p, n, g, .. } = self.dims;
        let mut done = 0;
        while done < y.len() {
            // Within one head.
            let (row, head, c) = ((first + done) / (h * p), (first + done) / p % h, (first + done) % p);
            let len = (p - c).min(y.len() - done);
            let (state, y) = (&mut state[done * n..][..len * n], &mut y[done..done + len]);
            let dt = v.step(v.raw_step(row, head));
            let decay = Real::exp(dt * v.a[head]);
            let group = head / (h / g) * n;
            let maps = (&v.b.row(row)[group..group + n], &v.c.row(row)[group..group + n]);
            let columns = head * p + c..head * p + c + len;
            let x = &v.x.row(row)[columns.clone()];
            for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                *y = advance(&mut state[i * n..][..n], maps, decay, dt * x);
                *y = x.mul_add(v.skip(&self.dims, head, c + i), *y);
            }
            if let Some(z) = v.z {
                y.iter_mut().zip(&z.row(row)[columns]).for_each(|(y, z)| *y *= z.silu());
            }
            done += len;
        }
    }
}

/// One row of the state: `h = decay h + u B`; gives `C h`.
#[inline(always)]
fn advance<T: Real>(h: &mut [T], (b, c): (&[T], &[T]), decay: T, u: T) -> T {
    let mut sums = [T::ZERO; LANES];
    let (h, rest) = h.as_chunks_mut::<LANES>();
    let (b, rest_b) = b.as_chunks::<LANES>();
    let (c, rest_c) = c.as_chunks::<LANES>();
    for ((h, b), c) in h.iter_mut().zip(b).zip(c) {
        for k in 0..LANES {
            h[k] = decay.mul_add(h[k], u * b[k]);
            sums[k] = h[k].mul_add(c[k], sums[k]);
        }
    }
    for (k, h) in rest.iter_mut().enumerate() {
        *h = decay.mul_add(*h, u * rest_b[k]);
        sums[k] = h.mul_add(rest_c[k], sums[k]);
    }
    fold(sums)
}
