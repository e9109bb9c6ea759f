//! One token on the CPU: channels shared among threads, the state dimensions of a channel in vector lanes.

use candle_core::{Result, Tensor};

use super::STEP;
use super::args::StepDims;
use super::views::{INPUTS, Views, with_views};
use crate::host::{self, Disjoint};
use crate::inplace::Update;
use crate::simd::Real;

/// Channels whose step sizes are computed together.
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

    fn inputs(&self) -> &[Option<Tensor>] {
        &self.inputs
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
                pulp::Arch::new().dispatch(Channels { step: self, v, first: range.start, state, y });
            });
            y
        })
    }
}

/// Channels from `first` on, counted over all rows.
struct Channels<'a, T> {
    step: &'a Step,
    v: &'a Views<'a, T>,
    first: usize,
    state: &'a mut [T],
    y: &'a mut [T],
}

impl<T: Real> pulp::WithSimd for Channels<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { step, v, first, state, y } = self;
        let StepDims { e, n, g, .. } = step.dims;
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
            let (b_map, c_map) = (v.b.row(row), v.c.row(row));
            for i in 0..len {
                let group = (c + i) / (e / g) * n;
                let (b_map, c_map) = (&b_map[group..group + n], &c_map[group..group + n]);
                let (state, a) = (&mut state[i * n..][..n], &v.a[(c + i) * n..][..n]);
                let (rate, u) = (dt[i] * T::LOG2_E, dt[i] * x[i]);
                for ((h, &a), &b) in state.iter_mut().zip(a).zip(b_map) {
                    *h = (rate * a).exp2().mul_add(*h, u * b);
                }
                y[i] = T::dot(simd, state, c_map);
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
