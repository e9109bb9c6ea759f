//! Blocks of each format as bytes, group by group.

use std::arch::x86_64::*;

use super::super::super::blocks::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use super::super::formats::two_levels;
use super::{Products, Sums, TOGETHER, Whole, bytes};

/// A block of one group.
trait Single {
    /// Its numbers: without a sign, and more by what [`Whole::add`] takes away with its offsets.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn bytes(&self) -> __m256i;
}

/// Adds the products of blocks of one group each: their numbers times `scales`, plus `offsets`.
#[inline(always)]
unsafe fn singles<B: Single, P: Products, const N: usize, const M: usize>(
    blocks: &[B; N],
    [scales, offsets]: [__m256; 2],
    to: &mut Sums<P, M>,
) {
    // SAFETY: the instruction set is there, says the caller; so are the groups of x.
    unsafe {
        to.offsets::<N>(offsets);
        let mut room = [[0.0; TOGETHER]; M];
        let scales = bytes::to_memory(to.scales::<N>(scales), &mut room);
        let (pairs, last) = blocks.as_chunks::<2>();
        for (i, [first, second]) in pairs.iter().enumerate() {
            to.unsigned::<0>(2 * i, scales, first.bytes());
            to.unsigned::<1>(2 * i + 1, scales, second.bytes());
        }
        if let [last] = last {
            to.unsigned::<0>(2 * pairs.len(), scales, last.bytes());
        }
    }
}

/// The offsets of numbers that are too large by `more`.
#[inline(always)]
unsafe fn without(more: f32, scales: __m256) -> __m256 {
    // SAFETY: the instruction set is there, says the caller.
    unsafe { _mm256_mul_ps(scales, _mm256_set1_ps(-more)) }
}

impl Whole for Q8_0 {
    #[inline(always)]
    unsafe fn add<P: Products, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<P, M>) {
        // SAFETY: the instruction set is there, says the caller; so are the groups of x.
        unsafe {
            let mut room = [[0.0; TOGETHER]; M];
            let scales = to.scales::<N>(bytes::widen(blocks.map(|block| block.d)));
            let scales = bytes::to_memory(scales, &mut room);
            let (pairs, last) = blocks.as_chunks::<2>();
            for (i, [first, second]) in pairs.iter().enumerate() {
                to.signed::<0>(2 * i, scales, bytes::load(&first.q));
                to.signed::<1>(2 * i + 1, scales, bytes::load(&second.q));
            }
            if let [last] = last {
                to.signed::<0>(2 * pairs.len(), scales, bytes::load(&last.q));
            }
        }
    }
}

impl Single for Q4_0 {
    #[inline(always)]
    unsafe fn bytes(&self) -> __m256i {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { bytes::nibbles(bytes::load_half(&self.q)) }
    }
}

impl Whole for Q4_0 {
    #[inline(always)]
    unsafe fn add<P: Products, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<P, M>) {
        // SAFETY: the instruction set is there, says the caller; so are the groups of x.
        unsafe {
            let scales = bytes::widen(blocks.map(|block| block.d));
            singles(blocks, [scales, without(8.0, scales)], to);
        }
    }
}

impl Single for Q4_1 {
    #[inline(always)]
    unsafe fn bytes(&self) -> __m256i {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { bytes::nibbles(bytes::load_half(&self.q)) }
    }
}

impl Whole for Q4_1 {
    #[inline(always)]
    unsafe fn add<P: Products, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<P, M>) {
        // SAFETY: the instruction set is there, says the caller; so are the groups of x.
        unsafe {
            let scales = bytes::widen(blocks.map(|block| block.d));
            singles(blocks, [scales, bytes::widen(blocks.map(|block| block.m))], to);
        }
    }
}

/// Nibbles with their fifth bits.
#[inline(always)]
unsafe fn five_bits(q: &[u8; 16], high: [u8; 4]) -> __m256i {
    // SAFETY: the instruction set is there, says the caller.
    unsafe {
        let fifth = _mm256_and_si256(bytes::spread(high), _mm256_set1_epi8(16));
        _mm256_or_si256(bytes::nibbles(bytes::load_half(q)), fifth)
    }
}

impl Single for Q5_0 {
    #[inline(always)]
    unsafe fn bytes(&self) -> __m256i {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { five_bits(&self.q, self.high) }
    }
}

impl Whole for Q5_0 {
    #[inline(always)]
    unsafe fn add<P: Products, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<P, M>) {
        // SAFETY: the instruction set is there, says the caller; so are the groups of x.
        unsafe {
            let scales = bytes::widen(blocks.map(|block| block.d));
            singles(blocks, [scales, without(16.0, scales)], to);
        }
    }
}

impl Single for Q5_1 {
    #[inline(always)]
    unsafe fn bytes(&self) -> __m256i {
        // SAFETY: the instruction set is there, says the caller.
        unsafe { five_bits(&self.q, self.high) }
    }
}

impl Whole for Q5_1 {
    #[inline(always)]
    unsafe fn add<P: Products, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<P, M>) {
        // SAFETY: the instruction set is there, says the caller; so are the groups of x.
        unsafe {
            let scales = bytes::widen(blocks.map(|block| block.d));
            singles(blocks, [scales, bytes::widen(blocks.map(|block| block.m))], to);
        }
    }
}

impl Whole for Q4K {
    #[inline(always)]
    unsafe fn add<P: Products, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<P, M>) {
        let mut room = [[0.0; TOGETHER]; M];
        for block in blocks {
            // SAFETY: the instruction set is there, says the caller; so are the groups of x.
            unsafe {
                let [scales, offsets] = two_levels([block.d, block.m], &block.scales);
                to.offsets::<TOGETHER>(offsets);
                let scales = bytes::to_memory(to.scales::<TOGETHER>(scales), &mut room);
                for (j, q) in block.q.iter().enumerate() {
                    let q = bytes::load(q);
                    to.unsigned::<0>(2 * j, scales, bytes::low_nibbles(q));
                    to.unsigned::<1>(2 * j + 1, scales, bytes::high_nibbles(q));
                }
            }
        }
    }
}

impl Whole for Q5K {
    #[inline(always)]
    unsafe fn add<P: Products, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<P, M>) {
        let mut room = [[0.0; TOGETHER]; M];
        for block in blocks {
            // SAFETY: the instruction set is there, says the caller; so are the groups of x.
            unsafe {
                let [scales, offsets] = two_levels([block.d, block.m], &block.scales);
                to.offsets::<TOGETHER>(offsets);
                let scales = bytes::to_memory(to.scales::<TOGETHER>(scales), &mut room);
                let high = bytes::load(&block.high);
                for (j, q) in block.q.iter().enumerate() {
                    let (q, first, second) = (bytes::load(q), 2 * j, 2 * j + 1);
                    to.unsigned::<0>(first, scales, bytes::with_fifth(bytes::low_nibbles(q), high, first));
                    to.unsigned::<1>(second, scales, bytes::with_fifth(bytes::high_nibbles(q), high, second));
                }
            }
        }
    }
}

impl Whole for Q6K {
    #[inline(always)]
    unsafe fn add<P: Products, const N: usize, const M: usize>(blocks: &[Self; N], to: &mut Sums<P, M>) {
        let mut room = [[0.0; TOGETHER]; 2];
        for block in blocks {
            // SAFETY: the instruction set is there, says the caller; so are the groups of x.
            unsafe {
                let scales = bytes::sixteen_times(&block.scales, bytes::splat_half(block.d));
                let scales = bytes::to_memory(scales, &mut room).as_flattened().as_chunks().0;
                for (part, (low, high)) in block.low.iter().zip(&block.high).enumerate() {
                    let low = [bytes::load(&low[0]), bytes::load(&low[1])];
                    let high = bytes::load(high);
                    for k in [0, 2] {
                        let group = 4 * part + k;
                        to.halves::<0>(group, scales[group], bytes::six_bits(low[0], high, k));
                        to.halves::<1>(group + 1, scales[group + 1], bytes::six_bits(low[1], high, k + 1));
                    }
                }
            }
        }
    }
}
