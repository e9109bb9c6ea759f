//! The map of quantised weights on the CPU.
//!
//! Few rows (decoding): each weight becomes a number in a register and meets x in f32, so that reading the blocks is all
//! that it costs, and nothing but the weights is rounded. Many rows: panels of numbers, and matrix multiplications.

use std::borrow::Cow;

use super::blocks::{Block, Dot, GROUP, Group, HALF, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Unpack};
use super::{BlockFormat, Quantised};
use crate::host::{self, Disjoint, Rows};
use crate::simd::vectorized;

/// Up to so many rows, weights are made numbers in registers, anew for each few of them.
const FEW: usize = 16;

/// As [`FEW`], where tiles of rows share what a block gives.
const FEW_TILED: usize = 64;

/// Instructions that a sweep over blocks is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instructions {
    /// Whatever the compiler makes of plain loops.
    Portable,
    /// 256-bit registers.
    Avx2,
    /// 512-bit registers.
    Avx512,
}

impl Instructions {
    /// Those that this machine has, best first.
    pub(super) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let (avx2, avx512) = (
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c"),
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq"),
        );
        #[cfg(not(target_arch = "x86_64"))]
        let (avx2, avx512) = (false, false);
        let sets = [(Self::Avx512, avx2 && avx512), (Self::Avx2, avx2), (Self::Portable, true)];
        sets.into_iter().filter(|(_, there)| *there).map(|(set, _)| set)
    }
}

/// A block that every sweep on this kind of machine can read.
#[cfg(target_arch = "x86_64")]
use super::x86::Wide as Kernel;
#[cfg(not(target_arch = "x86_64"))]
use Block as Kernel;

/// Bytes of blocks that a thread must have to itself to be worth waking: about a microsecond's read.
const GRAIN_BYTES: usize = 32 << 10;

/// Numbers of a panel at the most.
const PANEL: usize = 1 << 20;

/// Calls `$f::<B>` for the block type of a format.
macro_rules! of_format {
    ($format:expr, $f:ident($($argument:expr),*)) => {
        match $format {
            BlockFormat::Q4_0 => $f::<Q4_0>($($argument),*),
            BlockFormat::Q4_1 => $f::<Q4_1>($($argument),*),
            BlockFormat::Q5_0 => $f::<Q5_0>($($argument),*),
            BlockFormat::Q5_1 => $f::<Q5_1>($($argument),*),
            BlockFormat::Q8_0 => $f::<Q8_0>($($argument),*),
            BlockFormat::Q4K => $f::<Q4K>($($argument),*),
            BlockFormat::Q5K => $f::<Q5K>($($argument),*),
            BlockFormat::Q6K => $f::<Q6K>($($argument),*),
        }
    };
}

/// `x wᵀ + bias`, (x.rows, w.rows), for x of as many columns as w.
pub(super) fn forward(x: Rows<f32>, w: &Quantised, bias: Option<&[f32]>, set: Instructions) -> Vec<f32> {
    let [outputs, columns] = w.dims;
    let mut y = vec![0.0; x.rows * outputs];
    if x.rows <= if set == Instructions::Portable { FEW } else { FEW_TILED } {
        of_format!(w.format, few(x, w, bias, &mut y, set));
        return y;
    }
    if let Some(bias) = bias {
        y.chunks_exact_mut(outputs.max(1)).for_each(|row| row.copy_from_slice(bias));
    }
    let rows = (PANEL / columns.max(1)).max(1);
    let mut panel = vec![0.0; (rows * columns).min(outputs * columns)];
    for first in (0..outputs).step_by(rows) {
        let n = rows.min(outputs - first);
        let numbers = &mut panel[..n * columns];
        unpack(w, first, numbers);
        let (xs, sizes) = (x.tail(0, 0), (x.rows, columns, n));
        let y = &mut y[first..];
        host::gemm_parallel(
            sizes,
            xs,
            (x.stride(), 1),
            numbers,
            (1, columns),
            y,
            (outputs, 1),
            bias.is_some(),
        );
    }
    y
}

/// The numbers of whole rows from `first` on, on all threads.
pub(super) fn unpack(w: &Quantised, first: usize, to: &mut [f32]) {
    of_format!(w.format, unpack_rows(w, first, to));
}

/// The numbers of one row, on this thread.
pub(super) fn unpack_row(w: &Quantised, row: usize, to: &mut [f32]) {
    of_format!(w.format, unpack_run(w, row, to));
}

/// The blocks of a matrix.
fn blocks<B: Block>(w: &Quantised) -> &[B] {
    let bytes = w.bytes();
    // SAFETY: blocks are made of bytes alone, so that any bytes, at any address, are blocks.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<B>()) }
}

fn unpack_rows<B: Block>(w: &Quantised, first: usize, to: &mut [f32]) {
    let columns = w.dims[1];
    let rows = to.len().checked_div(columns).unwrap_or(0);
    let to = Disjoint::new(to);
    host::spinning(rows, ((1 << 14) / columns.max(1)).max(1), |range| {
        // SAFETY: ranges do not overlap.
        let to = unsafe { to.slice(range.start * columns, range.len() * columns) };
        unpack_run::<B>(w, first + range.start, to);
    });
}

fn unpack_run<B: Block>(w: &Quantised, first: usize, to: &mut [f32]) {
    let per_row = w.dims[1] / (B::GROUPS * GROUP);
    let blocks = &blocks::<B>(w)[first * per_row..];
    vectorized(
        #[inline(always)]
        || {
            for (block, to) in blocks.iter().zip(to.as_chunks_mut::<GROUP>().0.chunks_exact_mut(B::GROUPS)) {
                block.visit(&mut Unpack(to));
            }
        },
    );
}

/// Few rows of x against all weights.
pub(super) struct Sweep<'a, B> {
    /// Row by row, as many numbers as a weight row has, in the order of the instructions.
    pub(super) x: &'a [f32],
    /// The sums of its groups.
    pub(super) sums: &'a [f32],
    pub(super) rows: usize,
    pub(super) blocks: &'a [B],
    /// Blocks of a weight row.
    pub(super) per_row: usize,
    pub(super) bias: Option<&'a [f32]>,
    /// (rows, outputs)
    pub(super) y: &'a Disjoint<f32>,
    pub(super) outputs: usize,
}

fn few<B: Kernel>(x: Rows<f32>, w: &Quantised, bias: Option<&[f32]>, y: &mut [f32], set: Instructions) {
    let [outputs, columns] = w.dims;
    let per_row = columns / (B::GROUPS * GROUP);
    let dense: Cow<'_, [f32]> = match x.rows {
        1 => x.row(0).into(),
        _ => (0..x.rows).flat_map(|i| x.row(i)).copied().collect::<Vec<f32>>().into(),
    };
    let sums = group_sums(dense.as_chunks().0);
    #[cfg(target_arch = "x86_64")]
    let dense = super::x86::arranged(dense, set);
    let y = Disjoint::new(y);
    let sweep =
        Sweep { x: &dense, sums: &sums, rows: x.rows, blocks: blocks::<B>(w), per_row, bias, y: &y, outputs };
    let grain = (GRAIN_BYTES / (per_row * size_of::<B>()).max(1)).max(1);
    host::spinning(outputs, grain, |range| match set {
        // SAFETY: this instruction set is one that the machine has.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 => unsafe { super::x86::avx512(&sweep, range) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => unsafe { super::x86::avx2(&sweep, range) },
        _ => portable(&sweep, range),
    });
}

fn portable<B: Block>(sweep: &Sweep<'_, B>, range: std::ops::Range<usize>) {
    let groups = sweep.per_row * B::GROUPS;
    vectorized(
        #[inline(always)]
        || {
            for o in range {
                let row = &sweep.blocks[o * sweep.per_row..][..sweep.per_row];
                let bias = sweep.bias.map_or(0.0, |b| b[o]);
                for m in 0..sweep.rows {
                    let x = &sweep.x.as_chunks().0[m * groups..][..groups];
                    // SAFETY: an output belongs to the one thread whose range holds it.
                    let y = unsafe { sweep.y.slice(m * sweep.outputs + o, 1) };
                    y[0] = dot(row, x, &sweep.sums[m * groups..][..groups]) + bias;
                }
            }
        },
    );
}

fn group_sums(x: &[Group]) -> Vec<f32> {
    vectorized(
        #[inline(always)]
        || x.iter().map(|group| total(std::array::from_fn(|i| group[i] + group[HALF + i]))).collect(),
    )
}

/// The sum of products of a row of blocks with x.
#[inline(always)]
fn dot<B: Block>(row: &[B], x: &[Group], sums: &[f32]) -> f32 {
    let (mut lanes, mut rest) = ([0.0; HALF], 0.0);
    let parts = x.chunks_exact(B::GROUPS).zip(sums.chunks_exact(B::GROUPS));
    for (block, (x, sums)) in row.iter().zip(parts) {
        block.visit(&mut Dot { x, sums, lanes: &mut lanes, rest: &mut rest });
    }
    total(lanes) + rest
}

#[inline(always)]
fn total(mut lanes: [f32; HALF]) -> f32 {
    let mut half = HALF / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}
