//! Scores that depend on the distance of key and query, laid out as the tiles read them.

use super::super::plan::Plan;
use super::Block;
use crate::simd::Real;

/// The table (h, n) as (h_kv, reach, group): a row of a tile, whose columns are (token, head of the group), reads one
/// piece of it. Distances from n - 1 on share the last entry.
pub(in super::super) struct Bias<T> {
    values: Vec<T>,
    reach: usize,
}

impl<T: Real> Bias<T> {
    pub(in super::super) fn new(plan: &Plan, table: &[T], n: usize) -> Self {
        let reach = plan.reach();
        let mut values = Vec::with_capacity(plan.h * reach);
        for head in 0..plan.h / plan.group {
            for distance in 0..reach {
                let at = |j: usize| table[(head * plan.group + j) * n + distance.min(n - 1)];
                values.extend((0..plan.group).map(at));
            }
        }
        Self { values, reach }
    }

    /// One key head's part, (reach, group).
    #[inline(always)]
    pub(super) fn head(&self, plan: &Plan, head: usize) -> &[T] {
        let size = self.reach * plan.group;
        &self.values[head * size..(head + 1) * size]
    }

    /// Adds the bias to a tile of scores (keys from `key` on, `padded` columns).
    #[inline(always)]
    pub(super) fn add(&self, plan: &Plan, block: &Block, key: usize, padded: usize, tile: &mut [T]) {
        let table = self.head(plan, block.head);
        for (t, row) in tile.chunks_exact_mut(padded).enumerate() {
            let (start, piece) = columns(plan, block, key + t, table.len());
            for (s, &b) in row[start..].iter_mut().zip(&table[piece]) {
                *s += b;
            }
        }
    }
}

/// Adds a tile of slopes up by distance, into `sums` (reach, group): the other way round.
#[inline(always)]
pub(super) fn gather<T: Real>(
    plan: &Plan,
    block: &Block,
    key: usize,
    padded: usize,
    tile: &[T],
    sums: &mut [T],
) {
    for (t, row) in tile.chunks_exact(padded).enumerate() {
        let (start, piece) = columns(plan, block, key + t, sums.len());
        for (sum, &s) in sums[piece].iter_mut().zip(&row[start..]) {
            *sum += s;
        }
    }
}

/// The first column whose query is at or after key `t`, and the piece of the table for it and those that follow.
#[inline(always)]
fn columns(plan: &Plan, block: &Block, t: usize, table: usize) -> (usize, std::ops::Range<usize>) {
    let used = block.tokens * plan.group;
    let first = block.first + block.sequence.lk - block.sequence.lq; // its position
    let start = (t.saturating_sub(first) * plan.group).min(used);
    let from = (first.saturating_sub(t) * plan.group).min(table);
    (start, from..(from + used - start).min(table))
}

/// Sums (h_kv, reach, group) as the gradient of the table (h, n).
pub(super) fn fold<T: Real>(plan: &Plan, sums: &[T], n: usize) -> Vec<T> {
    let mut table = vec![T::ZERO; plan.h * n];
    let reach = sums.len() / plan.h.max(1);
    for head in 0..plan.h / plan.group {
        for distance in 0..reach {
            for j in 0..plan.group {
                table[(head * plan.group + j) * n + distance.min(n - 1)] +=
                    sums[(head * reach + distance) * plan.group + j];
            }
        }
    }
    table
}
