//! Attention on the CPU.
//!
//! Queries go in blocks of a few tokens, with all query heads that share a key head: these are the *columns* of every
//! tile, the keys its rows. Stored so, all vectors run along the columns: neither keys nor values are ever transposed or
//! copied, the softmax needs no horizontal sums, and heads that share keys share every load of them.

mod backward;
mod bias;
mod buffer;
mod decode;
mod forward;
mod heads;

pub(super) use backward::{Saved, backward};
pub(super) use bias::Bias;
pub(super) use decode::{decode, is_decode};
pub(super) use forward::forward;
pub(super) use heads::Heads;

use std::sync::atomic::{AtomicUsize, Ordering};

use super::plan::{Plan, Sequence};
use crate::host;
use crate::simd::Real;

/// Columns of a full tile. Measured: from 64 to 128, and 96 to 192 keys, the matrix products run at their full speed.
const COLUMNS: usize = 96;
/// Keys of a full tile.
const KEYS: usize = 192;
/// Columns are padded to a multiple of this.
const LANES: usize = 16;

/// Some tokens of one sequence, with the query heads of one key head.
#[derive(Debug, Clone, Copy)]
struct Block {
    sequence: Sequence,
    /// Key head.
    head: usize,
    /// First query of the sequence, and how many.
    first: usize,
    tokens: usize,
}

impl Block {
    /// Columns in use, and with padding.
    fn columns(&self, plan: &Plan) -> (usize, usize) {
        let used = self.tokens * plan.group;
        (used, used.next_multiple_of(LANES))
    }

    /// Keys that some query of the block sees.
    fn keys(&self, plan: &Plan) -> std::ops::Range<usize> {
        let last = plan.keys(&self.sequence, self.first + self.tokens - 1);
        plan.keys(&self.sequence, self.first).start..last.end
    }

    /// Sets the entries of a tile (keys from `key` on, `padded` columns) that the query does not see.
    fn mask<T: Real>(&self, plan: &Plan, key: usize, padded: usize, tile: &mut [T], hidden: T) {
        let used = self.tokens * plan.group;
        for (t, row) in tile.chunks_exact_mut(padded).enumerate() {
            let seen = plan.queries(&self.sequence, key + t);
            let column = |i: usize| (i.saturating_sub(self.first) * plan.group).min(used);
            let (start, end) = (column(seen.start), column(seen.end));
            row[..start].fill(hidden);
            row[end.max(start)..used].fill(hidden);
        }
    }
}

/// Tokens a block, so that full tiles are had where there is work enough, and all threads have some where not.
fn block_tokens(plan: &Plan) -> usize {
    let threads = host::threads();
    let h_kv = plan.h / plan.group;
    let mut tokens = (COLUMNS / plan.group).max(1);
    while tokens > 1 && tokens * plan.group > LANES {
        let blocks: usize = plan.sequences.iter().map(|s| s.lq.div_ceil(tokens) * h_kv).sum();
        if blocks >= 2 * threads {
            break;
        }
        tokens /= 2;
    }
    tokens
}

/// Columns of the widest block, padded.
fn widest(plan: &Plan, tokens: usize) -> usize {
    (tokens * plan.group).next_multiple_of(LANES)
}

/// `f(scratch, i)` for each `i < n`, started in order, with one scratch a thread.
fn work<S>(n: usize, scratch: impl Fn() -> S + Sync, f: impl Fn(&mut S, usize) + Sync) {
    let next = AtomicUsize::new(0);
    host::parallel(n.min(host::threads()), |_| {
        let mut scratch = scratch();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                break;
            }
            f(&mut scratch, i);
        }
    });
}

/// Softmax scores of a tile after the scale: bounded by the cap.
#[inline(always)]
fn cap_scores<T: Real>(tile: &mut [T], cap: Option<f64>) {
    if let Some(cap) = cap {
        let (cap, inverse) = (T::real(cap), T::real(1.0 / cap));
        for s in tile {
            *s = cap * Real::tanh(*s * inverse);
        }
    }
}

#[inline(always)]
fn lanes<T: Real>(row: &[T], c: usize) -> [T; LANES] {
    let mut lanes = [T::ZERO; LANES];
    lanes.copy_from_slice(&row[c..c + LANES]);
    lanes
}
