//! Bytes of blocks in registers: nibbles, bits beside them, scales.

use std::arch::x86_64::*;

use super::super::blocks::HALF;
use super::TOGETHER;

/// 32 bytes.
#[inline(always)]
pub(super) unsafe fn load<T>(from: &[T; 2 * HALF]) -> __m256i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// 16 bytes.
#[inline(always)]
pub(super) unsafe fn load_half(from: &[u8; HALF]) -> __m128i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

#[inline(always)]
pub(super) unsafe fn low_nibbles(bytes: __m256i) -> __m256i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(15)) }
}

#[inline(always)]
pub(super) unsafe fn high_nibbles(bytes: __m256i) -> __m256i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { low_nibbles(_mm256_srli_epi16::<4>(bytes)) }
}

/// The low nibbles of 16 bytes, then the high ones.
#[inline(always)]
pub(super) unsafe fn nibbles(bytes: __m128i) -> __m256i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { low_nibbles(_mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes)) }
}

#[inline(always)]
pub(super) unsafe fn less(bytes: __m256i, number: i8) -> __m256i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm256_sub_epi8(bytes, _mm256_set1_epi8(number)) }
}

/// All bits of a byte set for every one of 32 bits that is.
#[inline(always)]
pub(super) unsafe fn spread(bits: [u8; 4]) -> __m256i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        // Each byte the one with its bit, then that bit alone.
        let byte = _mm256_setr_epi8(
            0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3,
        );
        let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(bits)), byte);
        let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        _mm256_cmpeq_epi8(_mm256_and_si256(bytes, own), own)
    }
}

/// Nibbles with a fifth bit: bit `bit` of the byte beside each.
#[inline(always)]
pub(super) unsafe fn with_fifth(nibbles: __m256i, beside: __m256i, bit: usize) -> __m256i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let own = _mm256_set1_epi8((1u8 << bit).cast_signed());
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(beside, own), own);
        _mm256_or_si256(nibbles, _mm256_and_si256(set, _mm256_set1_epi8(16)))
    }
}

/// Numbers of six bits, less 32: part k of four has its low bits in the lower or upper nibbles of `low`, its high bits in
/// bits 2k and 2k + 1 of `high`.
#[inline(always)]
pub(super) unsafe fn six_bits(low: __m256i, high: __m256i, k: usize) -> __m256i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let nibbles = if k < 2 { low_nibbles(low) } else { high_nibbles(low) };
        // What crosses over from a byte's neighbour is masked off.
        let moved = match k {
            0 => _mm256_slli_epi16::<4>(high),
            1 => _mm256_slli_epi16::<2>(high),
            2 => high,
            _ => _mm256_srli_epi16::<2>(high),
        };
        let number = _mm256_or_si256(nibbles, _mm256_and_si256(moved, _mm256_set1_epi8(0x30)));
        less(number, 32)
    }
}

/// Numbers in half precision as numbers, with zeros after them.
#[inline(always)]
pub(super) unsafe fn widen<const N: usize>(halves: [[u8; 2]; N]) -> __m256 {
    const { assert!(N <= TOGETHER) };
    let half = |i: usize| halves.get(i).map_or(0, |&half| i16::from_le_bytes(half));
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let eight = _mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7));
        _mm256_cvtph_ps(eight)
    }
}

/// At most eight numbers, with zeros after them.
#[inline(always)]
pub(super) unsafe fn eight<const N: usize>(numbers: *const f32) -> __m256 {
    const { assert!(N <= TOGETHER) };
    let mut eight = [0.0; TOGETHER];
    // SAFETY: the instruction set and N numbers are there, says the caller.
    unsafe {
        std::ptr::copy_nonoverlapping(numbers, eight.as_mut_ptr(), N);
        _mm256_loadu_ps(eight.as_ptr())
    }
}

/// A number in half precision, eight times.
#[inline(always)]
pub(super) unsafe fn splat_half(half: [u8; 2]) -> __m256 {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(half))))) }
}

/// Sixteen small numbers times the same one.
#[inline(always)]
pub(super) unsafe fn sixteen_times(numbers: &[i8; 2 * TOGETHER], factor: __m256) -> [__m256; 2] {
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let first = _mm_loadu_si128(numbers.as_ptr().cast());
        let second = _mm_unpackhi_epi64(first, first);
        let [first, second] = [_mm256_cvtepi8_epi32(first), _mm256_cvtepi8_epi32(second)];
        [_mm256_mul_ps(_mm256_cvtepi32_ps(first), factor), _mm256_mul_ps(_mm256_cvtepi32_ps(second), factor)]
    }
}

/// Eight small numbers times the same one.
#[inline(always)]
pub(super) unsafe fn times(numbers: [u8; TOGETHER], factor: __m256) -> __m256 {
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let numbers = _mm_cvtsi64_si128(i64::from_le_bytes(numbers));
        _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(numbers)), factor)
    }
}

/// Eight times K numbers to be broadcast from memory: to get one of a register everywhere takes slow instructions, which
/// compilers use if they see that it was there.
#[inline(always)]
pub(super) unsafe fn to_memory<const K: usize>(
    eights: [__m256; K],
    room: &mut [[f32; TOGETHER]; K],
) -> &[[f32; TOGETHER]; K] {
    for (eight, room) in eights.into_iter().zip(room.iter_mut()) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { _mm256_storeu_ps(room.as_mut_ptr(), eight) };
    }
    std::hint::black_box(room)
}
