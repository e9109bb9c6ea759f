//! The map of quantised weights on the CPU.
//!
//! Few rows (decoding): weights are taken apart in registers and meet x there, in whole numbers or in f32. Many rows: panels
//! of numbers, and matrix multiplications, of an x rounded alike where it is to be.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::blocks::{Block, Dot, GROUP, Group, HALF, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Unpack};
use super::rounded::{Activations, Rounded};
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
    /// Those, and sums of four products of bytes.
    Vnni,
}

impl Instructions {
    /// Those that this machine has, best first.
    pub(super) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let (avx2, avx512, vnni) = (
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c"),
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq"),
            is_x86_feature_detected!("avx512vnni"),
        );
        #[cfg(not(target_arch = "x86_64"))]
        let (avx2, avx512, vnni) = (false, false, false);
        let sets = [
            (Self::Vnni, avx2 && avx512 && vnni),
            (Self::Avx512, avx2 && avx512),
            (Self::Avx2, avx2),
            (Self::Portable, true),
        ];
        sets.into_iter().filter(|(_, there)| *there).map(|(set, _)| set)
    }
}

/// A block that every sweep on this kind of machine can read.
#[cfg(target_arch = "x86_64")]
trait Kernel: super::x86::Wide + super::x86::Whole {}
#[cfg(target_arch = "x86_64")]
impl<B: super::x86::Wide + super::x86::Whole> Kernel for B {}
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
    let few = x.rows <= if set == Instructions::Portable { FEW } else { FEW_TILED };
    let in_whole_numbers = w.activations == Activations::Rounded;
    if few && in_whole_numbers && set != Instructions::Portable {
        #[cfg(target_arch = "x86_64")]
        of_format!(w.format, few_rounded(&Rounded::new(&dense(x)), x.rows, w, bias, &mut y, set));
        return y;
    }
    let rounded;
    let x = if in_whole_numbers {
        rounded = Rounded::new(&dense(x)).dense();
        Rows::dense(&rounded, columns)
    } else {
        x
    };
    if few {
        of_format!(w.format, few_exact(x, w, bias, &mut y, set));
    } else {
        many(x, w, bias, &mut y);
    }
    y
}

/// The rows one after the other.
fn dense(x: Rows<f32>) -> Vec<f32> {
    let mut dense = Vec::with_capacity(x.rows * x.width);
    (0..x.rows).for_each(|i| dense.extend_from_slice(x.row(i)));
    dense
}

/// Panels of numbers, and matrix multiplications.
fn many(x: Rows<f32>, w: &Quantised, bias: Option<&[f32]>, y: &mut [f32]) {
    let [outputs, columns] = w.dims;
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
}

/// The numbers of whole rows from `first` on, on all threads.
pub(super) fn unpack(w: &Quantised, first: usize, to: &mut [f32]) {
    of_format!(w.format, unpack_rows(w, first, to));
}

/// The numbers of one row, on this thread.
pub(super) fn unpack_row(w: &Quantised, row: usize, to: &mut [f32]) {
    of_format!(w.format, unpack_run(w, row, to));
}

/// Blocks with a scale or an offset that is not finite.
pub(super) fn non_finite(w: &Quantised) -> usize {
    const INFINITY: u16 = 0x7c00;
    let (halves, blocks, found) = (w.format.halves(), w.bytes(), AtomicUsize::new(0));
    let bytes = w.format.bytes();
    host::spinning(blocks.len() / bytes, GRAIN_BYTES / bytes, |range| {
        let exponent = |block: &[u8], at: usize| u16::from_le_bytes([block[at], block[at + 1]]) & INFINITY;
        let bad = |block: &&[u8]| halves.iter().any(|&at| exponent(block, at) == INFINITY);
        let blocks = blocks[range.start * bytes..range.end * bytes].chunks_exact(bytes);
        found.fetch_add(blocks.filter(bad).count(), Ordering::Relaxed);
    });
    found.into_inner()
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
pub(super) struct Sweep<'a, X, B> {
    /// Row by row, as many numbers as a weight row has.
    pub(super) x: &'a X,
    pub(super) rows: usize,
    pub(super) blocks: &'a [B],
    /// Blocks of a weight row.
    pub(super) per_row: usize,
    pub(super) bias: Option<&'a [f32]>,
    /// (rows, outputs)
    pub(super) y: &'a Disjoint<f32>,
    pub(super) outputs: usize,
}

/// Rows of x as they are.
pub(super) struct Floats {
    /// In the order of the instructions.
    pub(super) numbers: Vec<f32>,
    /// The sums of groups.
    pub(super) sums: Vec<f32>,
}

/// All outputs of a sweep, shared out over threads.
fn sweep<X: Sync, B: Block>(
    (x, rows): (&X, usize),
    w: &Quantised,
    bias: Option<&[f32]>,
    y: &mut [f32],
    run: impl Fn(&Sweep<'_, X, B>, Range<usize>) + Sync,
) {
    let [outputs, columns] = w.dims;
    let per_row = columns / (B::GROUPS * GROUP);
    let y = Disjoint::new(y);
    let sweep = Sweep { x, rows, blocks: blocks::<B>(w), per_row, bias, y: &y, outputs };
    let grain = (GRAIN_BYTES / (per_row * size_of::<B>()).max(1)).max(1);
    host::spinning(outputs, grain, |range| run(&sweep, range));
}

fn few_exact<B: Kernel>(x: Rows<f32>, w: &Quantised, bias: Option<&[f32]>, y: &mut [f32], set: Instructions) {
    let numbers = dense(x);
    let sums = group_sums(numbers.as_chunks().0);
    #[cfg(target_arch = "x86_64")]
    let numbers = super::x86::arranged(numbers, set);
    let floats = Floats { numbers, sums };
    sweep((&floats, x.rows), w, bias, y, |sweep: &Sweep<'_, _, B>, range| match set {
        // SAFETY: this instruction set is one that the machine has.
        #[cfg(target_arch = "x86_64")]
        Instructions::Vnni | Instructions::Avx512 => unsafe { super::x86::exact_avx512(sweep, range) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => unsafe { super::x86::exact_avx2(sweep, range) },
        _ => portable(sweep, range),
    });
}

#[cfg(target_arch = "x86_64")]
fn few_rounded<B: Kernel>(
    x: &Rounded,
    rows: usize,
    w: &Quantised,
    bias: Option<&[f32]>,
    y: &mut [f32],
    set: Instructions,
) {
    sweep((x, rows), w, bias, y, |sweep: &Sweep<'_, _, B>, range| match set {
        // SAFETY: this instruction set is one that the machine has.
        Instructions::Vnni => unsafe { super::x86::rounded_vnni(sweep, range) },
        // SAFETY: as above, as whoever has AVX-512 has AVX2.
        _ => unsafe { super::x86::rounded_avx2(sweep, range) },
    });
}

fn portable<B: Block>(sweep: &Sweep<'_, Floats, B>, range: Range<usize>) {
    let groups = sweep.per_row * B::GROUPS;
    vectorized(
        #[inline(always)]
        || {
            for o in range {
                let row = &sweep.blocks[o * sweep.per_row..][..sweep.per_row];
                let bias = sweep.bias.map_or(0.0, |b| b[o]);
                for m in 0..sweep.rows {
                    let x = &sweep.x.numbers.as_chunks().0[m * groups..][..groups];
                    // SAFETY: an output belongs to the one thread whose range holds it.
                    let y = unsafe { sweep.y.slice(m * sweep.outputs + o, 1) };
                    y[0] = dot(row, x, &sweep.x.sums[m * groups..][..groups]) + bias;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Small, so that an interpreter which knows more instructions than the machine can run it, too:
    ///
    /// ```text
    /// RUSTFLAGS="-Ctarget-feature=+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512vnni" \
    ///     cargo +nightly miri test -p semisep-kernels --lib every_set_of_instructions
    /// ```
    #[test]
    fn every_set_of_instructions_gives_what_plain_loops_give() {
        let mut state = 1_u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        for format in BlockFormat::ALL {
            let (columns, outputs) = (if format.weights() == GROUP { 11 * GROUP } else { 512 }, 2);
            let mut blocks: Vec<u8> = (0..outputs * columns / format.weights() * format.bytes())
                .map(|_| (random() >> 24) as u8)
                .collect();
            for block in blocks.chunks_exact_mut(format.bytes()) {
                format.halves().iter().for_each(|at| block[at + 1] &= 0b1011_1111);
            }
            let w = Quantised::new(format, (outputs, columns), blocks).unwrap();
            let x: Vec<f32> = (0..5 * columns).map(|_| random() as i32 as f32 / i32::MAX as f32).collect();
            for activations in [Activations::Exact, Activations::Rounded] {
                let w = w.clone().with_activations(activations);
                for rows in [1, 2, 5] {
                    let x = Rows::dense(&x[..rows * columns], columns);
                    let bias = Some(&[0.5, -2.0][..]);
                    let want = forward(x, &w, bias, Instructions::Portable);
                    let largest = want.iter().fold(0.0_f32, |largest, y| largest.max(y.abs()));
                    for set in Instructions::available() {
                        for (got, want) in forward(x, &w, bias, set).iter().zip(&want) {
                            assert!(
                                (got - want).abs() <= 1e-5 * largest,
                                "{format} {activations:?} {set:?} {rows} rows: {got}, {want}"
                            );
                        }
                    }
                }
            }
        }
    }
}
