//! The blocks of each format, as ggml lays them out, read weight by weight.
//!
//! A format says once what its weights are ([`Block::visit`]): groups of 32 in two halves of 16, each weight a small
//! whole number times a scale of its half, plus an offset of the group. [`Dot`] and [`Unpack`] make a sum of products
//! or plain numbers of that; all of it inlines into loops over 16 lanes that vectorise.
//!
//! Layouts: ggml's `ggml-common.h`. Every field is bytes, so that blocks may lie anywhere.

use half::f16;

use crate::linear::stored::Stored;

/// Weights that share an offset.
pub(super) const GROUP: usize = 32;
/// Half a group, and the lanes of a sum.
pub(super) const HALF: usize = 16;

pub(super) type Group = [f32; GROUP];
pub(super) type Lanes = [f32; HALF];

/// One block of a format.
///
/// # Safety
/// Made of bytes alone: of alignment 1, without padding, every bit pattern a value.
pub(super) unsafe trait Block: Copy + Send + Sync {
    /// Groups in a block.
    const GROUPS: usize;

    /// Shows every group to `visitor`, in order.
    fn visit(&self, visitor: &mut impl Visitor);
}

/// Sees the weights `scale · number + offset` of a group: `lo` gives the numbers of its first half, `hi` of its second.
pub(super) trait Visitor {
    fn group(
        &mut self,
        index: usize,
        scale: f32,
        offset: Option<f32>,
        lo: impl Fn(usize) -> f32,
        hi: impl Fn(usize) -> f32,
    );

    /// With a scale for each half, and no offset.
    fn halves(
        &mut self,
        index: usize,
        scales: [f32; 2],
        lo: impl Fn(usize) -> f32,
        hi: impl Fn(usize) -> f32,
    );
}

/// Adds the products of a block's weights with `x`.
pub(super) struct Dot<'a> {
    /// A group of numbers for each of the block's.
    pub(super) x: &'a [Group],
    /// Their sums.
    pub(super) sums: &'a [f32],
    pub(super) lanes: &'a mut Lanes,
    /// The part of the offsets.
    pub(super) rest: &'a mut f32,
}

impl Visitor for Dot<'_> {
    #[inline(always)]
    fn group(
        &mut self,
        index: usize,
        scale: f32,
        offset: Option<f32>,
        lo: impl Fn(usize) -> f32,
        hi: impl Fn(usize) -> f32,
    ) {
        let x = &self.x[index];
        for i in 0..HALF {
            let products = x[HALF + i].mul_add(hi(i), x[i] * lo(i));
            self.lanes[i] = scale.mul_add(products, self.lanes[i]);
        }
        if let Some(offset) = offset {
            *self.rest = offset.mul_add(self.sums[index], *self.rest);
        }
    }

    #[inline(always)]
    fn halves(
        &mut self,
        index: usize,
        scales: [f32; 2],
        lo: impl Fn(usize) -> f32,
        hi: impl Fn(usize) -> f32,
    ) {
        let x = &self.x[index];
        for i in 0..HALF {
            let second = scales[1].mul_add(x[HALF + i] * hi(i), self.lanes[i]);
            self.lanes[i] = scales[0].mul_add(x[i] * lo(i), second);
        }
    }
}

/// Writes a block's weights.
pub(super) struct Unpack<'a>(pub(super) &'a mut [Group]);

impl Visitor for Unpack<'_> {
    #[inline(always)]
    fn group(
        &mut self,
        index: usize,
        scale: f32,
        offset: Option<f32>,
        lo: impl Fn(usize) -> f32,
        hi: impl Fn(usize) -> f32,
    ) {
        self.halves(index, [scale; 2], lo, hi);
        if let Some(offset) = offset {
            self.0[index].iter_mut().for_each(|w| *w += offset);
        }
    }

    #[inline(always)]
    fn halves(
        &mut self,
        index: usize,
        scales: [f32; 2],
        lo: impl Fn(usize) -> f32,
        hi: impl Fn(usize) -> f32,
    ) {
        let to = &mut self.0[index];
        for i in 0..HALF {
            to[i] = scales[0] * lo(i);
        }
        for i in 0..HALF {
            to[HALF + i] = scales[1] * hi(i);
        }
    }
}

#[inline(always)]
fn number(half: [u8; 2]) -> f32 {
    f16::from_le_bytes(half).widen()
}

/// Numbers from -127 to 127.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Q8_0 {
    pub(super) d: [u8; 2],
    pub(super) q: [i8; 32],
}

// SAFETY: bytes alone.
unsafe impl Block for Q8_0 {
    const GROUPS: usize = 1;

    #[inline(always)]
    fn visit(&self, visitor: &mut impl Visitor) {
        visitor.group(0, number(self.d), None, |i| f32::from(self.q[i]), |i| f32::from(self.q[HALF + i]));
    }
}

/// Nibbles less 8.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Q4_0 {
    pub(super) d: [u8; 2],
    pub(super) q: [u8; 16],
}

// SAFETY: bytes alone.
unsafe impl Block for Q4_0 {
    const GROUPS: usize = 1;

    #[inline(always)]
    fn visit(&self, visitor: &mut impl Visitor) {
        let less_8 = |nibble: u8| (i32::from(nibble) - 8) as f32;
        visitor.group(0, number(self.d), None, |i| less_8(self.q[i] & 15), |i| less_8(self.q[i] >> 4));
    }
}

/// Nibbles and an offset.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Q4_1 {
    pub(super) d: [u8; 2],
    pub(super) m: [u8; 2],
    pub(super) q: [u8; 16],
}

impl Q4_1 {
    #[inline(always)]
    pub(super) fn offset(&self) -> f32 {
        number(self.m)
    }
}

// SAFETY: bytes alone.
unsafe impl Block for Q4_1 {
    const GROUPS: usize = 1;

    #[inline(always)]
    fn visit(&self, visitor: &mut impl Visitor) {
        let (lo, hi) = (|i: usize| f32::from(self.q[i] & 15), |i: usize| f32::from(self.q[i] >> 4));
        visitor.group(0, number(self.d), Some(self.offset()), lo, hi);
    }
}

/// Nibbles with a fifth bit, less 16.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Q5_0 {
    pub(super) d: [u8; 2],
    pub(super) high: [u8; 4],
    pub(super) q: [u8; 16],
}

// SAFETY: bytes alone.
unsafe impl Block for Q5_0 {
    const GROUPS: usize = 1;

    #[inline(always)]
    fn visit(&self, visitor: &mut impl Visitor) {
        let high = u32::from_le_bytes(self.high);
        let with_fifth = |nibble: u8, i: usize| {
            (i32::from(nibble) | (((high >> i) & 1) << 4).cast_signed()).wrapping_sub(16) as f32
        };
        let (lo, hi) =
            (|i: usize| with_fifth(self.q[i] & 15, i), |i: usize| with_fifth(self.q[i] >> 4, HALF + i));
        visitor.group(0, number(self.d), None, lo, hi);
    }
}

/// Nibbles with a fifth bit and an offset.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Q5_1 {
    pub(super) d: [u8; 2],
    pub(super) m: [u8; 2],
    pub(super) high: [u8; 4],
    pub(super) q: [u8; 16],
}

impl Q5_1 {
    #[inline(always)]
    pub(super) fn offset(&self) -> f32 {
        number(self.m)
    }
}

// SAFETY: bytes alone.
unsafe impl Block for Q5_1 {
    const GROUPS: usize = 1;

    #[inline(always)]
    fn visit(&self, visitor: &mut impl Visitor) {
        let high = u32::from_le_bytes(self.high);
        let with_fifth =
            |nibble: u8, i: usize| (i32::from(nibble) | (((high >> i) & 1) << 4).cast_signed()) as f32;
        let (lo, hi) =
            (|i: usize| with_fifth(self.q[i] & 15, i), |i: usize| with_fifth(self.q[i] >> 4, HALF + i));
        visitor.group(0, number(self.d), Some(self.offset()), lo, hi);
    }
}

/// Scales and offsets of eight groups, six bits each: those of the first four groups in the low bits of a byte each, those
/// of the others in nibbles and the bits left over.
#[inline(always)]
pub(super) fn scales_and_offsets(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word = |i: usize| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]);
    let (scales, offsets, high) = (word(0), word(4), word(8));
    let six = |low: u32| low & 0x3f3f_3f3f;
    let rest = |low: u32, four: u32| (four & 0x0f0f_0f0f) | ((low >> 6) & 0x0303_0303) << 4;
    let eight = |first: u32, second: u32| (u64::from(first) | u64::from(second) << 32).to_le_bytes();
    (eight(six(scales), rest(scales, high)), eight(six(offsets), rest(offsets, high >> 4)))
}

/// Scales and offsets of eight groups as numbers.
#[inline(always)]
fn scaled_groups(d: [u8; 2], m: [u8; 2], packed: &[u8; 12]) -> ([f32; 8], [f32; 8]) {
    let ((d, m), (scales, offsets)) = ((number(d), number(m)), scales_and_offsets(packed));
    (scales.map(|s| d * f32::from(s)), offsets.map(|o| -m * f32::from(o)))
}

/// 256 nibbles; scales and offsets of groups are multiples of the block's.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Q4K {
    pub(super) d: [u8; 2],
    pub(super) m: [u8; 2],
    pub(super) scales: [u8; 12],
    pub(super) q: [[u8; 32]; 4],
}

impl Q4K {
    /// Scales and offsets of its groups.
    #[inline(always)]
    pub(super) fn scales(&self) -> ([f32; 8], [f32; 8]) {
        scaled_groups(self.d, self.m, &self.scales)
    }
}

// SAFETY: bytes alone.
unsafe impl Block for Q4K {
    const GROUPS: usize = 8;

    #[inline(always)]
    fn visit(&self, visitor: &mut impl Visitor) {
        let (scales, offsets) = self.scales();
        for (j, q) in self.q.iter().enumerate() {
            let (lo, hi) = (|i: usize| f32::from(q[i] & 15), |i: usize| f32::from(q[HALF + i] & 15));
            visitor.group(2 * j, scales[2 * j], Some(offsets[2 * j]), lo, hi);
            let (lo, hi) = (|i: usize| f32::from(q[i] >> 4), |i: usize| f32::from(q[HALF + i] >> 4));
            visitor.group(2 * j + 1, scales[2 * j + 1], Some(offsets[2 * j + 1]), lo, hi);
        }
    }
}

/// As [`Q4K`], with a fifth bit: bit j of byte i belongs to weight i of group j.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Q5K {
    pub(super) d: [u8; 2],
    pub(super) m: [u8; 2],
    pub(super) scales: [u8; 12],
    pub(super) high: [u8; 32],
    pub(super) q: [[u8; 32]; 4],
}

impl Q5K {
    /// Scales and offsets of its groups.
    #[inline(always)]
    pub(super) fn scales(&self) -> ([f32; 8], [f32; 8]) {
        scaled_groups(self.d, self.m, &self.scales)
    }
}

// SAFETY: bytes alone.
unsafe impl Block for Q5K {
    const GROUPS: usize = 8;

    #[inline(always)]
    fn visit(&self, visitor: &mut impl Visitor) {
        let (scales, offsets) = self.scales();
        for (j, q) in self.q.iter().enumerate() {
            let fifth = |i: usize, group: usize| ((self.high[i] >> group) & 1) << 4;
            let of = |i: usize| f32::from((q[i] & 15) | fifth(i, 2 * j));
            visitor.group(2 * j, scales[2 * j], Some(offsets[2 * j]), of, |i| of(HALF + i));
            let of = |i: usize| f32::from((q[i] >> 4) | fifth(i, 2 * j + 1));
            visitor.group(2 * j + 1, scales[2 * j + 1], Some(offsets[2 * j + 1]), of, |i| of(HALF + i));
        }
    }
}

/// 256 numbers of six bits, less 32, a scale for each 16: in two parts of 128, whose weights i, i + 32, i + 64 and
/// i + 96 have their low bits in two bytes' nibbles and their high bits in one byte.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Q6K {
    pub(super) low: [[[u8; 32]; 2]; 2],
    pub(super) high: [[u8; 32]; 2],
    pub(super) scales: [i8; 16],
    pub(super) d: [u8; 2],
}

impl Q6K {
    /// Scales of halves of groups.
    #[inline(always)]
    pub(super) fn scales(&self) -> [f32; 16] {
        let d = number(self.d);
        self.scales.map(|s| d * f32::from(s))
    }
}

// SAFETY: bytes alone.
unsafe impl Block for Q6K {
    const GROUPS: usize = 8;

    #[inline(always)]
    fn visit(&self, visitor: &mut impl Visitor) {
        let scales = self.scales();
        for (part, (low, high)) in self.low.iter().zip(&self.high).enumerate() {
            for k in 0..4 {
                let at = 8 * part + 2 * k;
                let of = |i: usize| {
                    let bits = (low[k % 2][i] >> (4 * (k / 2))) & 15 | ((high[i] >> (2 * k)) & 3) << 4;
                    (i32::from(bits) - 32) as f32
                };
                visitor.halves(4 * part + k, [scales[at], scales[at + 1]], of, |i| of(HALF + i));
            }
        }
    }
}
