//! One token on the CPU: rows of the state shared among threads, one pass over memory.

use candle_core::{Result, Tensor};

use super::args::Dims;
use super::views::{INPUTS, StepRule, Views, with_views};
use crate::host::{self, Disjoint};
use crate::inplace::Update;
use crate::simd::Real;

/// Numbers of the state that a thread takes at least: some microseconds of work.
const GRAIN: usize = 8192;

/// One token, ready to run.
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) dims: Dims,
    pub(super) rule: StepRule,
    /// In the order of the scan's inputs, without a state.
    pub(super) inputs: [Option<Tensor>; INPUTS],
}

impl Update for Step {
    fn name(&self) -> &'static str {
        self.name
    }

    fn inputs(&self) -> &[Option<Tensor>] {
        &self.inputs
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
                pulp::Arch::new().dispatch(Channels { step: self, v, first: range.start, state, y });
            });
            y
        })
    }
}

/// Channels (of all heads and rows) from `first` on.
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
        let Dims { h, p, n, g, .. } = step.dims;
        let mut done = 0;
        while done < y.len() {
            // Within one head.
            let (row, head, c) = ((first + done) / (h * p), (first + done) / p % h, (first + done) % p);
            let len = (p - c).min(y.len() - done);
            let (state, y) = (&mut state[done * n..][..len * n], &mut y[done..done + len]);
            let (dt, decay) = v.factors(row, head);
            let group = head / (h / g) * n;
            let (b_map, c_map) = (&v.b.row(row)[group..group + n], &v.c.row(row)[group..group + n]);
            let columns = head * p + c..head * p + c + len;
            let x = &v.x.row(row)[columns.clone()];
            for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                let (state, u) = (&mut state[i * n..][..n], dt * x);
                state.iter_mut().zip(b_map).for_each(|(h, &b)| *h = decay.mul_add(*h, u * b));
                *y = x.mul_add(v.skip(&step.dims, head, c + i), T::dot(simd, state, c_map));
            }
            if let Some(z) = v.z {
                y.iter_mut().zip(&z.row(row)[columns]).for_each(|(y, z)| *y *= z.silu());
            }
            done += len;
        }
    }
}
