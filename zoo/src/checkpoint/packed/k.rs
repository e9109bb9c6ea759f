//! Blocks of 256 weights with two levels of scales.

use super::small::STEPS;
use super::{half_at, nibbles};

/// Two bits a weight in planes: byte i of 32 holds those of weights i, 32 + i, 64 + i and 96 + i of 128.
fn plane(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3
}

/// Each 16 weights have a scale of four bits and an offset of four.
pub(super) fn q2_k(block: &[u8], numbers: &mut [f32]) {
    let (scales, codes) = block[..80].split_at(16);
    let (d, offset) = (half_at(block, 80), half_at(block, 82));
    for (i, number) in numbers.iter_mut().enumerate() {
        let scale = scales[i / 16];
        *number = d * f32::from(scale & 15) * f32::from(plane(codes, i)) - offset * f32::from(scale >> 4);
    }
}

/// The third bits stand apart, one mask of 32 bytes with a bit for each 32 weights; each 16 weights have a scale of six
/// bits, of which four are in the first eight bytes and two in the last four.
pub(super) fn q3_k(block: &[u8], numbers: &mut [f32]) {
    let (mask, rest) = block.split_at(32);
    let (codes, rest) = rest.split_at(64);
    let (low, high) = rest[..12].split_at(8);
    let d = half_at(block, 108);
    let scale = |g: usize| {
        let bits = (low[g % 8] >> (4 * (g / 8)) & 15) | (high[g % 4] >> (2 * (g / 4)) & 3) << 4;
        d * f32::from(bits as i8 - 32)
    };
    for (g, numbers) in numbers.chunks_exact_mut(16).enumerate() {
        let scale = scale(g);
        for (j, number) in numbers.iter_mut().enumerate() {
            let i = 16 * g + j;
            let third = mask[i % 32] >> (i / 32) & 1;
            *number = scale * f32::from((plane(codes, i) | third << 2) as i8 - 4);
        }
    }
}

/// Each 32 weights have a scale of six bits: four in a nibble, two in one of 16 bits.
pub(super) fn iq4_xs(block: &[u8], numbers: &mut [f32]) {
    let d = half_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    let (low, codes) = block[4..].split_at(4);
    for (g, (codes, numbers)) in codes.chunks_exact(16).zip(numbers.chunks_exact_mut(32)).enumerate() {
        let bits = (low[g / 2] >> (4 * (g % 2)) & 15) | ((high >> (2 * g) & 3) as u8) << 4;
        let scale = d * f32::from(bits as i8 - 32);
        nibbles(codes, numbers, |q| scale * f32::from(STEPS[usize::from(q)]));
    }
}
