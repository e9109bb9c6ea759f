//! 512-bit registers: a group of 32 numbers is two of them, its halves.

use std::arch::x86_64::*;

use super::super::blocks::{GROUP, HALF};
use super::Register;

// SAFETY: AVX-512 F, BW, VL, DQ.
unsafe impl Register for __m512 {
    const ROWS: usize = 4;
    const NIBBLE: f32 = 1.0;
    type Group = [__m512; 2];
    type Halves = [__m512; 2];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_add_ps(self) }
    }

    #[inline(always)]
    unsafe fn halves([first, second]: [f32; 2]) -> [__m512; 2] {
        // SAFETY: as above.
        unsafe { [_mm512_set1_ps(first), _mm512_set1_ps(second)] }
    }

    #[inline(always)]
    unsafe fn signed(bytes: __m256i) -> [__m512; 2] {
        // SAFETY: as above.
        unsafe {
            let [first, second] = [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)];
            [
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(first)),
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(second)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn stored(bytes: &[i8; GROUP]) -> [__m512; 2] {
        let at = bytes.as_ptr();
        // SAFETY: as above; 32 bytes are there.
        unsafe {
            let [first, second] = [_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(HALF).cast())];
            [
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(first)),
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(second)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn nibbles(bytes: __m128i) -> [__m512; 2] {
        // SAFETY: as above.
        unsafe { low_and_high(bytes) }
    }

    #[inline(always)]
    unsafe fn two_groups(bytes: &[u8; GROUP]) -> [[__m512; 2]; 2] {
        let at = bytes.as_ptr();
        // SAFETY: as above; 32 bytes are there.
        unsafe {
            let [first, second] = [_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(HALF).cast())];
            let ([low0, high0], [low1, high1]) = (low_and_high(first), low_and_high(second));
            [[low0, low1], [high0, high1]]
        }
    }

    #[inline(always)]
    unsafe fn add(self, [first, second]: [__m512; 2], x: *const f32, scale: Self) -> Self {
        // SAFETY: as above, and x has a group.
        unsafe {
            let products = _mm512_mul_ps(first, _mm512_loadu_ps(x));
            let products = _mm512_fmadd_ps(second, _mm512_loadu_ps(x.add(16)), products);
            _mm512_fmadd_ps(scale, products, self)
        }
    }

    #[inline(always)]
    unsafe fn add_halves(self, group: [__m512; 2], x: *const f32, scales: [__m512; 2]) -> Self {
        // SAFETY: as above, and x has a group.
        unsafe {
            let first = _mm512_mul_ps(group[0], _mm512_loadu_ps(x));
            let second = _mm512_mul_ps(group[1], _mm512_loadu_ps(x.add(16)));
            _mm512_fmadd_ps(scales[1], second, _mm512_fmadd_ps(scales[0], first, self))
        }
    }
}

/// The low nibbles of bytes, and the high ones, less 8.
#[inline(always)]
unsafe fn low_and_high(bytes: __m128i) -> [__m512; 2] {
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let low = _mm512_cvtepu8_epi32(bytes);
        let high = _mm512_srli_epi32::<4>(low);
        [less_8(low), less_8(high)]
    }
}

/// The low four bits of each index as a number, less 8.
#[inline(always)]
unsafe fn less_8(index: __m512i) -> __m512 {
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        if cfg!(miri) {
            // The interpreter of the tests lacks the instruction below.
            let four = _mm512_and_si512(index, _mm512_set1_epi32(15));
            return _mm512_cvtepi32_ps(_mm512_sub_epi32(four, _mm512_set1_epi32(8)));
        }
        // Of an index into sixteen numbers only the low four bits count.
        let table: [f32; 16] = std::array::from_fn(|i| i as f32 - 8.0);
        _mm512_permutexvar_ps(index, _mm512_loadu_ps(table.as_ptr()))
    }
}
