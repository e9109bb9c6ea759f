//! Blocks of each format, taken apart group by group.

use std::arch::x86_64::*;

use super::super::blocks::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, scales_and_offsets};
use super::{Register, Single, Sums, TOGETHER, Wide, bytes};

impl Single for Q8_0 {
    #[inline(always)]
    unsafe fn numbers<R: Register>(&self) -> R::Group {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { R::stored(&self.q) }
    }
}

impl Wide for Q8_0 {
    const OFFSETS: bool = false;

    #[inline(always)]
    unsafe fn add<R: Register, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<R, M>) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            to.groups(blocks, bytes::widen(blocks.map(|block| block.d)));
        }
    }
}

impl Single for Q4_0 {
    #[inline(always)]
    unsafe fn numbers<R: Register>(&self) -> R::Group {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { R::nibbles(bytes::load_half(&self.q)) }
    }
}

impl Wide for Q4_0 {
    const OFFSETS: bool = false;

    #[inline(always)]
    unsafe fn add<R: Register, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<R, M>) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            let scales = bytes::widen(blocks.map(|block| block.d));
            to.groups(blocks, _mm256_mul_ps(scales, _mm256_set1_ps(R::NIBBLE)));
        }
    }
}

impl Single for Q4_1 {
    #[inline(always)]
    unsafe fn numbers<R: Register>(&self) -> R::Group {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { R::nibbles(bytes::load_half(&self.q)) }
    }
}

impl Wide for Q4_1 {
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn add<R: Register, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<R, M>) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            let scales = bytes::widen(blocks.map(|block| block.d));
            let offsets = bytes::widen(blocks.map(|block| block.m));
            to.groups(blocks, _mm256_mul_ps(scales, _mm256_set1_ps(R::NIBBLE)));
            to.offsets::<N>(with_8(scales, offsets));
        }
    }
}

/// The offsets of numbers that are less by 8.
#[inline(always)]
unsafe fn with_8(scales: __m256, offsets: __m256) -> __m256 {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm256_fmadd_ps(scales, _mm256_set1_ps(8.0), offsets) }
}

impl Single for Q5_0 {
    #[inline(always)]
    unsafe fn numbers<R: Register>(&self) -> R::Group {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            // Without the fifth bit a nibble is less by 16.
            let less = _mm256_andnot_si256(bytes::spread(self.high), _mm256_set1_epi8(-16));
            R::signed(_mm256_or_si256(bytes::nibbles(bytes::load_half(&self.q)), less))
        }
    }
}

impl Wide for Q5_0 {
    const OFFSETS: bool = false;

    #[inline(always)]
    unsafe fn add<R: Register, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<R, M>) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            to.groups(blocks, bytes::widen(blocks.map(|block| block.d)));
        }
    }
}

impl Single for Q5_1 {
    #[inline(always)]
    unsafe fn numbers<R: Register>(&self) -> R::Group {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            let fifth = _mm256_and_si256(bytes::spread(self.high), _mm256_set1_epi8(16));
            R::signed(_mm256_or_si256(bytes::nibbles(bytes::load_half(&self.q)), fifth))
        }
    }
}

impl Wide for Q5_1 {
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn add<R: Register, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<R, M>) {
        // SAFETY: the instruction set is there, says the caller.
        unsafe {
            to.groups(blocks, bytes::widen(blocks.map(|block| block.d)));
            to.offsets::<N>(bytes::widen(blocks.map(|block| block.m)));
        }
    }
}

impl Wide for Q4K {
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn add<R: Register, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<R, M>) {
        let mut room = [[0.0; TOGETHER]];
        for block in blocks {
            // SAFETY: the instruction set is there, says the caller.
            unsafe {
                let [scales, offsets] = two_levels([block.d, block.m], &block.scales);
                to.offsets::<TOGETHER>(with_8(scales, offsets));
                let scales = _mm256_mul_ps(scales, _mm256_set1_ps(R::NIBBLE));
                let [scales] = bytes::to_memory([scales], &mut room);
                for (j, q) in block.q.iter().enumerate() {
                    let [low, high] = R::two_groups(q);
                    to.group::<0>(2 * j, R::splat(scales[2 * j]), low);
                    to.group::<1>(2 * j + 1, R::splat(scales[2 * j + 1]), high);
                }
            }
        }
    }
}

impl Wide for Q5K {
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn add<R: Register, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<R, M>) {
        let mut room = [[0.0; TOGETHER]];
        for block in blocks {
            // SAFETY: the instruction set is there, says the caller.
            unsafe {
                let [scales, offsets] = two_levels([block.d, block.m], &block.scales);
                let [scales] = bytes::to_memory([scales], &mut room);
                let high = bytes::load(&block.high);
                for (j, q) in block.q.iter().enumerate() {
                    let (q, first, second) = (bytes::load(q), 2 * j, 2 * j + 1);
                    let numbers = bytes::with_fifth(bytes::low_nibbles(q), high, first);
                    to.group::<0>(first, R::splat(scales[first]), R::signed(numbers));
                    let numbers = bytes::with_fifth(bytes::high_nibbles(q), high, second);
                    to.group::<1>(second, R::splat(scales[second]), R::signed(numbers));
                }
                to.offsets::<TOGETHER>(offsets);
            }
        }
    }
}

/// Scales and offsets of eight groups, from those of the block and their multiples.
#[inline(always)]
pub(super) unsafe fn two_levels([d, m]: [[u8; 2]; 2], packed: &[u8; 12]) -> [__m256; 2] {
    let (scales, offsets) = scales_and_offsets(packed);
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let (d, m) = (bytes::splat_half(d), bytes::splat_half(m));
        let minus_m = _mm256_xor_ps(m, _mm256_set1_ps(-0.0));
        [bytes::times(scales, d), bytes::times(offsets, minus_m)]
    }
}

impl Wide for Q6K {
    const OFFSETS: bool = false;

    #[inline(always)]
    unsafe fn add<R: Register, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<R, M>) {
        let mut room = [[0.0; TOGETHER]; 2];
        for block in blocks {
            // SAFETY: the instruction set is there, says the caller.
            unsafe {
                let scales = bytes::sixteen_times(&block.scales, bytes::splat_half(block.d));
                let scales = bytes::to_memory(scales, &mut room).as_flattened().as_chunks().0;
                for (part, (low, high)) in block.low.iter().zip(&block.high).enumerate() {
                    let low = [bytes::load(&low[0]), bytes::load(&low[1])];
                    let high = bytes::load(high);
                    for k in [0, 2] {
                        let group = 4 * part + k;
                        let numbers = R::signed(bytes::six_bits(low[0], high, k));
                        to.halves::<0>(group, R::halves(scales[group]), numbers);
                        let numbers = R::signed(bytes::six_bits(low[1], high, k + 1));
                        to.halves::<1>(group + 1, R::halves(scales[group + 1]), numbers);
                    }
                }
            }
        }
    }
}
