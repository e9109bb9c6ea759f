//! One token on the CPU: channels in vector lanes.

use candle_core::{Result, Tensor};

use super::STEP;
use super::cpu::{Block, LANES, advance};
use super::views::{INPUTS, with_views};
use crate::host::{self, Disjoint};
use crate::inplace::Update;
use crate::simd::{Real, put, vectorized};

/// One token, ready to run.
pub(super) struct Step {
    pub(super) c: usize,
    /// In the order of the graph's inputs, without a state.
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
            let c = self.c;
            let rows = state.len() / (3 * c);
            let blocks = c.div_ceil(LANES);
            let mut y = vec![T::ZERO; rows * c];
            let old = state.to_vec();
            let (ys, states) = (Disjoint::new(&mut y), Disjoint::new(state));
            host::spinning(rows * blocks, (4096 / LANES).max(1), |range| {
                vectorized(
                    #[inline(always)]
                    || {
                        for i in range {
                            let (row, first) = (i / blocks, i % blocks * LANES);
                            let block = Block::new(v, first, LANES.min(c - first));
                            let mut s = block.load(&old[3 * row * c..][..3 * c], c);
                            let (k, value) = block.token(row);
                            let out = advance(&mut s, (&k, &value), (&block.w, &block.u));
                            // SAFETY: each block of each row has one task.
                            put(unsafe { ys.slice(row * c + first, block.len) }, &out);
                            block.store(&s, &states, row, c);
                        }
                    },
                );
            });
            y
        })
    }
}
