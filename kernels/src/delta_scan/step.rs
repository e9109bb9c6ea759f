//! One token on the CPU: heads shared among threads, two passes over a head's state.

use candle_core::{Result, Tensor};

use super::args::{Dims, Op};
use super::views::{INPUTS, RuleViews, Views, prepare, with_views};
use crate::check;
use crate::host::{self, Disjoint, state_dtype};
use crate::inplace::{self, Update};
use crate::simd::{Real, vectorized};

/// Numbers of the state that a thread takes at least: some microseconds of work.
const GRAIN: usize = 8192;

pub(super) fn update(state: &Tensor, op: &Op) -> Result<Tensor> {
    check::on_cpu(op.name, state.device())?;
    let dims = op.check_step(state)?;
    let (data, shape) = (op.v.dtype(), (dims.b, dims.h, dims.p));
    let inputs = prepare(op, 1, state_dtype(data))?.map(|t| t.map(|t| t.detach()));
    inplace::update(state, Step { name: op.name, scale: op.scale, dims, inputs }, data, shape)
}

/// One token, ready to run.
struct Step {
    name: &'static str,
    scale: f64,
    dims: Dims,
    /// In the order of the scan's inputs, without a state.
    inputs: [Option<Tensor>; INPUTS],
}

impl Update for Step {
    fn name(&self) -> &'static str {
        self.name
    }

    fn inputs(&self) -> &[Option<Tensor>] {
        &self.inputs
    }

    fn run<T: Real>(&self, state: &mut [T]) -> Result<Vec<T>> {
        let Dims { b, h, n, p, .. } = self.dims;
        with_views(&self.inputs, 1, self.scale, |v| {
            let mut y = vec![T::ZERO; b * h * p];
            let (ys, states) = (Disjoint::new(&mut y), Disjoint::new(state));
            host::spinning(b * h, GRAIN.div_ceil(n * p), |range| {
                vectorized(
                    #[inline(always)]
                    || {
                        let mut read = vec![T::ZERO; p];
                        for i in range.clone() {
                            // SAFETY: ranges do not overlap.
                            let (y, state) = unsafe { (ys.slice(i * p, p), states.slice(i * n * p, n * p)) };
                            advance(v, &self.dims, (i / h, i % h), state, &mut read, y);
                        }
                    },
                );
            });
            y
        })
    }
}

/// One token of one head: the state (n, p) and the output (p), zero before; `read` (p) is scratch.
#[inline(always)]
fn advance<T: Real>(
    views: &Views<T>,
    &Dims { h, n, p, .. }: &Dims,
    (row, head): (usize, usize),
    state: &mut [T],
    read: &mut [T],
    y: &mut [T],
) {
    let keys = head * n..(head + 1) * n;
    let (q, k) = (&views.q.row(row)[keys.clone()], &views.k.row(row)[keys.clone()]);
    let v = &views.v.row(row)[head * p..(head + 1) * p];
    let decays = views.log_decay.map(|g| g.row(row));
    // The decay of key channel i.
    let decay = |i: usize| match decays {
        None => T::ONE,
        Some(g) if g.len() == h => Real::exp(g[head]),
        Some(g) => Real::exp(g[head * n + i]),
    };
    match views.rule {
        RuleViews::Plain { a, b } => {
            let (a, b) = (&a.row(row)[keys.clone()], &b.row(row)[keys]);
            read.fill(T::ZERO);
            for (s, &a) in state.chunks_exact(p).zip(a) {
                read.iter_mut().zip(s).for_each(|(r, &s)| *r = a.mul_add(s, *r));
            }
            for (i, s) in state.chunks_exact_mut(p).enumerate() {
                let (d, b, k, q) = (decay(i), b[i], k[i], views.scale * q[i]);
                for (((s, &r), &v), y) in s.iter_mut().zip(&*read).zip(v).zip(&mut *y) {
                    *s = d.mul_add(*s, b.mul_add(r, k * v));
                    *y = q.mul_add(*s, *y);
                }
            }
        }
        RuleViews::Correct { beta } => {
            let beta = beta.row(row)[head];
            read.copy_from_slice(v);
            for (i, s) in state.chunks_exact_mut(p).enumerate() {
                let (d, k) = (decay(i), k[i]);
                for (s, r) in s.iter_mut().zip(&mut *read) {
                    *s *= d;
                    *r = (-k).mul_add(*s, *r);
                }
            }
            for (i, s) in state.chunks_exact_mut(p).enumerate() {
                let (k, q) = (beta * k[i], views.scale * q[i]);
                for ((s, &r), y) in s.iter_mut().zip(&*read).zip(&mut *y) {
                    *s = k.mul_add(r, *s);
                    *y = q.mul_add(*s, *y);
                }
            }
        }
    }
}
