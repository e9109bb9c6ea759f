//! The sweep over quantised weights against activations in whole numbers ([`Rounded`]).
//!
//! A group's 32 products are added up in integers, exactly; its sum becomes a number once, times the scales of both
//! sides.

mod formats;

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::blocks::{Block, GROUP};
use super::super::cpu::Sweep;
use super::super::rounded::Rounded;
use super::{Register, TOGETHER, Tile, bytes};

/// Sums of products of bytes, by one set of instructions.
///
/// # Safety
/// Every function may only be called where the instruction set is there.
pub(in super::super) unsafe trait Products {
    /// Rows of x that a tile has registers for.
    const ROWS: usize;

    /// The products of bytes without a sign, at most 127, and numbers from -127 to 127, four by four.
    unsafe fn unsigned(w: __m256i, x: __m256i) -> __m256i;

    /// The products of bytes with a sign and numbers from -127 to 127, four by four.
    #[inline(always)]
    unsafe fn signed(w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the instruction set is there, says the caller. Two products of at most 128 · 127 are no more than 16
        // bits hold.
        unsafe { Self::unsigned(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) }
    }
}

/// Pairs of products in 16 bits, then pairs of those.
pub(in super::super) struct Pairs;

// SAFETY: AVX2.
unsafe impl Products for Pairs {
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn unsigned(w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)) }
    }
}

/// Four products in one instruction.
pub(in super::super) struct Fours;

// SAFETY: AVX2, AVX-512 VL and VNNI.
unsafe impl Products for Fours {
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn unsigned(w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm256_dpbusd_epi32(_mm256_setzero_si256(), w, x) }
    }
}

/// A block that is taken apart in bytes.
pub(in super::super) trait Whole: Block {
    /// Adds the products of these blocks' groups, at most [`TOGETHER`].
    ///
    /// # Safety
    /// The instruction set is there, and x is long enough.
    unsafe fn add<P: Products, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<P, M>);
}

/// A tile's sums of M rows of x: shown the weights of one row, group by group.
pub(in super::super) struct Sums<P, const M: usize> {
    /// The next groups of every row of x, their scales, and their sums.
    x: [*const [i8; GROUP]; M],
    scales: [*const f32; M],
    sums: [*const f32; M],
    /// Two sums, so that an addition need not wait for the one before: groups take turns.
    lanes: [[__m256; M]; 2],
    /// The part of offsets.
    rest: [__m256; M],
    products: PhantomData<P>,
}

/// Scales of eight groups, for each row of x.
type Scales<const M: usize> = [[f32; TOGETHER]; M];

impl<P: Products, const M: usize> Sums<P, M> {
    /// Goes on by so many groups.
    #[inline(always)]
    fn pass(&mut self, groups: usize) {
        self.x = self.x.map(|x| x.wrapping_add(groups));
        self.scales = self.scales.map(|scales| scales.wrapping_add(groups));
        self.sums = self.sums.map(|sums| sums.wrapping_add(groups));
    }

    /// The scales of N groups' products, from those of their weights.
    #[inline(always)]
    unsafe fn scales<const N: usize>(&self, weights: __m256) -> [__m256; M] {
        std::array::from_fn(|m| {
            // SAFETY: the instruction set is there, says the caller; so are the scales of N groups.
            unsafe { _mm256_mul_ps(weights, bytes::eight::<N>(self.scales[m])) }
        })
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

    /// Adds the products of group `index`, bytes without a sign, whose turn it is by `TURN`.
    #[inline(always)]
    unsafe fn unsigned<const TURN: usize>(&mut self, index: usize, scales: &Scales<M>, w: __m256i) {
        for m in 0..M {
            // SAFETY: the instruction set is there, says the caller; so is x.
            unsafe {
                self.put::<TURN>(m, _mm256_set1_ps(scales[m][index]), P::unsigned(w, self.x(m, index)))
            };
        }
    }

    /// [`Sums::unsigned`] for bytes with a sign.
    #[inline(always)]
    unsafe fn signed<const TURN: usize>(&mut self, index: usize, scales: &Scales<M>, w: __m256i) {
        for m in 0..M {
            // SAFETY: as above.
            unsafe { self.put::<TURN>(m, _mm256_set1_ps(scales[m][index]), P::signed(w, self.x(m, index))) };
        }
    }

    /// [`Sums::signed`] with a scale for each half of the group.
    #[inline(always)]
    unsafe fn halves<const TURN: usize>(&mut self, index: usize, scales: [f32; 2], w: __m256i) {
        for m in 0..M {
            // SAFETY: as above.
            unsafe {
                let [first, second] = scales.map(|scale| scale * *self.scales[m].add(index));
                let scales = _mm256_set_m128(_mm_set1_ps(second), _mm_set1_ps(first));
                self.put::<TURN>(m, scales, P::signed(w, self.x(m, index)));
            }
        }
    }

    /// The numbers of a group of x.
    #[inline(always)]
    unsafe fn x(&self, m: usize, index: usize) -> __m256i {
        // SAFETY: the instruction set is there, says the caller; so is x.
        unsafe { _mm256_loadu_si256(self.x[m].add(index).cast()) }
    }

    #[inline(always)]
    unsafe fn put<const TURN: usize>(&mut self, m: usize, scale: __m256, products: __m256i) {
        let lanes = &mut self.lanes[TURN][m];
        // SAFETY: the instruction set is there, says the caller.
        *lanes = unsafe { _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(products), *lanes) };
    }
}

/// Tiles of these products.
pub(super) struct Integers<P>(PhantomData<P>);

impl<P: Products, B: Whole> Tile<B> for Integers<P> {
    type X = Rounded;
    const ROWS: usize = P::ROWS;

    #[inline(always)]
    unsafe fn tile<const M: usize>(sweep: &Sweep<'_, Rounded, B>, row: usize, o: usize) -> [f32; M] {
        let groups = sweep.per_row * B::GROUPS;
        let weights = &sweep.blocks[o * sweep.per_row..][..sweep.per_row];
        let at = |m: usize| (row + m) * groups..(row + m + 1) * groups;
        let x = sweep.x;
        // SAFETY: the instruction set is there, says the caller.
        let none = unsafe { _mm256_setzero_ps() };
        let mut sums = Sums::<P, M> {
            x: std::array::from_fn(|m| x.numbers[at(m)].as_ptr()),
            scales: std::array::from_fn(|m| x.scales[at(m)].as_ptr()),
            sums: std::array::from_fn(|m| x.sums[at(m)].as_ptr()),
            lanes: [[none; M]; 2],
            rest: [none; M],
            products: PhantomData,
        };
        // SAFETY: x has numbers, scales and sums of as many groups as the blocks of the weight row have.
        unsafe {
            if B::GROUPS == TOGETHER {
                add::<P, B, 1, M>(weights, &mut sums);
            } else {
                add::<P, B, 1, M>(add::<P, B, TOGETHER, M>(weights, &mut sums), &mut sums);
            }
        }
        let Sums { lanes, rest, .. } = sums;
        // SAFETY: the instruction set is there, says the caller.
        std::array::from_fn(|m| unsafe { lanes[0][m].plus(lanes[1][m]).plus(rest[m]).total() })
    }
}

/// Adds the products of N blocks at a time; returns the blocks that are left.
#[inline(always)]
unsafe fn add<'a, P: Products, B: Whole, const N: usize, const M: usize>(
    weights: &'a [B],
    to: &mut Sums<P, M>,
) -> &'a [B] {
    let (whole, left) = weights.as_chunks::<N>();
    for blocks in whole {
        // SAFETY: the caller's promise.
        unsafe { B::add(blocks, to) };
        to.pass(N * B::GROUPS);
    }
    left
}
