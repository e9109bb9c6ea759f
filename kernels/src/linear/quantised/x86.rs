//! The sweep over quantised weights with the registers of AVX2 and AVX-512.
//!
//! Left to themselves, compilers keep the sums of [`super::blocks`] in memory. Here a half of 16 numbers is one register
//! or two, blocks are taken apart by byte operations on 16 weights at a time, and a tile of rows shares what they give.

#![allow(clippy::missing_safety_doc, reason = "everything here needs the instruction set it is written in")]

use std::arch::x86_64::*;

use super::blocks::{Block, GROUP, HALF, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use super::cpu::Sweep;

/// How far before their use blocks are asked for.
const AHEAD_BYTES: usize = 3 << 10;

/// Sixteen numbers in registers of an instruction set.
///
/// # Safety
/// Every function may only be called where the instruction set is there.
pub(super) unsafe trait Half: Copy {
    /// Rows of x that a tile has registers for.
    const ROWS: usize;

    unsafe fn splat(value: f32) -> Self;
    /// The value of these bits in half precision, everywhere.
    unsafe fn splat_half(bits: [u8; 2]) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self · a + b`
    unsafe fn fused(self, a: Self, b: Self) -> Self;
    unsafe fn total(self) -> f32;
    /// Signed bytes as numbers.
    unsafe fn widen(bytes: __m128i) -> Self;
    /// Low and high nibbles of bytes, less this.
    unsafe fn nibbles<const LESS: i8>(bytes: __m128i) -> (Self, Self);
}

// SAFETY: AVX-512 F, BW, VL, DQ.
unsafe impl Half for __m512 {
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn splat_half(bits: [u8; 2]) -> Self {
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes(bits))) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { _mm512_mul_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn fused(self, a: Self, b: Self) -> Self {
        unsafe { _mm512_fmadd_ps(self, a, b) }
    }
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self) }
    }
    #[inline(always)]
    unsafe fn widen(bytes: __m128i) -> Self {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)) }
    }
    #[inline(always)]
    unsafe fn nibbles<const LESS: i8>(bytes: __m128i) -> (Self, Self) {
        // A table of sixteen numbers, of whose index only the low four bits count.
        let first = -f32::from(LESS);
        let table: [f32; 16] = std::array::from_fn(|i| first + i as f32);
        unsafe {
            let table = _mm512_loadu_ps(table.as_ptr());
            let index = _mm512_cvtepu8_epi32(bytes);
            let high = _mm512_srli_epi32::<4>(index);
            (_mm512_permutexvar_ps(index, table), _mm512_permutexvar_ps(high, table))
        }
    }
}

// SAFETY: AVX2, FMA, F16C.
unsafe impl Half for [__m256; 2] {
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    unsafe fn splat_half(bits: [u8; 2]) -> Self {
        unsafe { [_mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(bits))); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { [_mm256_mul_ps(self[0], other[0]), _mm256_mul_ps(self[1], other[1])] }
    }
    #[inline(always)]
    unsafe fn fused(self, a: Self, b: Self) -> Self {
        unsafe { [_mm256_fmadd_ps(self[0], a[0], b[0]), _mm256_fmadd_ps(self[1], a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        let mut lanes = [0.0; 8];
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(self[0], self[1])) };
        let quarter = |i: usize| (lanes[i] + lanes[i + 4]) + (lanes[i + 2] + lanes[i + 6]);
        quarter(0) + quarter(1)
    }
    #[inline(always)]
    unsafe fn widen(bytes: __m128i) -> Self {
        unsafe {
            let second = _mm_unpackhi_epi64(bytes, bytes);
            [bytes, second].map(|eight| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)))
        }
    }
    #[inline(always)]
    unsafe fn nibbles<const LESS: i8>(bytes: __m128i) -> (Self, Self) {
        unsafe {
            let (low, high) = (low_nibbles(bytes), high_nibbles(bytes));
            (Self::widen(less(low, LESS)), Self::widen(less(high, LESS)))
        }
    }
}

#[inline(always)]
unsafe fn low_nibbles(bytes: __m128i) -> __m128i {
    unsafe { _mm_and_si128(bytes, _mm_set1_epi8(15)) }
}

#[inline(always)]
unsafe fn high_nibbles(bytes: __m128i) -> __m128i {
    unsafe { _mm_and_si128(_mm_srli_epi16::<4>(bytes), _mm_set1_epi8(15)) }
}

#[inline(always)]
unsafe fn less(bytes: __m128i, number: i8) -> __m128i {
    unsafe { _mm_sub_epi8(bytes, _mm_set1_epi8(number)) }
}

/// Half `half` of 32 bytes.
#[inline(always)]
unsafe fn bytes<T>(of: &[T], half: usize) -> __m128i {
    const { assert!(size_of::<T>() == 1) };
    let sixteen = &of[half * HALF..][..HALF];
    unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) }
}

/// A fifth bit, 16, for each of 16 weights from their bits.
#[inline(always)]
unsafe fn fifth_bits(bits: u16) -> __m128i {
    unsafe {
        // Each lane its own byte of the bits, then its own bit of that byte.
        let spread = _mm_shuffle_epi8(
            _mm_set1_epi16(bits.cast_signed()),
            _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
        );
        let own = _mm_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let set = _mm_cmpeq_epi8(_mm_and_si128(spread, own), own);
        _mm_and_si128(set, _mm_set1_epi8(16))
    }
}

/// Bit `bit` of each byte, as 16.
#[inline(always)]
unsafe fn bit_as_fifth(bytes: __m128i, bit: usize) -> __m128i {
    unsafe {
        let own = _mm_set1_epi8((1u8 << bit).cast_signed());
        _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(bytes, own), own), _mm_set1_epi8(16))
    }
}

/// A tile's sums of M rows of x: shown the weights of one row, group by group.
pub(super) struct Sums<'a, H, const M: usize> {
    /// This block's part of every row of x, and the sums of its groups.
    x: [*const f32; M],
    sums: [&'a [f32]; M],
    lanes: &'a mut [H; M],
    rest: &'a mut [f32; M],
}

impl<H: Half, const M: usize> Sums<'_, H, M> {
    /// Adds the products of group `index`.
    #[inline(always)]
    unsafe fn group(&mut self, index: usize, scale: H, lo: H, hi: H) {
        for m in 0..M {
            unsafe {
                let x = self.x[m].add(index * GROUP);
                let products = hi.fused(H::load(x.add(HALF)), lo.mul(H::load(x)));
                self.lanes[m] = scale.fused(products, self.lanes[m]);
            }
        }
    }

    #[inline(always)]
    fn offset(&mut self, index: usize, offset: f32) {
        for m in 0..M {
            self.rest[m] += offset * self.sums[m][index];
        }
    }
}

/// A block taken apart in registers.
pub(super) trait Wide: Block {
    /// Adds the products of all groups.
    unsafe fn add<H: Half, const M: usize>(&self, to: &mut Sums<'_, H, M>);
}

impl Wide for Q8_0 {
    #[inline(always)]
    unsafe fn add<H: Half, const M: usize>(&self, to: &mut Sums<'_, H, M>) {
        unsafe {
            let (lo, hi) = (H::widen(bytes(&self.q, 0)), H::widen(bytes(&self.q, 1)));
            to.group(0, H::splat_half(self.d), lo, hi);
        }
    }
}

impl Wide for Q4_0 {
    #[inline(always)]
    unsafe fn add<H: Half, const M: usize>(&self, to: &mut Sums<'_, H, M>) {
        unsafe {
            let (lo, hi) = H::nibbles::<8>(bytes(&self.q, 0));
            to.group(0, H::splat_half(self.d), lo, hi);
        }
    }
}

impl Wide for Q4_1 {
    #[inline(always)]
    unsafe fn add<H: Half, const M: usize>(&self, to: &mut Sums<'_, H, M>) {
        unsafe {
            let (lo, hi) = H::nibbles::<0>(bytes(&self.q, 0));
            to.group(0, H::splat_half(self.d), lo, hi);
        }
        to.offset(0, self.offset());
    }
}

/// Nibbles with fifth bits, less this.
#[inline(always)]
unsafe fn five_bits<H: Half>(q: &[u8; 16], high: [u8; 4], number: i8) -> (H, H) {
    unsafe {
        let q = bytes(q, 0);
        let (low, high) = (u16::from_le_bytes([high[0], high[1]]), u16::from_le_bytes([high[2], high[3]]));
        let lo = _mm_or_si128(low_nibbles(q), fifth_bits(low));
        let hi = _mm_or_si128(high_nibbles(q), fifth_bits(high));
        (H::widen(less(lo, number)), H::widen(less(hi, number)))
    }
}

impl Wide for Q5_0 {
    #[inline(always)]
    unsafe fn add<H: Half, const M: usize>(&self, to: &mut Sums<'_, H, M>) {
        unsafe {
            let (lo, hi) = five_bits::<H>(&self.q, self.high, 16);
            to.group(0, H::splat_half(self.d), lo, hi);
        }
    }
}

impl Wide for Q5_1 {
    #[inline(always)]
    unsafe fn add<H: Half, const M: usize>(&self, to: &mut Sums<'_, H, M>) {
        unsafe {
            let (lo, hi) = five_bits::<H>(&self.q, self.high, 0);
            to.group(0, H::splat_half(self.d), lo, hi);
        }
        to.offset(0, self.offset());
    }
}

impl Wide for Q4K {
    #[inline(always)]
    unsafe fn add<H: Half, const M: usize>(&self, to: &mut Sums<'_, H, M>) {
        let (scales, offsets) = self.scales();
        for (j, q) in self.q.iter().enumerate() {
            unsafe {
                let (lo0, lo1) = H::nibbles::<0>(bytes(q, 0));
                let (hi0, hi1) = H::nibbles::<0>(bytes(q, 1));
                to.group(2 * j, H::splat(scales[2 * j]), lo0, hi0);
                to.group(2 * j + 1, H::splat(scales[2 * j + 1]), lo1, hi1);
            }
        }
        for (i, offset) in offsets.into_iter().enumerate() {
            to.offset(i, offset);
        }
    }
}

impl Wide for Q5K {
    #[inline(always)]
    unsafe fn add<H: Half, const M: usize>(&self, to: &mut Sums<'_, H, M>) {
        let (scales, offsets) = self.scales();
        unsafe {
            let high = [bytes(&self.high, 0), bytes(&self.high, 1)];
            for (j, q) in self.q.iter().enumerate() {
                let q = [bytes(q, 0), bytes(q, 1)];
                let low = |half: usize| {
                    H::widen(_mm_or_si128(low_nibbles(q[half]), bit_as_fifth(high[half], 2 * j)))
                };
                to.group(2 * j, H::splat(scales[2 * j]), low(0), low(1));
                let upper = |half: usize| {
                    H::widen(_mm_or_si128(high_nibbles(q[half]), bit_as_fifth(high[half], 2 * j + 1)))
                };
                to.group(2 * j + 1, H::splat(scales[2 * j + 1]), upper(0), upper(1));
            }
        }
        for (i, offset) in offsets.into_iter().enumerate() {
            to.offset(i, offset);
        }
    }
}

impl Wide for Q6K {
    #[inline(always)]
    unsafe fn add<H: Half, const M: usize>(&self, to: &mut Sums<'_, H, M>) {
        let scales = self.scales();
        for (part, (low, high)) in self.low.iter().zip(&self.high).enumerate() {
            for k in 0..4 {
                let of = |half: usize| unsafe {
                    let nibbles = bytes(&low[GROUP * (k % 2)..], half);
                    let nibbles = if k < 2 { low_nibbles(nibbles) } else { high_nibbles(nibbles) };
                    // Two bits of each byte, moved to bits 4 and 5; what crosses from its neighbour is masked off.
                    let high = bytes(high, half);
                    let moved = match k {
                        0 => _mm_slli_epi16::<4>(high),
                        1 => _mm_slli_epi16::<2>(high),
                        2 => high,
                        _ => _mm_srli_epi16::<2>(high),
                    };
                    let number = _mm_or_si128(nibbles, _mm_and_si128(moved, _mm_set1_epi8(0x30)));
                    H::widen(less(number, 32))
                };
                // A scale for each half, of which one is taken out.
                let at = 8 * part + 2 * k;
                unsafe {
                    let lo = of(0).mul(H::splat(scales[at]));
                    let hi = of(1).mul(H::splat(scales[at + 1]));
                    to.scaled(4 * part + k, lo, hi);
                }
            }
        }
    }
}

impl<H: Half, const M: usize> Sums<'_, H, M> {
    /// [`Sums::group`] of weights that are scaled already.
    #[inline(always)]
    unsafe fn scaled(&mut self, index: usize, lo: H, hi: H) {
        for m in 0..M {
            unsafe {
                let x = self.x[m].add(index * GROUP);
                let first = lo.fused(H::load(x), self.lanes[m]);
                self.lanes[m] = hi.fused(H::load(x.add(HALF)), first);
            }
        }
    }
}

/// The whole sweep with 512-bit registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) unsafe fn avx512<B: Wide>(sweep: &Sweep<'_, B>, range: std::ops::Range<usize>) {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { run::<__m512, B>(sweep, range) }
}

/// The whole sweep with 256-bit registers.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2<B: Wide>(sweep: &Sweep<'_, B>, range: std::ops::Range<usize>) {
    // SAFETY: as above.
    unsafe { run::<[__m256; 2], B>(sweep, range) }
}

#[inline(always)]
unsafe fn run<H: Half, B: Wide>(sweep: &Sweep<'_, B>, range: std::ops::Range<usize>) {
    let mut o = range.start;
    while o < range.end {
        let pair = o + 1 < range.end;
        let mut row = 0;
        while row < sweep.rows {
            let left = sweep.rows - row;
            unsafe {
                row += match (pair, left) {
                    (true, 4..) if H::ROWS >= 4 => tile::<H, B, 4, 2>(sweep, row, o),
                    (true, 2..) => tile::<H, B, 2, 2>(sweep, row, o),
                    (true, _) => tile::<H, B, 1, 2>(sweep, row, o),
                    (false, _) => tile::<H, B, 1, 1>(sweep, row, o),
                };
            }
        }
        o += 1 + usize::from(pair);
    }
}

/// Rows `row..row + M` of x against the R weight rows from `o` on; returns M.
#[inline(always)]
unsafe fn tile<H: Half, B: Wide, const M: usize, const R: usize>(
    sweep: &Sweep<'_, B>,
    row: usize,
    o: usize,
) -> usize {
    let groups = sweep.per_row * B::GROUPS;
    let weights: [&[B]; R] =
        std::array::from_fn(|r| &sweep.blocks[(o + r) * sweep.per_row..][..sweep.per_row]);
    let x: [&[f32]; M] = std::array::from_fn(|m| &sweep.x[(row + m) * groups * GROUP..][..groups * GROUP]);
    let sums: [&[f32]; M] = std::array::from_fn(|m| &sweep.sums[(row + m) * groups..][..groups]);
    let mut lanes = [[unsafe { H::splat(0.0) }; M]; R];
    let mut rest = [[0.0; M]; R];
    for block in 0..sweep.per_row {
        let first = block * B::GROUPS;
        for r in 0..R {
            if row == 0 {
                prefetch(&weights[r][block]);
            }
            let mut to = Sums {
                x: std::array::from_fn(|m| x[m][first * GROUP..].as_ptr()),
                sums: std::array::from_fn(|m| &sums[m][first..first + B::GROUPS]),
                lanes: &mut lanes[r],
                rest: &mut rest[r],
            };
            // SAFETY: x has the numbers of as many groups as the block has.
            unsafe { weights[r][block].add(&mut to) };
        }
    }
    for r in 0..R {
        let bias = sweep.bias.map_or(0.0, |bias| bias[o + r]);
        for m in 0..M {
            // SAFETY: an output belongs to the one thread whose range holds it.
            let y = unsafe { sweep.y.slice((row + m) * sweep.outputs + o + r, 1) };
            y[0] = unsafe { lanes[r][m].total() } + rest[r][m] + bias;
        }
    }
    M
}

/// Asks for the memory some way behind a block, wherever that may be.
#[inline(always)]
fn prefetch<B>(block: &B) {
    for line in 0..size_of::<B>().div_ceil(64) {
        let at = std::ptr::from_ref(block).cast::<i8>().wrapping_add(AHEAD_BYTES + line * 64);
        // SAFETY: a hint that reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
    }
}
