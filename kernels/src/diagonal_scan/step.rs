//! One token on the CPU, outside of any graph.

use candle_core::{Result, Tensor, bail};

use super::STEP;
use crate::check::{positive, shape, tuple};
use crate::host::{self, Disjoint, Rows, state_dtype};
use crate::inplace::Update;
use crate::simd::{Real, vectorized};

/// One token, ready to run.
pub(super) struct Step {
    /// Channels, and planes of them in a number.
    p: usize,
    planes: usize,
    rows: usize,
    /// a and x in the state's dtype.
    inputs: [Option<Tensor>; 2],
}

impl Step {
    pub(super) fn new(state: &Tensor, a: &Tensor, x: &Tensor) -> Result<Self> {
        let (rows, planes, p) = match *x.dims() {
            [b, p] => (b, 1, p),
            [b, 2, p] => (b, 2, p),
            _ => bail!(
                "{STEP}: x has shape {}, expected (b, p), or (b, 2, p) for complex numbers",
                tuple(x.dims())
            ),
        };
        positive(STEP, &[("the number of channels", p)])?;
        shape(STEP, "state", state, x.dims(), "as x")?;
        let fixed = a.rank() < x.rank();
        shape(STEP, "a", a, if fixed { &x.dims()[1..] } else { x.dims() }, "as x, or as a row of it")?;
        let work = state_dtype(x.dtype());
        let prepare = |t: &Tensor| host::in_rows(&t.to_dtype(work)?, 1).map(|t| Some(t.detach()));
        let a = if fixed { a.unsqueeze(0)?.broadcast_as(x.dims())? } else { a.clone() };
        Ok(Self { p, planes, rows, inputs: [prepare(&a)?, prepare(x)?] })
    }
}

impl Update for Step {
    fn name(&self) -> &'static str {
        STEP
    }

    fn inputs(&self) -> &[Option<Tensor>] {
        &self.inputs
    }

    fn run<T: Real>(&self, state: &mut [T]) -> Result<Vec<T>> {
        /// Rows that a thread takes at least.
        const GRAIN: usize = 4096;
        let [Some(a), Some(x)] = &self.inputs else { bail!("{STEP}: a and x are needed") };
        let (a, x) = (a.storage_and_layout(), x.storage_and_layout());
        let (a, x) = (Rows::<T>::new(&a.0, a.1, 1)?, Rows::<T>::new(&x.0, x.1, 1)?);
        let (p, width) = (self.p, self.p * self.planes);
        {
            let states = Disjoint::new(state);
            host::spinning(self.rows, GRAIN.div_ceil(width), |range| {
                // SAFETY: ranges do not overlap.
                let states = unsafe { states.slice(range.start * width, range.len() * width) };
                vectorized(
                    #[inline(always)]
                    || {
                        for (r, h) in range.zip(states.chunks_exact_mut(width)) {
                            advance(h, a.row(r), x.row(r), p);
                        }
                    },
                );
            });
        }
        Ok(state.to_vec())
    }
}

/// `h ← a h + x`, of one row of one plane or two.
#[inline(always)]
fn advance<T: Real>(h: &mut [T], a: &[T], x: &[T], p: usize) {
    if h.len() == p {
        for ((h, &a), &x) in h.iter_mut().zip(a).zip(x) {
            *h = a.mul_add(*h, x);
        }
        return;
    }
    let ((hr, hi), (ar, ai), (xr, xi)) = (h.split_at_mut(p), a.split_at(p), x.split_at(p));
    for i in 0..p {
        let (re, im) = (hr[i], hi[i]);
        hr[i] = (-ai[i]).mul_add(im, ar[i].mul_add(re, xr[i]));
        hi[i] = ai[i].mul_add(re, ar[i].mul_add(im, xi[i]));
    }
}
