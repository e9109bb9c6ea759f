//! The scan on the CPU: sequential in time, threads over sequences and channels, channels in vector lanes.
//!
//! A task walks its tokens with the state of its channels in the first-level cache; bias, softplus, skip and gate are
//! applied on the way, so that nothing of size (b, l, e, n) ever exists.

use super::args::Dims;
use super::block::{Block, advance};
use super::views::Views;
use crate::host::{self, Disjoint};
use crate::parts::{Part, parts};
use crate::simd::{Real, put, vectorized};

/// Lanes of a block: wide enough to hide latencies, narrow where there are few channels to share among threads.
pub(super) const WIDE: usize = 64;
pub(super) const NARROW: usize = 16;

/// Tokens between asking for a row and using it.
pub(super) const AHEAD: usize = 4;

/// Whether there are enough channels for wide blocks on every thread.
pub(super) fn is_wide(dims: &Dims) -> bool {
    let channels = dims.e / dims.g;
    channels > NARROW && dims.segments.len() * dims.g * channels.div_ceil(WIDE) >= crate::host::threads()
}

/// Outputs (b, l, e) and final states (sequences, e, n).
pub(super) fn forward<T: Real>(v: &Views<T>, dims: &Dims) -> (Vec<T>, Vec<T>) {
    if is_wide(dims) { blocks::<T, WIDE>(v, dims) } else { blocks::<T, NARROW>(v, dims) }
}

fn blocks<T: Real, const W: usize>(v: &Views<T>, dims: &Dims) -> (Vec<T>, Vec<T>) {
    let mut y = host::zeros(dims.b * dims.l * dims.e);
    let mut states = vec![T::ZERO; dims.segments.len() * dims.e * dims.n];
    let outputs = (Disjoint::new(&mut y), Disjoint::new(&mut states));
    let (tasks, _) = parts(dims.segments.len(), dims.g, dims.e / dims.g, W);
    host::parallel(tasks.len(), |i| {
        vectorized(
            #[inline(always)]
            || {
                let end = tasks[i].start + tasks[i].len;
                for first in (tasks[i].start..end).step_by(W) {
                    let block = Block::<T, W>::new(v, dims.n, tasks[i].group, first, W.min(end - first));
                    scan(v, dims, &block, &tasks[i], &outputs);
                }
            },
        );
    });
    (y, states)
}

/// One block of one sequence.
#[inline(always)]
fn scan<T: Real, const W: usize>(
    v: &Views<T>,
    dims: &Dims,
    block: &Block<T, W>,
    part: &Part,
    (y, states): &(Disjoint<T>, Disjoint<T>),
) {
    let segment = dims.segments[part.segment];
    let size = dims.e * dims.n;
    let mut h = block.load_state(v.state.map(|s| &s[part.segment * size..][..size]));
    for t in segment.start..segment.start + segment.len {
        block.prefetch(t + AHEAD);
        y.prefetch((t + AHEAD) * dims.e + block.first, block.len);
        let dt = block.steps(&block.raw_steps(t));
        let (mut u, mut out) = (block.x(t), block.d);
        for i in 0..W {
            out[i] *= u[i];
            u[i] *= dt[i];
        }
        let (b, c) = block.maps(t);
        for (((h, a), &b), &c) in h.iter_mut().zip(&block.a).zip(b).zip(c) {
            advance(h, &mut out, a, (&dt, &u), (b, c));
        }
        if let Some(z) = block.z(t) {
            for (out, z) in out.iter_mut().zip(&z) {
                *out *= z.silu();
            }
        }
        // SAFETY: this task alone writes these channels of this sequence.
        let row = unsafe { y.slice(t * dims.e + block.first, block.len) };
        put(row, &out);
    }
    // SAFETY: as above.
    let state = unsafe { states.slice(part.segment * size + block.first * dims.n, block.len * dims.n) };
    block.store_state(&h, state);
}
