//! The activations and their derivatives, without branches or calls in f32, so that loops over them vectorise.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::simd::Real;

/// An elementwise function.
pub(super) trait Function: Send + Sync + 'static {
    fn value<T: Erf>(x: T) -> T;
    /// Its derivative.
    fn slope<T: Erf>(x: T) -> T;
}

pub(super) struct Identity;
pub(super) struct Sigmoid;
pub(super) struct Silu;
pub(super) struct Gelu;
pub(super) struct GeluTanh;
pub(super) struct Relu;
pub(super) struct Relu2;
pub(super) struct Exp;

impl Function for Identity {
    #[inline(always)]
    fn value<T: Erf>(x: T) -> T {
        x
    }
    #[inline(always)]
    fn slope<T: Erf>(_: T) -> T {
        T::ONE
    }
}

impl Function for Sigmoid {
    #[inline(always)]
    fn value<T: Erf>(x: T) -> T {
        x.sigmoid()
    }
    #[inline(always)]
    fn slope<T: Erf>(x: T) -> T {
        let s = x.sigmoid();
        s * (T::ONE - s)
    }
}

impl Function for Silu {
    #[inline(always)]
    fn value<T: Erf>(x: T) -> T {
        x.silu()
    }
    #[inline(always)]
    fn slope<T: Erf>(x: T) -> T {
        x.silu_grad()
    }
}

/// The normal distribution function.
#[inline(always)]
fn phi<T: Erf>(x: T) -> T {
    T::real(0.5) * (T::ONE + Erf::erf(x * T::real(FRAC_1_SQRT_2)))
}

impl Function for Gelu {
    #[inline(always)]
    fn value<T: Erf>(x: T) -> T {
        x * phi(x)
    }
    #[inline(always)]
    fn slope<T: Erf>(x: T) -> T {
        let density = T::real(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2) * Real::exp(T::real(-0.5) * x * x);
        phi(x) + x * density
    }
}

/// `sqrt(2 / π)`, and the weight of the cube in the approximation.
const TANH_SCALE: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
const TANH_CUBE: f64 = 0.044_715;

impl Function for GeluTanh {
    #[inline(always)]
    fn value<T: Erf>(x: T) -> T {
        let inner = T::real(TANH_SCALE) * x * (T::ONE + T::real(TANH_CUBE) * x * x);
        T::real(0.5) * x * (T::ONE + inner.tanh())
    }
    #[inline(always)]
    fn slope<T: Erf>(x: T) -> T {
        let inner = T::real(TANH_SCALE) * x * (T::ONE + T::real(TANH_CUBE) * x * x);
        let t = inner.tanh();
        let inner_slope = T::real(TANH_SCALE) * (T::ONE + T::real(3.0 * TANH_CUBE) * x * x);
        T::real(0.5) * (T::ONE + t + x * (T::ONE - t * t) * inner_slope)
    }
}

impl Function for Relu {
    #[inline(always)]
    fn value<T: Erf>(x: T) -> T {
        if x < T::ZERO { T::ZERO } else { x }
    }
    #[inline(always)]
    fn slope<T: Erf>(x: T) -> T {
        if x > T::ZERO { T::ONE } else { T::ZERO }
    }
}

impl Function for Relu2 {
    #[inline(always)]
    fn value<T: Erf>(x: T) -> T {
        let r = Relu::value(x);
        r * r
    }
    #[inline(always)]
    fn slope<T: Erf>(x: T) -> T {
        T::real(2.0) * Relu::value(x)
    }
}

impl Function for Exp {
    #[inline(always)]
    fn value<T: Erf>(x: T) -> T {
        Real::exp(x)
    }
    #[inline(always)]
    fn slope<T: Erf>(x: T) -> T {
        Real::exp(x)
    }
}

/// Numbers with the error function.
pub(super) trait Erf: Real {
    fn erf(self) -> Self;
}

impl Erf for f64 {
    #[inline(always)]
    fn erf(self) -> Self {
        candle_core::cpu::erf::erf_f64(self)
    }
}

impl Erf for f32 {
    /// Within 2 ulp: a polynomial in x² times x near zero, `1 - exp(polynomial in |x|)` further out.
    #[inline(always)]
    fn erf(self) -> Self {
        let (t, s) = (f32::abs(self), self * self);
        let far = f32::mul_add(-1.728_534_7e-5, t, 3.831_972e-4);
        let far_low = f32::mul_add(-3.883_964_4e-3, t, 2.425_462_2e-2);
        let far = f32::mul_add(far, s, far_low);
        let far = f32::mul_add(far, t, -0.106_777_88);
        let far = f32::mul_add(far, t, -0.634_846_7);
        let far = f32::mul_add(far, t, -0.128_717_51);
        let far = f32::copysign(1.0 - Real::exp(f32::mul_add(far, t, -t)), self);
        let near = f32::mul_add(-5.967_617e-4, s, 4.991_194e-3);
        let near = f32::mul_add(near, s, -2.676_813_5e-2);
        let near = f32::mul_add(near, s, 0.112_819_925);
        let near = f32::mul_add(near, s, -0.376_125_34);
        let near = f32::mul_add(near, s, 0.128_379_17);
        let near = f32::mul_add(near, self, self);
        if t > 0.927_734_4 { far } else { near }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_accurate_to_a_few_ulp() {
        for i in -60_000..=60_000 {
            let x = i as f32 * 1e-4;
            let exact = candle_core::cpu::erf::erf_f64(f64::from(x));
            let error = (f64::from(Erf::erf(x)) - exact).abs();
            assert!(error <= 3e-7 * exact.abs(), "erf({x}) is {}, expected {exact}", Erf::erf(x));
        }
        assert!(Erf::erf(f32::NAN).is_nan());
        assert_eq!((Erf::erf(f32::INFINITY), Erf::erf(f32::NEG_INFINITY)), (1.0, -1.0));
    }

    /// Central differences, away from the kinks.
    #[test]
    fn slopes_are_derivatives() {
        fn check<F: Function>(name: &str) {
            for i in -400..400 {
                let (x, h) = (f64::from(i) * 0.0202 + 0.001, 1e-5);
                let difference = (F::value(x + h) - F::value(x - h)) / (2.0 * h);
                let slope = F::slope(x);
                let tolerance = 1e-8 * slope.abs().max(1.0);
                assert!((slope - difference).abs() < tolerance, "{name} at {x}: {slope}, {difference}");
            }
        }
        check::<Identity>("identity");
        check::<Sigmoid>("sigmoid");
        check::<Silu>("silu");
        check::<Gelu>("gelu");
        check::<GeluTanh>("gelu tanh");
        check::<Relu>("relu");
        check::<Relu2>("relu squared");
        check::<Exp>("exp");
    }
}
