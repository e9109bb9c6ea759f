//! Blocks with one level of scales.

use super::{half_at, nibbles};

/// The steps of `iq4_nl` and `iq4_xs`.
pub(super) const STEPS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice what each code of a 4-bit floating-point number stands for: a sign, two bits of exponent, one of mantissa.
const HALVES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Bits that stand for the scale or its negative, the lowest first.
pub(super) fn q1_0(block: &[u8], numbers: &mut [f32]) {
    let d = half_at(block, 0);
    for (i, number) in numbers.iter_mut().enumerate() {
        *number = if block[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
    }
}

/// Pairs of bits, the lowest first, less one.
pub(super) fn q2_0(block: &[u8], numbers: &mut [f32]) {
    let d = half_at(block, 0);
    for (i, number) in numbers.iter_mut().enumerate() {
        *number = d * f32::from((block[2 + i / 4] >> (2 * (i % 4)) & 3) as i8 - 1);
    }
}

pub(super) fn iq4_nl(block: &[u8], numbers: &mut [f32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], numbers, |q| d * f32::from(STEPS[usize::from(q)]));
}

/// The scale is a power of two of bias 127.
pub(super) fn mxfp4(block: &[u8], numbers: &mut [f32]) {
    let d = 2f64.powi(i32::from(block[0]) - 128) as f32;
    nibbles(&block[1..], numbers, |q| d * f32::from(HALVES[usize::from(q)]));
}

/// Scales of four bits of exponent (of bias 7) and three of mantissa, one for 16 weights; 0x7f stands for none.
pub(super) fn nvfp4(block: &[u8], numbers: &mut [f32]) {
    let (scales, codes) = block.split_at(4);
    for ((scale, codes), numbers) in
        scales.iter().zip(codes.chunks_exact(8)).zip(numbers.chunks_exact_mut(16))
    {
        let (exponent, mantissa) = (i32::from(scale >> 3 & 15), f32::from(scale & 7));
        let scale = match (scale, exponent) {
            (0x7f, _) => 0.0,
            (_, 0) => mantissa * 2f32.powi(-9),
            _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
        };
        nibbles(codes, numbers, |q| 0.5 * scale * f32::from(HALVES[usize::from(q)]));
    }
}
