//! The norms against the recorded references and against their definitions.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use common::{assert_close, cases, random};
use semisep_kernels::{gated_rms_norm, group_norm, layer_norm, naive, rms_norm};

/// Outputs and gradients of the reference's gated norm, in f64 and f32.
#[test]
fn golden_gated_rms_norm() -> Result<()> {
    for case in cases("gated_rmsnorm") {
        for (dtype, out_tol, grad_tol) in [(DType::F64, 1e-11, 1e-11), (DType::F32, 1e-5, 1e-4)] {
            let [x, z, weight] = ["x", "z", "weight"].map(|n| case.var(n, dtype));
            let (x, weight) = (x.unwrap(), weight.unwrap());
            let eps = case.number("eps").unwrap_or(1e-5);
            let group = case.number("group_size").map_or(x.dim(2)?, |g| g as usize);
            let before = case.flag("norm_before_gate", false);
            // A case without an output gradient for z records the plain norm.
            let gated = case.has("grad.z");
            let y = match &z {
                Some(z) if gated => gated_rms_norm(&x, z, Some(&weight), eps, group, before)?,
                _ => rms_norm(&x, Some(&weight), eps, group)?,
            };
            assert_close(&format!("{} y", case.name), &y, &case.get("out.y"), out_tol);
            let grads = case.loss(&[("y", &y)])?.backward()?;
            for (name, var) in [("x", Some(&x)), ("z", z.as_ref()), ("weight", Some(&weight))] {
                let Some(var) = var.filter(|_| case.has(&format!("grad.{name}"))) else { continue };
                let what = format!("{} grad {name} {dtype:?}", case.name);
                assert_close(&what, grads.get(var).unwrap(), &case.get(&format!("grad.{name}")), grad_tol);
            }
        }
    }
    Ok(())
}

/// Output and gradients of `op` over variables of these values, which are rounded to `dtype` first.
fn run(values: &[Tensor], dtype: DType, op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let cast = |v: &Tensor| Var::from_tensor(&v.to_dtype(dtype)?);
    let vars: Vec<Var> = values.iter().map(cast).collect::<Result<_>>()?;
    let y = op(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>())?;
    let cotangent = random(99, y.dims(), DType::F64);
    let grads = (y.to_dtype(DType::F64)? * cotangent)?.sum_all()?.backward()?;
    let grads = vars.iter().map(|v| grads.get(v).cloned().unwrap());
    Ok(std::iter::once(y).chain(grads).collect())
}

/// The op against its definition in f64, f32 and bf16.
fn compare(
    what: &str,
    values: &[Tensor],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    definition: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let want = run(values, DType::F64, &definition)?;
    for (dtype, out, grad) in
        [(DType::F64, 1e-12, 1e-11), (DType::F32, 1e-5, 1e-4), (DType::BF16, 1e-2, 2e-2)]
    {
        let want = if dtype == DType::BF16 {
            let rounded: Vec<Tensor> = values.iter().map(|v| v.to_dtype(dtype)).collect::<Result<_>>()?;
            run(&rounded, DType::F64, &definition)?
        } else {
            want.clone()
        };
        for (i, (got, want)) in run(values, dtype, &op)?.iter().zip(&want).enumerate() {
            assert_eq!(got.dtype(), dtype);
            let tolerance = if i == 0 { out } else { grad };
            assert_close(&format!("{what} {dtype:?}, result {i}"), got, want, tolerance);
        }
    }
    Ok(())
}

/// Rows and widths of one and several registers, groups, and enough rows for several threads and chunks.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (3, 7, 7),
    (2, 17, 1),
    (5, 80, 80),
    (5, 80, 16),
    (33, 130, 65),
    (1, 20_000, 20_000),
    (140, 768, 768),
    (50, 1536, 384),
];

fn inputs(rows: usize, width: usize) -> Vec<Tensor> {
    let data = |seed| random(seed, &[rows, width], DType::F64);
    let parameter = |seed| random(seed, &[width], DType::F64);
    vec![
        (data(1) + 0.3).unwrap(),
        data(2).affine(3.0, 0.0).unwrap(),
        (parameter(3) + 1.5).unwrap(),
        parameter(4),
    ]
}

/// In a group of one feature the gradient is due to eps alone, and drowns in rounding where that is small.
fn eps(group: usize) -> f64 {
    if group == 1 { 0.5 } else { 1e-5 }
}

#[test]
fn rms_norm_is_its_definition() -> Result<()> {
    for (rows, width, group) in SHAPES {
        let [x, _, weight, _] = &inputs(rows, width)[..] else { unreachable!() };
        let what = format!("{rows} x {width} by {group}");
        compare(
            &what,
            std::slice::from_ref(x),
            |t| rms_norm(&t[0], None, eps(group), group),
            |t| naive::rms_norm(&t[0], None, eps(group), group),
        )?;
        compare(
            &what,
            &[x.clone(), weight.clone()],
            |t| rms_norm(&t[0], Some(&t[1]), eps(group), group),
            |t| naive::rms_norm(&t[0], Some(&t[1]), eps(group), group),
        )?;
    }
    Ok(())
}

#[test]
fn gated_rms_norm_is_its_definition() -> Result<()> {
    for (rows, width, group) in SHAPES {
        let values = inputs(rows, width);
        for before in [false, true] {
            let what = format!("{rows} x {width} by {group}, norm before gate {before}");
            compare(
                &what,
                &values[..3],
                |t| gated_rms_norm(&t[0], &t[1], Some(&t[2]), eps(group), group, before),
                |t| naive::gated_rms_norm(&t[0], &t[1], Some(&t[2]), eps(group), group, before),
            )?;
            compare(
                &what,
                &values[..2],
                |t| gated_rms_norm(&t[0], &t[1], None, eps(group), group, before),
                |t| naive::gated_rms_norm(&t[0], &t[1], None, eps(group), group, before),
            )?;
        }
    }
    Ok(())
}

#[test]
fn layer_norm_is_its_definition() -> Result<()> {
    for (rows, width, _) in SHAPES.into_iter().filter(|s| s.1 > 1) {
        let [x, _, weight, bias] = &inputs(rows, width)[..] else { unreachable!() };
        let what = format!("{rows} x {width}");
        compare(
            &what,
            &[x.clone(), weight.clone(), bias.clone()],
            |t| layer_norm(&t[0], Some(&t[1]), Some(&t[2]), 1e-5),
            |t| naive::layer_norm(&t[0], Some(&t[1]), Some(&t[2]), 1e-5),
        )?;
        compare(
            &what,
            std::slice::from_ref(x),
            |t| layer_norm(&t[0], None, None, 1e-5),
            |t| naive::layer_norm(&t[0], None, None, 1e-5),
        )?;
    }
    Ok(())
}

#[test]
fn group_norm_is_its_definition() -> Result<()> {
    for (rows, width, group) in SHAPES.into_iter().filter(|s| s.2 > 1) {
        let [x, _, weight, bias] = &inputs(rows, width)[..] else { unreachable!() };
        compare(
            &format!("{rows} x {width} by {group}"),
            &[x.clone(), weight.clone(), bias.clone()],
            |t| group_norm(&t[0], Some(&t[1]), Some(&t[2]), 1e-5, group),
            |t| naive::group_norm(&t[0], Some(&t[1]), Some(&t[2]), 1e-5, group),
        )?;
    }
    Ok(())
}

/// The mean is taken off before squares are summed: a large offset does not eat the variance.
#[test]
fn layer_norm_survives_an_offset() -> Result<()> {
    let x = random(1, &[4, 130], DType::F64);
    let want = layer_norm(&x, None, None, 1e-5)?;
    let got = layer_norm(&(x + 100.0)?.to_dtype(DType::F32)?, None, None, 1e-5)?;
    assert_close("offset", &got, &want, 1e-5);
    Ok(())
}

/// Parts of a projection are read in place, weights may be f32 beside bf16 data, and empty inputs give empty outputs.
#[test]
fn strides_dtypes_and_empty_inputs() -> Result<()> {
    let wide = random(1, &[2, 5, 40], DType::F64);
    let weight = random(2, &[16], DType::F64);
    let strided = |t: &[Tensor], naive: bool| {
        let (x, z) = (t[0].narrow(D::Minus1, 3, 16)?, t[0].narrow(D::Minus1, 20, 16)?);
        let f = if naive { naive::gated_rms_norm } else { gated_rms_norm };
        let transposed = f(&x.transpose(0, 1)?, &z.transpose(0, 1)?, Some(&t[1]), 1e-5, 8, false)?;
        f(&x, &z, Some(&t[1]), 1e-5, 8, true)? + transposed.transpose(0, 1)?
    };
    compare("strided", &[wide, weight], |t| strided(t, false), |t| strided(t, true))?;

    let x = random(3, &[3, 16], DType::BF16);
    let weight = Var::from_tensor(&random(4, &[16], DType::F32))?;
    let y = rms_norm(&x, Some(&weight), 1e-5, 16)?;
    assert_eq!(y.dtype(), DType::BF16);
    let grads = y.sum_all()?.backward()?;
    assert_eq!(grads.get(&weight).unwrap().dtype(), DType::F32);

    let empty = Tensor::zeros((2, 0, 16), DType::F32, &Device::Cpu)?;
    assert_eq!(rms_norm(&empty, Some(&weight), 1e-5, 8)?.dims(), [2, 0, 16]);
    let grads = layer_norm(&empty, Some(&weight), None, 1e-5)?.sum_all()?.backward()?;
    assert_eq!(grads.get(&weight).unwrap().to_vec1::<f32>()?, vec![0.0; 16]);
    Ok(())
}

#[test]
fn errors_say_what_was_expected() {
    let t = |shape: &[usize]| random(1, shape, DType::F32);
    let x = t(&[2, 12]);
    let cases = [
        (rms_norm(&x, None, 1e-5, 5), "rms_norm: group is 5, expected a divisor of the 12 features of x"),
        (rms_norm(&x, None, 1e-5, 0), "rms_norm: group is 0, expected"),
        (
            rms_norm(&x, Some(&t(&[6])), 1e-5, 12),
            "rms_norm: weight has shape (6), expected (12), the features of x",
        ),
        (
            gated_rms_norm(&x, &t(&[2, 6]), None, 1e-5, 12, true),
            "gated_rms_norm: z has shape (2, 6), expected (2, 12), as x",
        ),
        (
            layer_norm(&x, None, Some(&t(&[12, 1])), 1e-5),
            "layer_norm: bias has shape (12, 1), expected (12), the features of x",
        ),
        (
            layer_norm(&t(&[]), None, None, 1e-5),
            "layer_norm: x is F32 of (), expected floats of (..., features)",
        ),
    ];
    for (got, want) in cases {
        let got = got.unwrap_err().to_string();
        assert!(got.starts_with(want), "{got}");
    }
}
