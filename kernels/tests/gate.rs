//! The activations and gated products against their definitions.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use common::{assert_close, random};
use semisep_kernels::{Activation, activation, gated_activation, naive};

const ALL: [Activation; 8] = [
    Activation::Identity,
    Activation::Sigmoid,
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Relu2,
    Activation::Exp,
];

type Op = fn(&Tensor, &Tensor, Activation) -> Result<Tensor>;

/// Output and both gradients, for inputs made from one variable by `part`.
fn run(
    wide: &Tensor,
    act: Activation,
    op: Op,
    part: fn(&Tensor, usize) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let var = Var::from_tensor(wide)?;
    let y = op(&part(&var, 0)?, &part(&var, 1)?, act)?;
    let cotangent = random(9, y.dims(), DType::F64);
    let grads = (y.to_dtype(DType::F64)? * cotangent)?.sum_all()?.backward()?;
    Ok(vec![y, grads.get(&var).unwrap().clone()])
}

fn compare(shape: &[usize], part: fn(&Tensor, usize) -> Result<Tensor>) -> Result<()> {
    let ops: [(&str, Op, Op); 2] = [
        ("gated", gated_activation, naive::gated_activation),
        (
            "plain",
            |v, g, act| activation(g, act)? + v * 0.5,
            |v, g, act| naive::activation(g, act)? + v * 0.5,
        ),
    ];
    let wide = random(1, shape, DType::F64).affine(6.0, 0.5)?;
    for act in ALL {
        for (name, op, definition) in ops {
            for (dtype, out, grad) in [
                (DType::F64, 1e-12, 1e-11),
                (DType::F32, 1e-5, 1e-4),
                (DType::BF16, 1e-2, 1e-2),
                (DType::F16, 1e-2, 1e-2),
            ] {
                let rounded = wide.to_dtype(dtype)?;
                let want = run(&rounded.to_dtype(DType::F64)?, act, definition, part)?;
                let got = run(&rounded, act, op, part)?;
                assert_eq!(got[0].dtype(), dtype);
                let what = format!("{name} {act:?} {dtype:?} {shape:?}");
                assert_close(&what, &got[0], &want[0], out);
                assert_close(&format!("{what} gradient"), &got[1], &want[1], grad);
            }
        }
    }
    Ok(())
}

/// The two halves of a projection.
fn half(t: &Tensor, i: usize) -> Result<Tensor> {
    let width = t.dim(D::Minus1)? / 2;
    t.narrow(D::Minus1, i * width, width)
}

#[test]
fn equals_the_definition() -> Result<()> {
    for shape in [&[2][..], &[3, 14], &[2, 5, 34], &[1, 3, 1, 260]] {
        compare(shape, half)?;
    }
    Ok(())
}

/// Long rows are shared by threads in parts, short ones whole.
#[test]
fn equals_the_definition_when_threaded() -> Result<()> {
    compare(&[1, 100_002], half)?;
    compare(&[700, 130], half)
}

#[test]
fn transposed_and_scalar_inputs() -> Result<()> {
    compare(&[6, 4, 8], |t, i| half(t, i)?.transpose(0, 1))?;
    compare(&[2], |t, i| t.get(i))
}

#[test]
fn limits() -> Result<()> {
    let x = Tensor::new(&[f32::NEG_INFINITY, -1e30, -200.0, 200.0, 1e30, f32::NAN], &Device::Cpu)?;
    let values = |act| activation(&x, act)?.to_vec1::<f32>();
    assert_eq!(values(Activation::Sigmoid)?[..5], [0.0, 0.0, 0.0, 1.0, 1.0]);
    assert_eq!(values(Activation::Silu)?[1..5], [0.0, 0.0, 200.0, 1e30]);
    assert_eq!(values(Activation::Gelu)?[1..5], [0.0, 0.0, 200.0, 1e30]);
    assert_eq!(values(Activation::Relu)?[..5], [0.0, 0.0, 0.0, 200.0, 1e30]);
    assert_eq!(values(Activation::Exp)?[..5], [0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY]);
    for act in ALL {
        assert!(values(act)?[5].is_nan(), "{act:?}");
        if act == Activation::Exp {
            continue; // its own values are too large for f32 there
        }
        let var = Var::from_tensor(&x.narrow(0, 2, 2)?)?;
        let grads = activation(&var, act)?.sum_all()?.backward()?;
        assert!(grads.get(&var).unwrap().to_vec1::<f32>()?.iter().all(|g| g.is_finite()), "{act:?}");
    }
    let empty = Tensor::zeros((3, 0), DType::F32, &Device::Cpu)?;
    assert_eq!(gated_activation(&empty, &empty, Activation::Silu)?.dims(), [3, 0]);
    Ok(())
}

#[test]
fn errors_say_what_was_expected() {
    let t = |shape: &[usize], dtype| random(1, shape, dtype);
    let cases = [
        (
            gated_activation(&t(&[2, 3], DType::F32), &t(&[3, 2], DType::F32), Activation::Silu),
            "gated_activation: gate has shape (3, 2), expected (2, 3), as value",
        ),
        (
            gated_activation(&t(&[2], DType::F32), &t(&[2], DType::F64), Activation::Silu),
            "gated_activation: gate has dtype F64, expected F32, as value",
        ),
        (activation(&t(&[2], DType::U32), Activation::Relu), "activation: x is U32, expected a float dtype"),
    ];
    for (got, want) in cases {
        let got = got.unwrap_err().to_string();
        assert!(got.starts_with(want), "{got}");
    }
}
