//! The sweep over quantised weights with the registers of AVX2 and AVX-512.
//!
//! Left to themselves, compilers keep the sums of [`super::blocks`] in memory. Here a half of 16 numbers is one register
//! or two, blocks are taken apart by byte operations on 16 weights at a time, and a tile of rows of x shares what they
//! give. Weight rows come one after the other: a single run through memory is what the machine reads ahead best.

use std::arch::x86_64::*;

use super::blocks::{Block, GROUP, HALF, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use super::cpu::Sweep;

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
    unsafe fn plus(self, other: Self) -> Self;
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
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn splat_half(bits: [u8; 2]) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes(bits))) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm512_mul_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm512_add_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn fused(self, a: Self, b: Self) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm512_fmadd_ps(self, a, b) }
    }
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm512_reduce_add_ps(self) }
    }
    #[inline(always)]
    unsafe fn widen(bytes: __m128i) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)) }
    }
    #[inline(always)]
    unsafe fn nibbles<const LESS: i8>(bytes: __m128i) -> (Self, Self) {
        // A table of sixteen numbers, of whose index only the low four bits count.
        let first = -f32::from(LESS);
        let table: [f32; 16] = std::array::from_fn(|i| first + i as f32);
        // SAFETY: the instruction set is there, says the caller.
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
        // SAFETY: the instruction set is there, says the caller.
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    unsafe fn splat_half(bits: [u8; 2]) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { [_mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(bits))); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { [_mm256_mul_ps(self[0], other[0]), _mm256_mul_ps(self[1], other[1])] }
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { [_mm256_add_ps(self[0], other[0]), _mm256_add_ps(self[1], other[1])] }
    }
    #[inline(always)]
    unsafe fn fused(self, a: Self, b: Self) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { [_mm256_fmadd_ps(self[0], a[0], b[0]), _mm256_fmadd_ps(self[1], a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { total(_mm256_add_ps(self[0], self[1])) }
    }
    #[inline(always)]
    unsafe fn widen(bytes: __m128i) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            let second = _mm_unpackhi_epi64(bytes, bytes);
            let first = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
            [first, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(second))]
        }
    }
    #[inline(always)]
    unsafe fn nibbles<const LESS: i8>(bytes: __m128i) -> (Self, Self) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            let (low, high) = (low_nibbles(bytes), high_nibbles(bytes));
            (Self::widen(less(low, LESS)), Self::widen(less(high, LESS)))
        }
    }
}

#[inline(always)]
unsafe fn low_nibbles(bytes: __m128i) -> __m128i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm_and_si128(bytes, _mm_set1_epi8(15)) }
}

#[inline(always)]
unsafe fn high_nibbles(bytes: __m128i) -> __m128i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm_and_si128(_mm_srli_epi16::<4>(bytes), _mm_set1_epi8(15)) }
}

#[inline(always)]
unsafe fn less(bytes: __m128i, number: i8) -> __m128i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm_sub_epi8(bytes, _mm_set1_epi8(number)) }
}

/// Half `half` of 32 bytes.
#[inline(always)]
unsafe fn bytes<T>(of: &[T], half: usize) -> __m128i {
    const { assert!(size_of::<T>() == 1) };
    let sixteen = &of[half * HALF..][..HALF];
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) }
}

/// A fifth bit, 16, for each of 16 weights from their bits.
#[inline(always)]
unsafe fn fifth_bits(bits: u16) -> __m128i {
    // SAFETY: the instruction set is there, says the caller.
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

/// Nibbles with a fifth bit: bit `bit` of the byte beside each.
#[inline(always)]
unsafe fn with_fifth(nibbles: __m128i, beside: __m128i, bit: usize) -> __m128i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let own = _mm_set1_epi8((1u8 << bit).cast_signed());
        let set = _mm_cmpeq_epi8(_mm_and_si128(beside, own), own);
        _mm_or_si128(nibbles, _mm_and_si128(set, _mm_set1_epi8(16)))
    }
}

/// Numbers of six bits, less 32: part k of four has its low bits in the lower or upper nibbles of `low`, its high bits in
/// bits 2k and 2k + 1 of `high`.
#[inline(always)]
unsafe fn six_bits<H: Half>(low: __m128i, high: __m128i, k: usize) -> H {
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let nibbles = if k < 2 { low_nibbles(low) } else { high_nibbles(low) };
        // What crosses over from a byte's neighbour is masked off.
        let moved = match k {
            0 => _mm_slli_epi16::<4>(high),
            1 => _mm_slli_epi16::<2>(high),
            2 => high,
            _ => _mm_srli_epi16::<2>(high),
        };
        let number = _mm_or_si128(nibbles, _mm_and_si128(moved, _mm_set1_epi8(0x30)));
        H::widen(less(number, 32))
    }
}

/// A tile's sums of M rows of x: shown the weights of one row, group by group.
pub(super) struct Sums<H, const M: usize> {
    /// The next block's part of every row of x, and the sums of its groups.
    x: [*const f32; M],
    sums: [*const f32; M],
    /// Two sums, so that an addition need not wait for the one before: groups take turns.
    lanes: [[H; M]; 2],
    /// The part of offsets.
    rest: [__m256; M],
}

impl<H: Half, const M: usize> Sums<H, M> {
    /// Goes on to the next block, so many groups further.
    #[inline(always)]
    fn pass(&mut self, groups: usize) {
        self.x = self.x.map(|x| x.wrapping_add(groups * GROUP));
        self.sums = self.sums.map(|sums| sums.wrapping_add(groups));
    }

    /// Adds the products of group `index`, whose turn it is by `TURN`.
    #[inline(always)]
    unsafe fn group<const TURN: usize>(&mut self, index: usize, scale: H, lo: H, hi: H) {
        let lanes = &mut self.lanes[TURN];
        for m in 0..M {
            // SAFETY: the instruction set is there, says the caller.
            unsafe {
                let x = self.x[m].add(index * GROUP);
                let products = hi.fused(H::load(x.add(HALF)), lo.mul(H::load(x)));
                lanes[m] = scale.fused(products, lanes[m]);
            }
        }
    }

    /// [`Sums::group`] of weights that are scaled already.
    #[inline(always)]
    unsafe fn scaled(&mut self, index: usize, lo: H, hi: H) {
        for m in 0..M {
            // SAFETY: the instruction set is there, says the caller.
            unsafe {
                let x = self.x[m].add(index * GROUP);
                self.lanes[0][m] = lo.fused(H::load(x), self.lanes[0][m]);
                self.lanes[1][m] = hi.fused(H::load(x.add(HALF)), self.lanes[1][m]);
            }
        }
    }

    /// Adds the offset of the only group.
    #[inline(always)]
    unsafe fn offset(&mut self, offset: f32) {
        for m in 0..M {
            // SAFETY: the instruction set is there, says the caller.
            unsafe {
                let (offset, sum) = (_mm_set_ss(offset), _mm_set_ss(*self.sums[m]));
                let product = _mm256_zextps128_ps256(_mm_mul_ss(offset, sum));
                self.rest[m] = _mm256_add_ps(product, self.rest[m]);
            }
        }
    }

    /// Adds the offsets of eight groups.
    #[inline(always)]
    unsafe fn offsets(&mut self, offsets: &[f32; 8]) {
        for m in 0..M {
            // SAFETY: the instruction set is there, says the caller.
            unsafe {
                let sums = _mm256_loadu_ps(self.sums[m]);
                self.rest[m] = _mm256_fmadd_ps(_mm256_loadu_ps(offsets.as_ptr()), sums, self.rest[m]);
            }
        }
    }
}

/// A block taken apart in registers.
pub(super) trait Wide: Block {
    /// Whether groups have offsets.
    const OFFSETS: bool;

    /// Adds the products of all groups; blocks of one group take turns by `TURN`.
    unsafe fn add<H: Half, const M: usize, const TURN: usize>(&self, to: &mut Sums<H, M>);
}

impl Wide for Q8_0 {
    const OFFSETS: bool = false;

    #[inline(always)]
    unsafe fn add<H: Half, const M: usize, const TURN: usize>(&self, to: &mut Sums<H, M>) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            let (lo, hi) = (H::widen(bytes(&self.q, 0)), H::widen(bytes(&self.q, 1)));
            to.group::<TURN>(0, H::splat_half(self.d), lo, hi);
        }
    }
}

impl Wide for Q4_0 {
    const OFFSETS: bool = false;

    #[inline(always)]
    unsafe fn add<H: Half, const M: usize, const TURN: usize>(&self, to: &mut Sums<H, M>) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            let (lo, hi) = H::nibbles::<8>(bytes(&self.q, 0));
            to.group::<TURN>(0, H::splat_half(self.d), lo, hi);
        }
    }
}

impl Wide for Q4_1 {
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn add<H: Half, const M: usize, const TURN: usize>(&self, to: &mut Sums<H, M>) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            let (lo, hi) = H::nibbles::<0>(bytes(&self.q, 0));
            to.group::<TURN>(0, H::splat_half(self.d), lo, hi);
            to.offset(self.offset());
        }
    }
}

/// Nibbles with fifth bits, less this.
#[inline(always)]
unsafe fn five_bits<H: Half>(q: &[u8; 16], high: [u8; 4], number: i8) -> (H, H) {
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let q = bytes(q, 0);
        let (low, high) = (u16::from_le_bytes([high[0], high[1]]), u16::from_le_bytes([high[2], high[3]]));
        let lo = _mm_or_si128(low_nibbles(q), fifth_bits(low));
        let hi = _mm_or_si128(high_nibbles(q), fifth_bits(high));
        (H::widen(less(lo, number)), H::widen(less(hi, number)))
    }
}

impl Wide for Q5_0 {
    const OFFSETS: bool = false;

    #[inline(always)]
    unsafe fn add<H: Half, const M: usize, const TURN: usize>(&self, to: &mut Sums<H, M>) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            let (lo, hi) = five_bits::<H>(&self.q, self.high, 16);
            to.group::<TURN>(0, H::splat_half(self.d), lo, hi);
        }
    }
}

impl Wide for Q5_1 {
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn add<H: Half, const M: usize, const TURN: usize>(&self, to: &mut Sums<H, M>) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            let (lo, hi) = five_bits::<H>(&self.q, self.high, 0);
            to.group::<TURN>(0, H::splat_half(self.d), lo, hi);
            to.offset(self.offset());
        }
    }
}

impl Wide for Q4K {
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn add<H: Half, const M: usize, const TURN: usize>(&self, to: &mut Sums<H, M>) {
        let (scales, offsets) = self.scales();
        for (j, q) in self.q.iter().enumerate() {
            // SAFETY: the instruction set is there, says the caller.
            unsafe {
                let (lo0, lo1) = H::nibbles::<0>(bytes(q, 0));
                let (hi0, hi1) = H::nibbles::<0>(bytes(q, 1));
                to.group::<0>(2 * j, H::splat(scales[2 * j]), lo0, hi0);
                to.group::<1>(2 * j + 1, H::splat(scales[2 * j + 1]), lo1, hi1);
            }
        }
        // SAFETY: the instruction set is there, says the caller.
        unsafe { to.offsets(&offsets) };
    }
}

impl Wide for Q5K {
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn add<H: Half, const M: usize, const TURN: usize>(&self, to: &mut Sums<H, M>) {
        let (scales, offsets) = self.scales();
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            let high = [bytes(&self.high, 0), bytes(&self.high, 1)];
            for (j, q) in self.q.iter().enumerate() {
                let (first, second) = (bytes(q, 0), bytes(q, 1));
                let lo = with_fifth(low_nibbles(first), high[0], 2 * j);
                let hi = with_fifth(low_nibbles(second), high[1], 2 * j);
                to.group::<0>(2 * j, H::splat(scales[2 * j]), H::widen(lo), H::widen(hi));
                let lo = with_fifth(high_nibbles(first), high[0], 2 * j + 1);
                let hi = with_fifth(high_nibbles(second), high[1], 2 * j + 1);
                to.group::<1>(2 * j + 1, H::splat(scales[2 * j + 1]), H::widen(lo), H::widen(hi));
            }
        }
        // SAFETY: the instruction set is there, says the caller.
        unsafe { to.offsets(&offsets) };
    }
}

impl Wide for Q6K {
    const OFFSETS: bool = false;

    #[inline(always)]
    unsafe fn add<H: Half, const M: usize, const TURN: usize>(&self, to: &mut Sums<H, M>) {
        let scales = self.scales();
        for (part, (low, high)) in self.low.iter().zip(&self.high).enumerate() {
            for k in 0..4 {
                let (low, at) = (&low[GROUP * (k % 2)..][..GROUP], 8 * part + 2 * k);
                // SAFETY: the instruction set is there, says the caller.
                unsafe {
                    let lo = six_bits::<H>(bytes(low, 0), bytes(high, 0), k).mul(H::splat(scales[at]));
                    let hi = six_bits::<H>(bytes(low, 1), bytes(high, 1), k).mul(H::splat(scales[at + 1]));
                    to.scaled(4 * part + k, lo, hi);
                }
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

/// Weight rows that meet a tile of x before the next tile does: both stay in the nearest cache.
const CHUNK: usize = 16;

#[inline(always)]
unsafe fn run<H: Half, B: Wide>(sweep: &Sweep<'_, B>, range: std::ops::Range<usize>) {
    for first in range.clone().step_by(CHUNK) {
        let chunk = first..range.end.min(first + CHUNK);
        let mut row = 0;
        while row < sweep.rows {
            // SAFETY: as above.
            row += unsafe {
                match sweep.rows - row {
                    4.. if H::ROWS >= 4 => tiles::<H, B, 4>(sweep, row, chunk.clone()),
                    2.. => tiles::<H, B, 2>(sweep, row, chunk.clone()),
                    _ => tiles::<H, B, 1>(sweep, row, chunk.clone()),
                }
            };
        }
    }
}

/// Rows `row..row + M` of x against these weight rows; returns M.
#[inline(always)]
unsafe fn tiles<H: Half, B: Wide, const M: usize>(
    sweep: &Sweep<'_, B>,
    row: usize,
    chunk: std::ops::Range<usize>,
) -> usize {
    for o in chunk {
        // SAFETY: as above.
        unsafe { tile::<H, B, M>(sweep, row, o) };
    }
    M
}

/// Rows `row..row + M` of x against the weight row `o`.
#[inline(always)]
unsafe fn tile<H: Half, B: Wide, const M: usize>(sweep: &Sweep<'_, B>, row: usize, o: usize) {
    let groups = sweep.per_row * B::GROUPS;
    let weights = &sweep.blocks[o * sweep.per_row..][..sweep.per_row];
    let x: [*const f32; M] =
        std::array::from_fn(|m| sweep.x[(row + m) * groups * GROUP..][..groups * GROUP].as_ptr());
    let sums: [*const f32; M] = std::array::from_fn(|m| sweep.sums[(row + m) * groups..][..groups].as_ptr());
    // SAFETY: the instruction set is there, says the caller.
    let lanes = [[unsafe { H::splat(0.0) }; M]; 2];
    // SAFETY: the instruction set is there, says the caller.
    let rest = [unsafe { _mm256_setzero_ps() }; M];
    let mut sums = Sums { x, sums, lanes, rest };
    for pair in weights.chunks_exact(2) {
        // SAFETY: x has the numbers, and sums the sums, of as many groups as the blocks of the weight row have.
        unsafe {
            pair[0].add::<H, M, 0>(&mut sums);
            sums.pass(B::GROUPS);
            pair[1].add::<H, M, 1>(&mut sums);
            sums.pass(B::GROUPS);
        }
    }
    if let [last] = weights.chunks_exact(2).remainder() {
        // SAFETY: as above.
        unsafe { last.add::<H, M, 0>(&mut sums) };
    }
    let Sums { lanes, rest, .. } = sums;
    let bias = sweep.bias.map_or(0.0, |bias| bias[o]);
    for m in 0..M {
        // SAFETY: an output belongs to the one thread whose range holds it.
        let y = unsafe { sweep.y.slice((row + m) * sweep.outputs + o, 1) };
        // SAFETY: the instruction set is there.
        let sum = unsafe { lanes[0][m].plus(lanes[1][m]).total() };
        // SAFETY: as above.
        let rest = if B::OFFSETS { unsafe { total(rest[m]) } } else { 0.0 };
        y[0] = sum + rest + bias;
    }
}

#[inline(always)]
unsafe fn total(eight: __m256) -> f32 {
    let mut lanes = [0.0; 8];
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), eight) };
    let quarter = |i: usize| (lanes[i] + lanes[i + 4]) + (lanes[i + 2] + lanes[i + 6]);
    quarter(0) + quarter(1)
}
