//! Numbers as they are stored, read into whole registers of the arithmetic type.

use half::{bf16, f16};
use pulp::Simd;

use crate::simd::Real;

/// Whole registers of an arithmetic type, for any instruction set.
pub(crate) trait Register: Real {
    /// As many values as the instruction set `S` holds in a register.
    type V<S: Simd>: Copy;

    fn none<S: Simd>(simd: S) -> Self::V<S>;
    fn plus<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    /// `a b + c`
    fn fused<S: Simd>(simd: S, a: Self::V<S>, b: Self::V<S>, c: Self::V<S>) -> Self::V<S>;
    /// The sum of the values in it.
    fn total<S: Simd>(simd: S, a: Self::V<S>) -> Self;

    /// Values in a register.
    fn lanes<S: Simd>() -> usize {
        size_of::<Self::V<S>>() / size_of::<Self>()
    }
}

macro_rules! register {
    ($real:ty, $v:ident, $splat:ident, $add:ident, $mul_add:ident, $sum:ident) => {
        impl Register for $real {
            type V<S: Simd> = S::$v;

            #[inline(always)]
            fn none<S: Simd>(simd: S) -> S::$v {
                simd.$splat(0.0)
            }
            #[inline(always)]
            fn plus<S: Simd>(simd: S, a: S::$v, b: S::$v) -> S::$v {
                simd.$add(a, b)
            }
            #[inline(always)]
            fn fused<S: Simd>(simd: S, a: S::$v, b: S::$v, c: S::$v) -> S::$v {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn total<S: Simd>(simd: S, a: S::$v) -> $real {
                simd.$sum(a)
            }
        }
    };
}

register!(f32, f32s, splat_f32s, add_f32s, mul_add_e_f32s, reduce_sum_f32s);
register!(f64, f64s, splat_f64s, add_f64s, mul_add_e_f64s, reduce_sum_f64s);

/// A stored number that the arithmetic type `T` holds exactly.
pub(crate) trait Stored<T: Register>: candle_core::WithDType + Send + Sync {
    /// The value, without branches or calls.
    fn widen(self) -> T;

    /// Two registers of values from memory, in the order of [`Stored::arrange`].
    ///
    /// # Safety
    /// As many values as two registers of `T` hold are readable at `from`, which need not be aligned.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> [T::V<S>; 2];

    /// Copies values that go with those of a [`Stored::load`] into its order, for registers of `lanes` values.
    fn arrange(from: &[T], to: &mut [T], lanes: usize);

    /// The values themselves, where they are stored in the arithmetic type.
    fn as_is(_: &[Self]) -> Option<&[T]> {
        None
    }
}

macro_rules! stored_as_is {
    ($real:ty, $v:ident) => {
        impl Stored<$real> for $real {
            #[inline(always)]
            fn widen(self) -> $real {
                self
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(_: S, from: *const Self) -> [S::$v; 2] {
                // SAFETY: the caller's promise; any bits are a value of a register.
                unsafe { from.cast::<[S::$v; 2]>().read_unaligned() }
            }
            #[inline(always)]
            fn arrange(from: &[$real], to: &mut [$real], _: usize) {
                to.copy_from_slice(from);
            }
            fn as_is(values: &[Self]) -> Option<&[$real]> {
                Some(values)
            }
        }
    };
}

stored_as_is!(f32, f32s);
stored_as_is!(f64, f64s);

/// Pairs of 16-bit values, each moved to the upper half of its own 32 bits: those at even places, those at odd ones.
/// No lane is crossed, unlike when widening in order.
///
/// # Safety
/// As for [`Stored::load`].
#[inline(always)]
unsafe fn even_odd<S: Simd>(simd: S, from: *const u32) -> [S::u32s; 2] {
    // SAFETY: the caller's promise; any bits are a value of a register.
    let pairs = unsafe { from.cast::<S::u32s>().read_unaligned() };
    [
        simd.wrapping_dyn_shl_u32s(pairs, simd.splat_u32s(16)),
        simd.and_u32s(pairs, simd.splat_u32s(0xffff_0000)),
    ]
}

/// The values at even places first, then those at odd ones.
#[inline(always)]
fn arrange_even_odd(from: &[f32], to: &mut [f32], lanes: usize) {
    let (even, odd) = to.split_at_mut(lanes);
    for ((even, odd), from) in even.iter_mut().zip(odd).zip(from.chunks_exact(2)) {
        (*even, *odd) = (from[0], from[1]);
    }
}

impl Stored<f32> for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> [S::f32s; 2] {
        // SAFETY: the caller's promise.
        let [even, odd] = unsafe { even_odd(simd, from.cast()) };
        [simd.transmute_f32s_u32s(even), simd.transmute_f32s_u32s(odd)]
    }

    #[inline(always)]
    fn arrange(from: &[f32], to: &mut [f32], lanes: usize) {
        arrange_even_odd(from, to, lanes);
    }
}

// An f16's exponent and mantissa are moved to their places in an f32. An exact product by 2^112 then mends the bias of
// the exponent and normalises subnormals; infinities and NaNs get the largest exponent instead.
const F16_BIAS: u32 = 0x7780_0000;
const F16_SPECIAL: u32 = 0x0f80_0000;

impl Stored<f32> for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        let finite = (f32::from_bits(magnitude) * f32::from_bits(F16_BIAS)).to_bits();
        let value = if magnitude >= F16_SPECIAL { magnitude | 0x7f80_0000 } else { finite };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> [S::f32s; 2] {
        // SAFETY: the caller's promise.
        let [even, odd] = unsafe { even_odd(simd, from.cast()) };
        [f16_from_upper_half(simd, even), f16_from_upper_half(simd, odd)]
    }

    #[inline(always)]
    fn arrange(from: &[f32], to: &mut [f32], lanes: usize) {
        arrange_even_odd(from, to, lanes);
    }
}

/// [`Stored::widen`] of f16 bits that lie in the upper half of each 32 bits.
#[inline(always)]
fn f16_from_upper_half<S: Simd>(simd: S, bits: S::u32s) -> S::f32s {
    let magnitude = simd.and_u32s(bits, simd.splat_u32s(0x7fff_0000));
    let magnitude = simd.wrapping_dyn_shr_u32s(magnitude, simd.splat_u32s(3));
    let bias = simd.splat_f32s(f32::from_bits(F16_BIAS));
    let finite = simd.transmute_u32s_f32s(simd.mul_f32s(simd.transmute_f32s_u32s(magnitude), bias));
    let special = simd.or_u32s(magnitude, simd.splat_u32s(0x7f80_0000));
    let is_special = simd.greater_than_or_equal_u32s(magnitude, simd.splat_u32s(F16_SPECIAL));
    let value = simd.select_u32s(is_special, special, finite);
    let sign = simd.and_u32s(bits, simd.splat_u32s(0x8000_0000));
    simd.transmute_f32s_u32s(simd.or_u32s(value, sign))
}
