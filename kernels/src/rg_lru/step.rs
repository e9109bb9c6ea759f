//! One token on the CPU, outside of any graph.

use candle_core::{Result, Tensor, bail};

use super::{RgLruUpdate, STEP};
use crate::host::{self, Disjoint, Rows, state_dtype};
use crate::inplace::Update;
use crate::rg_lru::cpu::{decay, rates};
use crate::simd::{Real, vectorized};

/// One token, ready to run.
pub(super) struct Step {
    rows: usize,
    d: usize,
    c: f64,
    starts: Vec<bool>,
    /// x, input gate, recurrent gate and Λ in the state's dtype.
    inputs: [Option<Tensor>; 4],
}

impl Step {
    pub(super) fn new(state: &Tensor, args: &RgLruUpdate) -> Result<Self> {
        let (rows, d) = args.check(state)?;
        let work = state_dtype(args.x.dtype());
        let row = |t: &Tensor| host::in_rows(&t.to_dtype(work)?, t.rank() - 1).map(|t| Some(t.detach()));
        let inputs =
            [row(args.x)?, row(args.input_gate)?, row(args.recurrent_gate)?, row(args.recurrent_param)?];
        Ok(Self { rows, d, c: args.c, starts: args.starts.to_vec(), inputs })
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
        /// Channels that a thread takes at least.
        const GRAIN: usize = 2048;
        let [Some(x), Some(i), Some(r), Some(param)] = &self.inputs else {
            bail!("{STEP}: x, gates and recurrent_param are needed")
        };
        let (x, i, r) = (x.storage_and_layout(), i.storage_and_layout(), r.storage_and_layout());
        let (x, i, r) =
            (Rows::<T>::new(&x.0, x.1, 1)?, Rows::<T>::new(&i.0, i.1, 1)?, Rows::<T>::new(&r.0, r.1, 1)?);
        let param = param.storage_and_layout();
        let rates = rates::<T>(host::slice(&param.0, param.1)?, self.c);
        let d = self.d;
        {
            let states = Disjoint::new(state);
            host::spinning(self.rows, GRAIN.div_ceil(d), |range| {
                // SAFETY: ranges do not overlap.
                let states = unsafe { states.slice(range.start * d, range.len() * d) };
                vectorized(
                    #[inline(always)]
                    || {
                        for (row, h) in range.zip(states.chunks_exact_mut(d)) {
                            let (x, i, r) = (x.row(row), i.row(row), r.row(row));
                            let keep = if self.starts[row] { T::ZERO } else { T::ONE };
                            for k in 0..d {
                                let (a, square) = decay(rates[k], r[k].sigmoid());
                                let scale = square.sqrt() * keep + (T::ONE - keep);
                                h[k] = (a * keep).mul_add(h[k], scale * i[k].sigmoid() * x[k]);
                            }
                        }
                    },
                );
            });
        }
        Ok(state.to_vec())
    }
}
