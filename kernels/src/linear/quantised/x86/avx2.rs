//! 256-bit registers: a group of 32 numbers is four of them.
//!
//! A byte becomes a number as the topmost of the four of an integer, so that its sign is right and the integer 2²⁴ times
//! the byte. That takes a shuffle inside the halves of a register, which is a fast one everywhere; bytes of the first
//! half of a group stay in the first half of a register, and x is arranged alike.

use std::arch::x86_64::*;

use super::super::blocks::GROUP;
use super::{Register, bytes};

// SAFETY: AVX2, FMA, F16C.
unsafe impl Register for __m256 {
    const ROWS: usize = 2;
    const NIBBLE: f32 = 1.0 / 16.0;
    type Group = [__m256; 4];
    type Halves = __m256;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: as above.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self), _mm256_extractf128_ps::<1>(self));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn halves([first, second]: [f32; 2]) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_set_m128(_mm_set1_ps(second), _mm_set1_ps(first)) }
    }

    #[inline(always)]
    unsafe fn signed(bytes: __m256i) -> [__m256; 4] {
        // SAFETY: as above.
        unsafe {
            [
                _mm256_cvtepi32_ps(topmost::<0>(bytes)),
                _mm256_cvtepi32_ps(topmost::<1>(bytes)),
                _mm256_cvtepi32_ps(topmost::<2>(bytes)),
                _mm256_cvtepi32_ps(topmost::<3>(bytes)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn stored(bytes: &[i8; GROUP]) -> [__m256; 4] {
        // SAFETY: as above.
        unsafe { Self::signed(bytes::load(bytes)) }
    }

    #[inline(always)]
    unsafe fn nibbles(bytes: __m128i) -> [__m256; 4] {
        // SAFETY: as above.
        unsafe {
            let bytes = _mm_xor_si128(bytes, _mm_set1_epi8(SIGNS));
            Self::signed(upper(_mm256_set_m128i(bytes, _mm_slli_epi16::<4>(bytes))))
        }
    }

    #[inline(always)]
    unsafe fn two_groups(bytes: &[u8; GROUP]) -> [[__m256; 4]; 2] {
        // SAFETY: as above.
        unsafe {
            let bytes = _mm256_xor_si256(bytes::load(bytes), _mm256_set1_epi8(SIGNS));
            [Self::signed(upper(_mm256_slli_epi16::<4>(bytes))), Self::signed(upper(bytes))]
        }
    }

    #[inline(always)]
    unsafe fn add(self, group: [__m256; 4], x: *const f32, scale: Self) -> Self {
        // SAFETY: as above, and x has a group.
        unsafe {
            let mut products = _mm256_mul_ps(group[0], _mm256_loadu_ps(x));
            products = _mm256_fmadd_ps(group[1], _mm256_loadu_ps(x.add(8)), products);
            products = _mm256_fmadd_ps(group[2], _mm256_loadu_ps(x.add(16)), products);
            products = _mm256_fmadd_ps(group[3], _mm256_loadu_ps(x.add(24)), products);
            _mm256_fmadd_ps(scale, products, self)
        }
    }

    #[inline(always)]
    unsafe fn add_halves(self, group: [__m256; 4], x: *const f32, scales: Self) -> Self {
        // SAFETY: as above. The halves of every register belong to the halves of the group.
        unsafe { self.add(group, x, scales) }
    }
}

/// Groups of numbers with four of the first half, then four of the second, and so on, divided by what bytes are multiplied
/// by.
pub(super) fn arranged(x: &[f32]) -> Vec<f32> {
    const UNIT: f32 = 1.0 / 16_777_216.0;
    let group = |group: &[f32; GROUP]| {
        let mut to = [0.0; GROUP];
        let (from, places) = (group.as_chunks::<4>().0, to.as_chunks_mut::<4>().0);
        for i in 0..4 {
            places[2 * i] = from[i].map(|x| UNIT * x);
            places[2 * i + 1] = from[4 + i].map(|x| UNIT * x);
        }
        to
    };
    x.as_chunks().0.iter().map(group).collect::<Vec<_>>().into_flattened()
}

/// Bytes 4k to 4k + 3 of each half as the topmost bytes of integers.
#[inline(always)]
unsafe fn topmost<const K: i8>(bytes: __m256i) -> __m256i {
    let (a, b, c, d) = (4 * K, 4 * K + 1, 4 * K + 2, 4 * K + 3);
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let half = _mm_setr_epi8(-1, -1, -1, a, -1, -1, -1, b, -1, -1, -1, c, -1, -1, -1, d);
        _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(half))
    }
}

/// Turns the upper bit of nibbles over: as numbers with a sign they are then what they were less 8.
const SIGNS: i8 = 0x88_u8.cast_signed();

/// The upper nibble of each byte, sixteenfold.
#[inline(always)]
unsafe fn upper(bytes: __m256i) -> __m256i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(0xf0_u8.cast_signed())) }
}
