//! The scan on the CPU: every task takes one sequence and one block of channels through the whole length.

use super::Views;
use super::args::{Dims, Sizes};
use super::block::{Block, W, zero};
use crate::host::{self, Disjoint};
use crate::simd::{Real, vectorized};

/// Outputs (b l, c, d) and final states (sequences, d, n, 2).
pub(super) fn forward<T: Real>(v: &Views<T>, dims: &Dims) -> (Vec<T>, Vec<T>) {
    let Sizes { d, n, c, .. } = dims.sizes;
    let blocks: Vec<Block<T>> =
        (0..d).step_by(W).map(|first| Block::new(&v.system, dims.sizes, first)).collect();
    let mut y = host::zeros(dims.b * dims.l * c * d);
    let mut states = host::zeros(dims.segments.len() * d * n * 2);
    let (y_out, state_out) = (Disjoint::new(&mut y), Disjoint::new(&mut states));
    host::parallel(dims.segments.len() * blocks.len(), |i| {
        let (k, block) = (i / blocks.len(), &blocks[i % blocks.len()]);
        // SAFETY: each task has its own sequence and channels.
        let state = unsafe { state_out.slice((k * d + block.first) * n * 2, block.len * n * 2) };
        vectorized(
            #[inline(always)]
            || sequence(v, dims, k, block, &y_out, state),
        );
    });
    (y, states)
}

/// One sequence of one block of channels.
#[inline(always)]
fn sequence<T: Real>(
    v: &Views<T>,
    dims: &Dims,
    k: usize,
    block: &Block<T>,
    y: &Disjoint<T>,
    final_state: &mut [T],
) {
    let Sizes { d, n, c, rank, .. } = dims.sizes;
    let mut states = [vec![zero(); n], vec![zero(); n]];
    let mut g = vec![[T::ZERO; W]; rank];
    block.load_state(v.state.map(|s| &s[k * d * n * 2..][..d * n * 2]), &mut states[0]);
    let segment = dims.segments[k];
    for t in segment.start..segment.start + segment.len {
        let u = block.load(v.u.row(t));
        let [h, next] = &mut states;
        block.token(h, next, &u, &mut g, |output, lanes| {
            // SAFETY: this task's own channels of this sequence's tokens.
            let row = unsafe { y.slice((t * c + output) * d + block.first, block.len) };
            row.copy_from_slice(&lanes[..block.len]);
        });
        states.swap(0, 1);
    }
    block.store_state(&states[0], final_state);
}
