//! A (b, l, h, p) tensor read where it lies.

use candle_core::{Layout, Result, Storage, bail};

use super::super::plan::{Plan, Sequence};
use super::{Block, LANES};
use crate::simd::Real;

/// Rows, tokens and heads may lie apart; the features of a head follow one another.
#[derive(Clone, Copy)]
pub(in super::super) struct Heads<'a, T> {
    data: &'a [T],
    row: usize,
    pub(super) token: usize,
    head: usize,
}

impl<'a, T: Real> Heads<'a, T> {
    pub(in super::super) fn new(storage: &'a Storage, layout: &Layout) -> Result<Self> {
        let Storage::Cpu(storage) = storage else { bail!("attention: expected a tensor on the CPU") };
        let (&[row, token, head, feature], &[.., p]) = (layout.stride(), layout.dims()) else {
            bail!("attention: expected rank 4, got {:?}", layout.shape())
        };
        if feature != 1 && p > 1 {
            bail!("attention: the features of a head lie {feature} apart, expected 1");
        }
        Ok(Self {
            data: storage.as_slice::<T>()?.get(layout.start_offset()..).unwrap_or(&[]),
            row,
            token,
            head,
        })
    }

    /// The data from the first feature of this head on.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, token: usize, head: usize) -> &'a [T] {
        &self.data[row * self.row + token * self.token + head * self.head..]
    }

    /// Keys (or values) of a sequence from `key` on.
    #[inline(always)]
    pub(super) fn keys(&self, s: &Sequence, key: usize, head: usize) -> &'a [T] {
        self.at(s.k_row, s.k_start + key, head)
    }

    /// Features of the column's query.
    #[inline(always)]
    fn column(&self, plan: &Plan, block: &Block, column: usize) -> &'a [T] {
        let (i, j) = (block.first + column / plan.group, column % plan.group);
        let s = &block.sequence;
        self.at(s.q_row, s.q_start + i, block.head * plan.group + j)
    }

    /// The block's columns times `factor` as (p, padded), zero in the padding.
    pub(super) fn pack_columns(&self, plan: &Plan, block: &Block, p: usize, factor: T, out: &mut [T]) {
        let (used, padded) = block.columns(plan);
        for start in (0..padded).step_by(LANES) {
            let lanes: [&[T]; LANES] = std::array::from_fn(|l| match start + l < used {
                true => &self.column(plan, block, start + l)[..p],
                false => &[],
            });
            for (d, row) in out.chunks_exact_mut(padded).take(p).enumerate() {
                for (x, lane) in row[start..start + LANES].iter_mut().zip(&lanes) {
                    *x = lane.get(d).map_or(T::ZERO, |&v| v * factor);
                }
            }
        }
    }

    /// The block's columns times `factor` as (used, p).
    pub(super) fn pack_rows(&self, plan: &Plan, block: &Block, p: usize, factor: T, out: &mut [T]) {
        let (used, _) = block.columns(plan);
        for (c, row) in out.chunks_exact_mut(p).take(used).enumerate() {
            for (x, &v) in row.iter_mut().zip(self.column(plan, block, c)) {
                *x = v * factor;
            }
        }
    }
}
