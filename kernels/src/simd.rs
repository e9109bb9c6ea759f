//! Vectorised elementary functions and run-time choice of the instruction set.
//!
//! Plain loops over slices, inside a closure given to [`vectorized`], are compiled once for each instruction set
//! (baseline, AVX2 + FMA, AVX-512; NEON) and the best one the machine has is taken at run time. The functions here have
//! no branches and no calls, so that such loops vectorise. f64 goes through the standard library: it is the proof of
//! the maths, not the fast path.

/// Runs `f` compiled for the best instruction set of this machine. Everything it calls must inline, and so must a long
/// closure itself, which otherwise stays one plain function that all instruction sets call:
/// `vectorized(#[inline(always)] || ...)`.
#[inline(always)]
pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    struct Body<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Body<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Body(f))
}

/// `Σ a_i b_i` of short rows, in lanes, for plain loops inside [`vectorized`]; [`Real::dot`] is the faster one.
#[inline(always)]
pub(crate) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    const LANES: usize = 16;
    let mut sums = [T::ZERO; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut rest = T::ZERO;
    for (&a, &b) in a_lanes.remainder().iter().zip(b_lanes.remainder()) {
        rest = Real::mul_add(a, b, rest);
    }
    for (a, b) in a_lanes.zip(b_lanes) {
        for l in 0..LANES {
            sums[l] = Real::mul_add(a[l], b[l], sums[l]);
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            sums[l] += sums[l + half];
        }
        half /= 2;
    }
    sums[0] + rest
}

/// A row as lanes, padded with zeros if it is short.
#[inline(always)]
pub(crate) fn lanes<T: Real, const W: usize>(row: &[T]) -> [T; W] {
    match row.first_chunk::<W>() {
        Some(full) => *full,
        None => padded(row),
    }
}

/// Apart, so that the full row is copied without a call.
#[cold]
#[inline(never)]
fn padded<T: Real, const W: usize>(row: &[T]) -> [T; W] {
    let mut out = [T::ZERO; W];
    out[..row.len()].copy_from_slice(row);
    out
}

/// Writes the first lanes, as many as there are channels.
#[inline(always)]
pub(crate) fn put<T: Real, const W: usize>(row: &mut [T], values: &[T; W]) {
    match row.first_chunk_mut::<W>() {
        Some(full) => *full = *values,
        None => put_some(row, values),
    }
}

#[cold]
#[inline(never)]
fn put_some<T: Real>(row: &mut [T], values: &[T]) {
    row.copy_from_slice(&values[..row.len()]);
}

/// The arithmetic of a kernel's state and accumulators: f32, or f64 for f64 data.
pub(crate) trait Real:
    candle_core::WithDType
    + Copy
    + Default
    + Send
    + Sync
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::MulAssign
    + std::iter::Sum
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;
    const LOG2_E: Self;
    /// From a constant or an option.
    fn real(v: f64) -> Self;
    fn exp(self) -> Self;
    /// `2^self`; cheaper than [`Real::exp`] where a factor `log2 e` folds into a constant.
    fn exp2(self) -> Self;
    fn tanh(self) -> Self;
    /// `ln(1 + self)` for `self` in [0, 1].
    fn ln_1p_unit(self) -> Self;
    fn abs(self) -> Self;
    fn sqrt(self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    /// `self * a + b`, fused where the machine can.
    fn mul_add(self, a: Self, b: Self) -> Self;

    /// A vector of an instruction set that a [`pulp::WithSimd`] was given.
    type Lanes<S: pulp::Simd>: Copy;

    /// `x` in all lanes.
    fn splat<S: pulp::Simd>(simd: S, x: Self) -> Self::Lanes<S>;

    /// `a b + c`, lane by lane, fused where the machine can.
    fn lanes_mul_add<S: pulp::Simd>(
        simd: S,
        a: Self::Lanes<S>,
        b: Self::Lanes<S>,
        c: Self::Lanes<S>,
    ) -> Self::Lanes<S>;

    /// `a + b`, lane by lane.
    fn lanes_add<S: pulp::Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>) -> Self::Lanes<S>;

    /// `Σ a[i] b[i]` over the shorter length, with the vectors of an instruction set that a [`pulp::WithSimd`] was given:
    /// the compiler does not find the final sum over the lanes by itself.
    fn dot<S: pulp::Simd>(simd: S, a: &[Self], b: &[Self]) -> Self;

    /// `1 / (1 + exp(-self))`
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + Real::exp(-self))
    }

    /// `self * sigmoid(self)`
    #[inline(always)]
    fn silu(self) -> Self {
        self / (Self::ONE + Real::exp(-self))
    }

    /// Derivative of [`Real::silu`].
    #[inline(always)]
    fn silu_grad(self) -> Self {
        let s = self.sigmoid();
        s * (Self::ONE + self * (Self::ONE - s))
    }

    /// `ln(1 + exp(self))`, the stable form: no overflow for large, full precision for very negative `self`.
    #[inline(always)]
    fn softplus(self) -> Self {
        Real::max(self, Self::ZERO) + Real::exp(-Real::abs(self)).ln_1p_unit()
    }
}

impl Real for f32 {
    type Lanes<S: pulp::Simd> = S::f32s;

    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    const LOG2_E: Self = std::f32::consts::LOG2_E;

    #[inline(always)]
    fn real(v: f64) -> Self {
        v as f32
    }

    /// Within 2 ulp over the whole range; 0 below -87.3, +∞ above 88.7. NaN stays NaN.
    #[inline(always)]
    fn exp(self) -> Self {
        // x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts (Cody-Waite), e^r by its Taylor polynomial of degree 7.
        const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest integer
        let x = self;
        let clamped = x.clamp(-87.4, 88.8);
        let shifted = f32::mul_add(clamped, std::f32::consts::LOG2_E, SHIFT);
        let n = shifted - SHIFT;
        let r = f32::mul_add(n, -355.0 / 512.0, clamped);
        let r = f32::mul_add(n, 2.121_944_4e-4, r);
        let mut p = 1.0 / 5040.0;
        p = f32::mul_add(p, r, 1.0 / 720.0);
        p = f32::mul_add(p, r, 1.0 / 120.0);
        p = f32::mul_add(p, r, 1.0 / 24.0);
        p = f32::mul_add(p, r, 1.0 / 6.0);
        p = f32::mul_add(p, r, 0.5);
        p = f32::mul_add(p, r, 1.0);
        p = f32::mul_add(p, r, 1.0);
        // 2^n in two factors, so that n = 128 does not overflow before the product does.
        let bits = shifted.to_bits() as i32 - SHIFT.to_bits() as i32;
        let half = bits >> 1;
        let scale = |e: i32| f32::from_bits(((e + 127) << 23) as u32);
        let y = p * scale(half) * scale(bits - half);
        let y = if x < -87.336_55 { 0.0 } else { y };
        let y = if x > 88.722_84 { f32::INFINITY } else { y };
        if x.is_nan() { x } else { y }
    }

    /// Within 2 ulp over the whole range, exact at 0; 0 below -127, +∞ from 127.5 up. NaN stays NaN.
    #[inline(always)]
    fn exp2(self) -> Self {
        // x = n + r, |r| <= 1/2. Adding the shift leaves n + 127 in the low bits, where one move makes it the exponent.
        // 2^r = 1 + r ln 2 + r² q(r): q is the minimax fit of the relative error, 3e-9.
        const SHIFT: f32 = 12_583_039.0; // 1.5 * 2^23 + 127
        let x = if self > 128.0 { 128.0 } else { self };
        let x = if x < -127.0 { -127.0 } else { x };
        let shifted = x + SHIFT;
        let r = x - (shifted - SHIFT);
        let mut p = 1.532_115_2e-4;
        p = f32::mul_add(p, r, 1.339_016_2e-3);
        p = f32::mul_add(p, r, 9.618_526e-3);
        p = f32::mul_add(p, r, 5.550_362e-2);
        p = f32::mul_add(p, r, 2.402_264_8e-1);
        p = f32::mul_add(p, r, std::f32::consts::LN_2);
        p = f32::mul_add(p, r, 1.0);
        p * f32::from_bits(shifted.to_bits() << 23)
    }

    #[inline(always)]
    fn tanh(self) -> Self {
        // Odd polynomial near zero, where the quotient would cancel.
        let x2 = self * self;
        let small = self
            * f32::mul_add(
                x2,
                f32::mul_add(
                    x2,
                    f32::mul_add(x2, f32::mul_add(x2, 62.0 / 2835.0, -17.0 / 315.0), 2.0 / 15.0),
                    -1.0 / 3.0,
                ),
                1.0,
            );
        let e = Real::exp(-2.0 * f32::abs(self));
        let large = f32::copysign((1.0 - e) / (1.0 + e), self);
        if f32::abs(self) < 0.25 { small } else { large }
    }

    #[inline(always)]
    fn ln_1p_unit(self) -> Self {
        // 2 atanh(s), s = u / (2 + u) <= 1/3.
        let s = self / (2.0 + self);
        let s2 = s * s;
        let mut p = 1.0 / 15.0;
        for d in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
            p = f32::mul_add(p, s2, 1.0 / d);
        }
        2.0 * s * p
    }

    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        f32::max(self, other)
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        f32::min(self, other)
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn splat<S: pulp::Simd>(simd: S, x: Self) -> Self::Lanes<S> {
        simd.splat_f32s(x)
    }
    #[inline(always)]
    fn lanes_mul_add<S: pulp::Simd>(
        simd: S,
        a: Self::Lanes<S>,
        b: Self::Lanes<S>,
        c: Self::Lanes<S>,
    ) -> Self::Lanes<S> {
        simd.mul_add_e_f32s(a, b, c)
    }
    #[inline(always)]
    fn lanes_add<S: pulp::Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>) -> Self::Lanes<S> {
        simd.add_f32s(a, b)
    }
    #[inline(always)]
    fn dot<S: pulp::Simd>(simd: S, a: &[Self], b: &[Self]) -> Self {
        let len = a.len().min(b.len());
        let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(&a[..len]), S::as_simd_f32s(&b[..len]));
        // Two sums, so that an addition need not wait for the one before.
        let mut sums = [simd.splat_f32s(0.0); 2];
        for (a, b) in a.chunks(2).zip(b.chunks(2)) {
            sums[0] = simd.mul_add_e_f32s(a[0], b[0], sums[0]);
            if let (Some(&a), Some(&b)) = (a.get(1), b.get(1)) {
                sums[1] = simd.mul_add_e_f32s(a, b, sums[1]);
            }
        }
        let rest: Self = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
        simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1])) + rest
    }
}

impl Real for f64 {
    type Lanes<S: pulp::Simd> = S::f64s;

    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    const LOG2_E: Self = std::f64::consts::LOG2_E;

    #[inline(always)]
    fn real(v: f64) -> Self {
        v
    }
    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        f64::exp2(self)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
    #[inline(always)]
    fn ln_1p_unit(self) -> Self {
        f64::ln_1p(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f64::abs(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        f64::max(self, other)
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        f64::min(self, other)
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        f64::mul_add(self, a, b)
    }
    #[inline(always)]
    fn splat<S: pulp::Simd>(simd: S, x: Self) -> Self::Lanes<S> {
        simd.splat_f64s(x)
    }
    #[inline(always)]
    fn lanes_mul_add<S: pulp::Simd>(
        simd: S,
        a: Self::Lanes<S>,
        b: Self::Lanes<S>,
        c: Self::Lanes<S>,
    ) -> Self::Lanes<S> {
        simd.mul_add_e_f64s(a, b, c)
    }
    #[inline(always)]
    fn lanes_add<S: pulp::Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>) -> Self::Lanes<S> {
        simd.add_f64s(a, b)
    }
    #[inline(always)]
    fn dot<S: pulp::Simd>(simd: S, a: &[Self], b: &[Self]) -> Self {
        let len = a.len().min(b.len());
        let ((a, a_rest), (b, b_rest)) = (S::as_simd_f64s(&a[..len]), S::as_simd_f64s(&b[..len]));
        // Two sums, so that an addition need not wait for the one before.
        let mut sums = [simd.splat_f64s(0.0); 2];
        for (a, b) in a.chunks(2).zip(b.chunks(2)) {
            sums[0] = simd.mul_add_e_f64s(a[0], b[0], sums[0]);
            if let (Some(&a), Some(&b)) = (a.get(1), b.get(1)) {
                sums[1] = simd.mul_add_e_f64s(a, b, sums[1]);
            }
        }
        let rest: Self = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
        simd.reduce_sum_f64s(simd.add_f64s(sums[0], sums[1])) + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest relative error of `f` against `exact` over `n` points of [lo, hi].
    fn worst(lo: f64, hi: f64, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let n = 200_000;
        (0..=n)
            .map(|i| (lo + (hi - lo) * i as f64 / n as f64) as f32)
            .map(|x| {
                let e = exact(f64::from(x));
                (f64::from(f(x)) - e).abs() / e.abs().max(1e-30)
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn f32_functions_are_accurate_to_a_few_ulp() {
        assert!(worst(-87.0, 88.7, Real::exp, f64::exp) < 2.5e-7);
        assert!(worst(-126.0, 127.4, Real::exp2, f64::exp2) < 2.5e-7);
        assert!(worst(0.0, 1.0, Real::ln_1p_unit, f64::ln_1p) < 3e-7);
        assert!(worst(-30.0, 30.0, Real::softplus, |x| x.exp().ln_1p()) < 5e-7);
        assert!(worst(-9.0, 9.0, Real::tanh, f64::tanh) < 5e-7);
        assert!(worst(-20.0, 20.0, Real::sigmoid, |x| 1.0 / (1.0 + (-x).exp())) < 5e-7);
    }

    #[test]
    fn dot_is_the_sum_of_products() {
        struct Dot<'a, T>(&'a [T], &'a [T]);
        impl<T: Real> pulp::WithSimd for Dot<'_, T> {
            type Output = T;
            #[inline(always)]
            fn with_simd<S: pulp::Simd>(self, simd: S) -> T {
                T::dot(simd, self.0, self.1)
            }
        }
        for n in [0, 1, 7, 8, 15, 16, 17, 31, 64, 100] {
            let a: Vec<f32> = (0..n).map(|i| (i % 13) as f32 - 6.0).collect();
            let b: Vec<f32> = (0..n + 1).map(|i| (i % 7) as f32 - 2.0).collect();
            let [wide_a, wide_b] = [&a, &b].map(|v| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            let want: f64 = wide_a.iter().zip(&wide_b).map(|(a, b)| a * b).sum();
            assert_eq!(f64::from(pulp::Arch::new().dispatch(Dot(&a, &b))), want, "{n}");
            assert_eq!(pulp::Arch::new().dispatch(Dot(&wide_a, &wide_b)), want, "{n}");
        }
    }

    #[test]
    fn exp_keeps_the_limits() {
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(-1e30f32), 0.0);
        assert_eq!(Real::exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(Real::exp(0.0f32), 1.0);
        assert!(Real::exp(f32::NAN).is_nan());
        for (x, y) in [(f32::NEG_INFINITY, 0.0), (-128.0, 0.0), (0.0, 1.0), (3.0, 8.0), (1e30, f32::INFINITY)]
        {
            assert_eq!(Real::exp2(x), y);
        }
        assert!(Real::exp2(f32::NAN).is_nan());
        assert!(Real::softplus(f32::NAN).is_nan());
        assert_eq!(Real::softplus(1e4f32), 1e4);
    }
}
