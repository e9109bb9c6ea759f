//! The B-spline basis against its definition, and against what is true of B-splines.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use common::{assert_close, random};
use semisep_kernels::{bspline_basis, naive};

type Op = fn(&Tensor, &Tensor, usize) -> Result<Tensor>;

/// Ascending knots from -1 - order·h on, a little uneven, different for each feature; `twice` repeats one.
fn grid(features: usize, inner: usize, order: usize, twice: bool) -> Tensor {
    let m = inner + 2 * order + 1;
    let jitter = random(5, &[features * m], DType::F64).to_vec1::<f64>().unwrap();
    let mut knots: Vec<f64> = (0..features * m)
        .map(|i| (i % m) as f64 * 0.4 - 1.0 - 0.4 * order as f64 + 0.15 * jitter[i])
        .map(|v| f64::from(v as f32))
        .collect();
    if twice {
        knots.chunks_mut(m).for_each(|row| row[m / 2] = row[m / 2 - 1]);
    }
    Tensor::from_vec(knots, (features, m), &Device::Cpu).unwrap()
}

fn run(x: &Tensor, grid: &Tensor, order: usize, op: Op) -> Result<[Tensor; 2]> {
    let var = Var::from_tensor(x)?;
    let y = op(&var, grid, order)?;
    let grads = (y.to_dtype(DType::F64)? * random(9, y.dims(), DType::F64))?.sum_all()?.backward()?;
    let dx = grads.get(&var).cloned();
    Ok([y, dx.map_or_else(|| x.zeros_like(), Ok)?])
}

#[test]
fn the_fast_form_is_the_definition() -> Result<()> {
    for (shape, inner, order) in [
        (&[2, 7, 19][..], 5, 3),
        (&[33], 4, 2),
        (&[3, 16], 1, 1),
        (&[5, 8], 3, 0),
        (&[0, 4], 5, 3),
        (&[70, 40], 9, 4),
    ] {
        for twice in [false, true] {
            let features = shape[shape.len() - 1];
            let knots = grid(features, inner, order, twice);
            let x = random(1, shape, DType::F64).affine(2.0, 0.1)?;
            for (dtype, out, grad) in
                [(DType::F64, 1e-13, 1e-12), (DType::F32, 1e-5, 1e-4), (DType::BF16, 1e-2, 1e-2)]
            {
                let x = x.to_dtype(dtype)?;
                let want = run(&x.to_dtype(DType::F64)?, &knots, order, naive::bspline_basis)?;
                let got = run(&x, &knots, order, bspline_basis)?;
                assert_eq!(got[0].dtype(), dtype);
                let what = format!("{shape:?}, {inner} intervals, order {order}, {dtype:?}, twice {twice}");
                assert_close(&what, &got[0], &want[0], out);
                assert_close(&format!("{what}: gradient"), &got[1], &want[1], grad);
            }
        }
    }
    Ok(())
}

/// Inside the inner grid the functions are not negative and sum to 1; outside the whole grid all are 0.
#[test]
fn a_partition_of_unity() -> Result<()> {
    let (features, inner, order) = (5, 6, 3);
    let knots = grid(features, inner, order, false);
    let rows = knots.to_vec2::<f64>()?;
    for at in [0.0, 0.3, 0.999] {
        let x: Vec<f64> = rows.iter().map(|g| g[order] + at * (g[order + inner] - g[order])).collect();
        let b = bspline_basis(&Tensor::new(x, &Device::Cpu)?, &knots, order)?;
        for sum in b.sum(D::Minus2)?.to_vec1::<f64>()? {
            assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        }
        assert!(b.flatten_all()?.min(0)?.to_scalar::<f64>()? >= 0.0);
    }
    for x in [-50.0, 50.0] {
        let b = bspline_basis(&Tensor::full(x, features, &Device::Cpu)?, &knots, order)?;
        assert_eq!(b.abs()?.sum_all()?.to_scalar::<f64>()?, 0.0, "{x}");
    }
    Ok(())
}

/// A knot belongs to the interval on its right, in values and in gradients, also after rounding to f32.
#[test]
fn knots_belong_to_the_right() -> Result<()> {
    let knots = Tensor::new(&[[-1f32, -0.6, -0.2, 0.2, 0.6, 1.0]], &Device::Cpu)?;
    for (dtype, order) in [(DType::F32, 0), (DType::F64, 0), (DType::F32, 1), (DType::F64, 2)] {
        let knots = knots.to_dtype(dtype)?;
        let x = knots.flatten_all()?.unsqueeze(1)?;
        let fast = run(&x, &knots, order, bspline_basis)?;
        let slow = run(&x, &knots, order, naive::bspline_basis)?;
        for (fast, slow) in fast.iter().zip(&slow) {
            assert_close(&format!("{dtype:?} order {order}"), fast, slow, 1e-5);
        }
        if order == 0 {
            let first = fast[0].get(0)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            assert_eq!(first, [1.0, 0.0, 0.0, 0.0, 0.0]);
        }
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let (x, knots) = (random(1, &[2, 3], DType::F64), grid(3, 4, 2, false));
    let message = |x: &Tensor, knots: &Tensor, order| bspline_basis(x, knots, order).unwrap_err().to_string();
    assert!(message(&x, &grid(4, 4, 2, false), 2).contains("grid has shape (4, 9), expected (3, 9)"));
    assert!(message(&x, &knots, 8).contains("9 knots make no function of order 8, expected at least 10"));
    assert!(message(&x, &knots.neg()?, 2).contains("knots of feature 0 are not ascending"));
    assert!(message(&x, &knots.flatten_all()?, 2).contains("expected (3, knots)"));
    Ok(())
}
