//! Weights of -1, 0 and 1, as BitNet has them.

use super::half_at;

/// The digit of this place of a byte that holds five of base three, the highest first, as a fraction of 256.
fn digit(byte: u8, place: usize) -> f32 {
    let rest = byte.wrapping_mul([1, 3, 9, 27, 81][place]);
    f32::from(((u16::from(rest) * 3) >> 8) as i8 - 1)
}

/// 32 bytes of five digits each, 16 of five, 4 of four: in each group the first digits of all bytes, then the second.
pub(super) fn tq1_0(block: &[u8], numbers: &mut [f32]) {
    let d = half_at(block, 52);
    let groups = [(0, 32, 0), (32, 16, 160), (48, 4, 240)];
    for (first, bytes, start) in groups {
        let digits = if bytes == 4 { 4 } else { 5 };
        for (i, number) in numbers[start..start + bytes * digits].iter_mut().enumerate() {
            *number = d * digit(block[first + i % bytes], i / bytes);
        }
    }
}

/// Two bits a weight in planes of 32 bytes.
pub(super) fn tq2_0(block: &[u8], numbers: &mut [f32]) {
    let d = half_at(block, 64);
    for (i, number) in numbers.iter_mut().enumerate() {
        let code = block[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
        *number = d * f32::from(code as i8 - 1);
    }
}
