//! The sweep over quantised weights with the registers of AVX2 and AVX-512.
//!
//! Left to themselves, compilers keep the sums of [`super::blocks`] in memory. Here eight groups of 32 weights at a time
//! are taken apart by byte operations on a whole group ([`formats`]), an instruction set makes numbers of the bytes and
//! multiplies them ([`avx2`], [`avx512`]), and a tile of rows of x shares what they give. Weight rows come one after the
//! other: a single run through memory is what the machine reads ahead best.

mod avx2;
mod avx512;
mod bytes;
mod formats;
mod integers;

use std::arch::x86_64::*;
use std::marker::PhantomData;

pub(super) use self::integers::Whole;
use self::integers::{Fours, Integers, Pairs};
use super::blocks::{Block, GROUP};
use super::cpu::{Floats, Instructions, Sweep};
use super::rounded::Rounded;

/// Groups that are taken apart together, and whose scales are found together: a block of 256 weights or eight of 32.
const TOGETHER: usize = 8;

/// A register of numbers of an instruction set, and a group of 32 in several of them.
///
/// # Safety
/// Every function may only be called where the instruction set is there.
pub(super) unsafe trait Register: Copy {
    /// Rows of x that a tile has registers for.
    const ROWS: usize;

    /// Numbers made of nibbles, times this, are what the nibbles stand for.
    const NIBBLE: f32;

    /// A group of 32 numbers.
    type Group: Copy;

    /// The scales of a group's two halves.
    type Halves: Copy;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn plus(self, other: Self) -> Self;
    unsafe fn total(self) -> f32;
    unsafe fn halves(scales: [f32; 2]) -> Self::Halves;

    /// Signed bytes, in order.
    unsafe fn signed(bytes: __m256i) -> Self::Group;
    /// Signed bytes, from memory.
    unsafe fn stored(bytes: &[i8; GROUP]) -> Self::Group;
    /// The low nibbles of bytes, then the high ones, less 8.
    unsafe fn nibbles(bytes: __m128i) -> Self::Group;
    /// The low nibbles of bytes, and the high ones, less 8.
    unsafe fn two_groups(bytes: &[u8; GROUP]) -> [Self::Group; 2];

    /// Adds the products with a group of an arranged x, times `scale`.
    unsafe fn add(self, group: Self::Group, x: *const f32, scale: Self) -> Self;
    /// As [`Register::add`], each half with its own scale.
    unsafe fn add_halves(self, group: Self::Group, x: *const f32, scales: Self::Halves) -> Self;
}

/// A block that is taken apart in registers.
pub(super) trait Wide: Block {
    /// Whether groups have offsets.
    const OFFSETS: bool;

    /// Adds the products of these blocks' groups, at most [`TOGETHER`].
    ///
    /// # Safety
    /// The instruction set is there, and x is long enough.
    unsafe fn add<R: Register, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<R, M>);
}

/// A block of one group.
pub(super) trait Single {
    /// Its numbers before they are scaled.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn numbers<R: Register>(&self) -> R::Group;
}

/// A tile's sums of M rows of x: shown the weights of one row, group by group.
pub(super) struct Sums<R, const M: usize> {
    /// The next groups of every row of x, and their sums.
    x: [*const f32; M],
    sums: [*const f32; M],
    /// Two sums, so that an addition need not wait for the one before: groups take turns.
    lanes: [[R; M]; 2],
    /// The part of offsets.
    rest: [__m256; M],
}

impl<R: Register, const M: usize> Sums<R, M> {
    /// Goes on by so many groups.
    #[inline(always)]
    fn pass(&mut self, groups: usize) {
        self.x = self.x.map(|x| x.wrapping_add(groups * GROUP));
        self.sums = self.sums.map(|sums| sums.wrapping_add(groups));
    }

    /// Adds the products of group `index`, whose turn it is by `TURN`.
    #[inline(always)]
    unsafe fn group<const TURN: usize>(&mut self, index: usize, scale: R, group: R::Group) {
        let lanes = &mut self.lanes[TURN];
        for m in 0..M {
            // SAFETY: the instruction set is there, says the caller; so is x.
            unsafe { lanes[m] = lanes[m].add(group, self.x[m].add(index * GROUP), scale) };
        }
    }

    /// [`Sums::group`] with a scale for each half.
    #[inline(always)]
    unsafe fn halves<const TURN: usize>(&mut self, index: usize, scales: R::Halves, group: R::Group) {
        let lanes = &mut self.lanes[TURN];
        for m in 0..M {
            // SAFETY: the instruction set is there, says the caller; so is x.
            unsafe { lanes[m] = lanes[m].add_halves(group, self.x[m].add(index * GROUP), scales) };
        }
    }

    /// Adds the products of blocks of one group each, with their scales.
    #[inline(always)]
    unsafe fn groups<B: Single, const N: usize>(&mut self, blocks: &[B; N], scales: __m256) {
        let mut room = [[0.0; TOGETHER]];
        // SAFETY: the instruction set is there, says the caller.
        let [scales] = unsafe { bytes::to_memory([scales], &mut room) };
        let (pairs, last) = blocks.as_chunks::<2>();
        for (i, [first, second]) in pairs.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                self.group::<0>(2 * i, R::splat(scales[2 * i]), first.numbers::<R>());
                self.group::<1>(2 * i + 1, R::splat(scales[2 * i + 1]), second.numbers::<R>());
            }
        }
        if let [last] = last {
            let i = 2 * pairs.len();
            // SAFETY: as above.
            unsafe { self.group::<0>(i, R::splat(scales[i]), last.numbers::<R>()) };
        }
    }

    /// Adds the offsets of N groups.
    #[inline(always)]
    unsafe fn offsets<const N: usize>(&mut self, offsets: __m256) {
        for m in 0..M {
            // SAFETY: the instruction set is there, says the caller; so are the sums of N groups.
            unsafe {
                self.rest[m] = _mm256_fmadd_ps(offsets, bytes::eight::<N>(self.sums[m]), self.rest[m]);
            }
        }
    }
}

/// Rows of x in the order in which these instructions want them.
pub(super) fn arranged(x: Vec<f32>, set: Instructions) -> Vec<f32> {
    match set {
        Instructions::Avx2 => avx2::arranged(&x),
        Instructions::Vnni | Instructions::Avx512 | Instructions::Portable => x,
    }
}

/// The exact sweep with 512-bit registers, over an x of [`arranged`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) unsafe fn exact_avx512<B: Wide>(sweep: &Sweep<'_, Floats, B>, range: std::ops::Range<usize>) {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { run::<Exact<__m512>, B>(sweep, range) }
}

/// The exact sweep with 256-bit registers, over an x of [`arranged`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn exact_avx2<B: Wide>(sweep: &Sweep<'_, Floats, B>, range: std::ops::Range<usize>) {
    // SAFETY: as above.
    unsafe { run::<Exact<__m256>, B>(sweep, range) }
}

/// The sweep in whole numbers, with the products of VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn rounded_vnni<B: Whole>(sweep: &Sweep<'_, Rounded, B>, range: std::ops::Range<usize>) {
    // SAFETY: as above.
    unsafe { run::<Integers<Fours>, B>(sweep, range) }
}

/// The sweep in whole numbers.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn rounded_avx2<B: Whole>(sweep: &Sweep<'_, Rounded, B>, range: std::ops::Range<usize>) {
    // SAFETY: as above.
    unsafe { run::<Integers<Pairs>, B>(sweep, range) }
}

/// Some rows of x against one row of weights.
trait Tile<B> {
    /// What rows of x are held as.
    type X;

    /// Rows of x that there are registers for.
    const ROWS: usize;

    /// The products of rows `row..row + M` of x with the weight row `o`.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn tile<const M: usize>(sweep: &Sweep<'_, Self::X, B>, row: usize, o: usize) -> [f32; M];
}

/// Weight rows that meet a tile of x before the next tile does: both stay in the nearest cache.
const CHUNK: usize = 16;

#[inline(always)]
unsafe fn run<T: Tile<B>, B>(sweep: &Sweep<'_, T::X, B>, range: std::ops::Range<usize>) {
    for first in range.clone().step_by(CHUNK) {
        let chunk = first..range.end.min(first + CHUNK);
        let mut row = 0;
        while row < sweep.rows {
            // SAFETY: as above.
            row += unsafe {
                match sweep.rows - row {
                    4.. if T::ROWS >= 4 => tiles::<T, B, 4>(sweep, row, chunk.clone()),
                    2.. => tiles::<T, B, 2>(sweep, row, chunk.clone()),
                    _ => tiles::<T, B, 1>(sweep, row, chunk.clone()),
                }
            };
        }
    }
}

/// Rows `row..row + M` of x against these weight rows; returns M.
#[inline(always)]
unsafe fn tiles<T: Tile<B>, B, const M: usize>(
    sweep: &Sweep<'_, T::X, B>,
    row: usize,
    chunk: std::ops::Range<usize>,
) -> usize {
    for o in chunk {
        // SAFETY: as above.
        let products = unsafe { T::tile::<M>(sweep, row, o) };
        let bias = sweep.bias.map_or(0.0, |bias| bias[o]);
        for (m, product) in products.into_iter().enumerate() {
            // SAFETY: an output belongs to the one thread whose range holds it.
            let y = unsafe { sweep.y.slice((row + m) * sweep.outputs + o, 1) };
            y[0] = product + bias;
        }
    }
    M
}

/// Tiles of floats in these registers.
struct Exact<R>(PhantomData<R>);

impl<R: Register, B: Wide> Tile<B> for Exact<R> {
    type X = Floats;
    const ROWS: usize = R::ROWS;

    #[inline(always)]
    unsafe fn tile<const M: usize>(sweep: &Sweep<'_, Floats, B>, row: usize, o: usize) -> [f32; M] {
        let groups = sweep.per_row * B::GROUPS;
        let weights = &sweep.blocks[o * sweep.per_row..][..sweep.per_row];
        let at = |m: usize| (row + m) * groups..(row + m + 1) * groups;
        let Floats { numbers, sums } = sweep.x;
        let x: [*const f32; M] =
            std::array::from_fn(|m| numbers.as_chunks::<GROUP>().0[at(m)].as_ptr().cast());
        let sums: [*const f32; M] = std::array::from_fn(|m| sums[at(m)].as_ptr());
        // SAFETY: the instruction set is there, says the caller.
        let (lanes, rest) = unsafe { ([[R::splat(0.0); M]; 2], [_mm256_setzero_ps(); M]) };
        let mut sums = Sums { x, sums, lanes, rest };
        // SAFETY: x has the numbers, and sums the sums, of as many groups as the blocks of the weight row have.
        unsafe {
            if B::GROUPS == TOGETHER {
                sum::<R, B, 1, M>(weights, &mut sums);
            } else {
                sum::<R, B, 1, M>(sum::<R, B, TOGETHER, M>(weights, &mut sums), &mut sums);
            }
        }
        let Sums { lanes, rest, .. } = sums;
        std::array::from_fn(|m| {
            // SAFETY: the instruction set is there.
            let sum = unsafe { lanes[0][m].plus(lanes[1][m]).total() };
            // SAFETY: as above.
            sum + if B::OFFSETS { unsafe { rest[m].total() } } else { 0.0 }
        })
    }
}

/// Adds the products of N blocks at a time; returns the blocks that are left.
#[inline(always)]
unsafe fn sum<'a, R: Register, B: Wide, const N: usize, const M: usize>(
    weights: &'a [B],
    to: &mut Sums<R, M>,
) -> &'a [B] {
    let (whole, left) = weights.as_chunks::<N>();
    for blocks in whole {
        // SAFETY: the caller's promise.
        unsafe { B::add(blocks, to) };
        to.pass(N * B::GROUPS);
    }
    left
}
