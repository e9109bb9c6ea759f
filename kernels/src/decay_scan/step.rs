//! One token on the CPU: heads shared among threads, one pass over the state.

use candle_core::{Result, Tensor};

use super::STEP;
use super::args::Dims;
use super::views::{INPUTS, with_views};
use crate::host::{self, Disjoint};
use crate::inplace::Update;
use crate::simd::{Real, vectorized};

/// Numbers of the state that a thread takes at least: some microseconds of work.
const GRAIN: usize = 8192;

/// One token, ready to run.
pub(super) struct Step {
    pub(super) dims: Dims,
    /// In the order of the scan's inputs, without a state.
    pub(super) inputs: [Option<Tensor>; INPUTS],
}

impl Update for Step {
    fn name(&self) -> &'static str {
        STEP
    }

    fn inputs(&self) -> &[Option<Tensor>] {
        &self.inputs
    }

    fn run<T: Real>(&self, state: &mut [T]) -> Result<Vec<T>> {
        with_views(&self.inputs, 1, |v| {
            let Dims { b, h, n, p, .. } = self.dims;
            let mut y = vec![T::ZERO; b * h * p];
            let (ys, states) = (Disjoint::new(&mut y), Disjoint::new(state));
            host::spinning(b * h, GRAIN.div_ceil(n * p), |heads| {
                vectorized(
                    #[inline(always)]
                    || {
                        for i in heads {
                            // SAFETY: ranges of heads do not overlap.
                            let (y, state) = unsafe { (ys.slice(i * p, p), states.slice(i * n * p, n * p)) };
                            let (row, head) = (i / h, i % h);
                            let [q, k, w] = [&v.q, &v.k, &v.log_decay].map(|x| &x.row(row)[head * n..][..n]);
                            let value = &v.v.row(row)[head * p..][..p];
                            let bonus = v.bonus.map(|u| &u[head * n..][..n]);
                            one_head(state, [q, k, w], value, bonus, y);
                        }
                    },
                );
            });
            y
        })
    }
}

/// One head's (n, p) state, a row at a time.
#[inline(always)]
fn one_head<T: Real>(
    state: &mut [T],
    [q, k, log_decay]: [&[T]; 3],
    v: &[T],
    bonus: Option<&[T]>,
    y: &mut [T],
) {
    for (i, row) in state.chunks_exact_mut(v.len()).enumerate() {
        let (q, k, w) = (q[i], k[i], Real::exp(log_decay[i]));
        if bonus.is_some() {
            for ((y, s), &v) in y.iter_mut().zip(row).zip(v) {
                *y = q.mul_add(*s, *y);
                *s = w.mul_add(*s, k * v);
            }
        } else {
            for ((y, s), &v) in y.iter_mut().zip(row).zip(v) {
                *s = w.mul_add(*s, k * v);
                *y = q.mul_add(*s, *y);
            }
        }
    }
    if let Some(u) = bonus {
        let mut own = T::ZERO;
        for ((&q, &k), &u) in q.iter().zip(k).zip(u) {
            own = (q * u).mul_add(k, own);
        }
        y.iter_mut().zip(v).for_each(|(y, &v)| *y = own.mul_add(v, *y));
    }
}
