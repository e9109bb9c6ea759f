//! First values of the parameters.

use std::f64::consts::PI;

use semisep_core::{Init, Rng};

use crate::config::{DiagInit, Options, Start, Transform};
use crate::hermitian::C;
use crate::hippo::{Hippo, modes};

/// Smallest value of a parameter that is kept under a transform, as in `s4.py`.
const FLOOR: f64 = 1e-4;

/// The parameter whose transform is `value`.
fn inverse(transform: Transform, value: f64) -> f64 {
    let value = value.max(FLOOR);
    match transform {
        Transform::Exp => value.ln(),
        Transform::Softplus => value.exp_m1().ln(),
        Transform::Sigmoid => (value / (1.0 - value)).ln(),
        Transform::Relu | Transform::None => value,
    }
}

/// Each number of the row repeated over the leading dimensions.
fn rows(row: impl Fn(usize) -> Vec<f64> + Send + Sync + 'static) -> Init {
    Init::custom(move |shape, _| {
        let n = shape.last().copied().unwrap_or(0);
        let row = row(n);
        (0..shape.iter().product()).map(|i| row[i % n] as f32).collect()
    })
}

/// Step sizes, log-uniform between the bounds.
pub(crate) fn dt(options: &Options) -> Init {
    let ((lo, hi), transform) = (options.dt_range, options.dt_transform);
    Init::custom(move |shape, rng| {
        let draw = |rng: &mut Rng| inverse(transform, rng.uniform(lo.ln(), hi.ln()).exp()) as f32;
        (0..shape.iter().product()).map(|_| draw(rng)).collect()
    })
}

/// The negated real parts of A, (.., n).
pub(crate) fn a_real(options: &Options) -> Init {
    let (transform, real) = (options.real_transform, real_parts(options.start));
    rows(move |n| real(n).into_iter().map(|v| inverse(transform, v)).collect())
}

fn real_parts(start: Start) -> impl Fn(usize) -> Vec<f64> {
    move |n| match start {
        Start::Diagonal(_) => vec![0.5; n],
        Start::LowRank { hippo, .. } => modes(hippo, 2 * n).a.iter().map(|a| -a.0).collect(),
    }
}

/// The imaginary parts of A without their sign, (.., n); `floor` as `s4.py` has it, or 0.
pub(crate) fn a_imag(start: Start, floor: bool) -> Init {
    let smallest = if floor { FLOOR } else { 0.0 };
    rows(move |n| {
        let states = 2.0 * n as f64;
        let value = |i: usize| match start {
            Start::Diagonal(DiagInit::DiagLin) => PI * i as f64,
            Start::Diagonal(DiagInit::DiagInv) => states / PI * (states / (2.0 * i as f64 + 1.0) - 1.0),
            Start::Diagonal(DiagInit::DiagLegs) => -modes(Hippo::Legs, 2 * n).a[i].1,
            Start::LowRank { hippo, .. } => -modes(hippo, 2 * n).a[i].1,
        };
        (0..n).map(|i| value(i).max(smallest)).collect()
    })
}

/// B, (.., n, 2).
pub(crate) fn b(start: Start) -> Init {
    Init::custom(move |shape, _| {
        let n = shape[shape.len() - 2];
        let row: Vec<C> = match start {
            Start::Diagonal(DiagInit::DiagLin | DiagInit::DiagInv) => vec![(1.0, 0.0); n],
            Start::Diagonal(DiagInit::DiagLegs) => modes(Hippo::Legs, 2 * n).b.clone(),
            Start::LowRank { hippo, .. } => modes(hippo, 2 * n).b.clone(),
        };
        let count: usize = shape.iter().product();
        (0..count / 2).flat_map(|i| [row[i % n].0 as f32, row[i % n].1 as f32]).collect()
    })
}

/// P, (r, s, n, 2); rows past the matrix's own rank are zero.
pub(crate) fn p(hippo: Hippo) -> Init {
    Init::custom(move |shape, _| {
        let (systems, n) = (shape[1], shape[2]);
        let modes = modes(hippo, 2 * n);
        let zeros = vec![(0.0, 0.0); n];
        let mut values = Vec::new();
        for rank in 0..shape[0] {
            let row = modes.p.get(rank).unwrap_or(&zeros);
            for _ in 0..systems {
                values.extend(row.iter().flat_map(|v| [v.0 as f32, v.1 as f32]));
            }
        }
        values
    })
}

/// C: complex normal of variance 1.
pub(crate) fn c() -> Init {
    Init::Normal { std: std::f64::consts::FRAC_1_SQRT_2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforms_are_undone() {
        for value in [0.001, 0.1, 0.5] {
            assert!((inverse(Transform::Exp, value).exp() - value).abs() < 1e-15);
            assert!((inverse(Transform::Softplus, value).exp().ln_1p() - value).abs() < 1e-15);
            assert!((1.0 / (1.0 + (-inverse(Transform::Sigmoid, value)).exp()) - value).abs() < 1e-15);
        }
        assert_eq!(inverse(Transform::None, 0.0), FLOOR);
    }
}
