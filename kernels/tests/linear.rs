//! The dense map against its definition, outputs and gradients.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use common::{assert_close, random};
use semisep_kernels::{linear, naive};

struct Inputs {
    x: Var,
    weight: Var,
    bias: Option<Var>,
    cotangent: Tensor,
}

impl Inputs {
    fn new(rows: usize, inputs: usize, outputs: usize, bias: bool) -> Self {
        let var = |seed, shape: &[usize]| Var::from_tensor(&random(seed, shape, DType::F64)).unwrap();
        Self {
            x: var(1, &[rows, inputs]),
            weight: var(2, &[outputs, inputs]),
            bias: bias.then(|| var(3, &[outputs])),
            cotangent: random(4, &[rows, outputs], DType::F64),
        }
    }

    /// The same values, rounded to these dtypes.
    fn cast(&self, x: DType, weight: DType) -> Self {
        let cast = |v: &Var, dtype| Var::from_tensor(&v.to_dtype(dtype).unwrap()).unwrap();
        Self {
            x: cast(&self.x, x),
            weight: cast(&self.weight, weight),
            bias: self.bias.as_ref().map(|b| cast(b, x)),
            cotangent: self.cotangent.clone(),
        }
    }

    fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref().map(Var::as_tensor)
    }

    /// The output, and the gradients of x, weight and bias.
    fn run(&self, op: impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>) -> Result<Vec<Tensor>> {
        let y = op(&self.x, &self.weight, self.bias())?;
        let grads = (y.to_dtype(DType::F64)? * &self.cotangent)?.sum_all()?.backward()?;
        let vars = [Some(&self.x), Some(&self.weight), self.bias.as_ref()];
        let grads = vars.into_iter().flatten().map(|v| match grads.get(v) {
            Some(g) => g.clone(),
            // An empty map of the definition leaves no graph: its gradients are zero.
            None => v.zeros_like().unwrap(),
        });
        Ok(std::iter::once(y).chain(grads).collect())
    }
}

#[track_caller]
fn compare(what: &str, got: &[Tensor], want: &[Tensor], out: f64, grad: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let name = ["y", "grad x", "grad weight", "grad bias"][i];
        assert_close(&format!("{what}: {name}"), got, want, if i == 0 { out } else { grad });
    }
}

/// All row counts on both sides of the switch of methods, all widths around the width of a register.
#[test]
fn equals_the_definition_in_f64_and_f32() -> Result<()> {
    for rows in [0, 1, 2, 3, 4, 5, 7, 8, 9, 33] {
        for (i, inputs) in [1, 7, 17, 80, 130].into_iter().enumerate() {
            let outputs = [17, 130, 7, 1, 80][i];
            for bias in [false, true] {
                let what = format!("{rows} rows, {inputs} -> {outputs}, bias {bias}");
                let wide = Inputs::new(rows, inputs, outputs, bias);
                let want = wide.run(naive::linear)?;
                compare(&what, &wide.run(linear)?, &want, 1e-11, 1e-11);
                let single = wide.cast(DType::F32, DType::F32);
                let got = single.run(linear)?;
                assert_eq!(got[0].dtype(), DType::F32);
                compare(&format!("{what} f32"), &got, &want, 1e-5, 1e-4);
            }
        }
    }
    Ok(())
}

/// Large enough that every thread gets work, in the forward and in the backward pass.
#[test]
fn equals_the_definition_when_threaded() -> Result<()> {
    for (rows, inputs, outputs) in [(1, 770, 601), (5, 770, 601), (150, 770, 601), (3, 2, 50_021)] {
        let wide = Inputs::new(rows, inputs, outputs, true);
        let want = wide.run(naive::linear)?;
        compare("f64", &wide.run(linear)?, &want, 1e-11, 1e-11);
        compare("f32", &wide.cast(DType::F32, DType::F32).run(linear)?, &want, 1e-5, 1e-4);
    }
    Ok(())
}

/// Weights stored in 16 bits lose nothing beyond their own rounding; in every method, and with more weights than a panel.
#[test]
fn small_weights_with_f32_arithmetic() -> Result<()> {
    for dtype in [DType::BF16, DType::F16] {
        for (rows, inputs, outputs) in
            [(1, 130, 17), (3, 48, 80), (8, 7, 9), (33, 130, 17), (130, 70, 17), (129, 2000, 2100)]
        {
            let small = Inputs::new(rows, inputs, outputs, true).cast(DType::F32, dtype);
            let want = small.cast(DType::F64, DType::F64).run(naive::linear)?;
            let got = small.run(linear)?;
            assert_eq!(got[2].dtype(), dtype);
            let what = format!("{rows} rows, {inputs} -> {outputs}, {dtype:?}");
            compare(&what, &got[..2], &want[..2], 1e-5, 1e-4);
            // The gradient of the weight is rounded to its dtype.
            assert_close(&format!("{what}: grad weight"), &got[2], &want[2], 4e-3);
            assert_close(&format!("{what}: grad bias"), &got[3], &want[3], 1e-4);
        }
    }
    Ok(())
}

/// Every f16 bit pattern that stands for a number arrives as that number.
#[test]
fn f16_weights_are_exact() -> Result<()> {
    let all: Vec<half::f16> = (0..=u16::MAX).map(half::f16::from_bits).filter(|v| v.is_finite()).collect();
    let want: Vec<f32> = all.iter().map(|v| v.to_f32()).collect();
    let n = all.len();
    let weight = Tensor::from_vec(all, (n, 1), &Device::Cpu)?;
    let y = linear(&Tensor::ones((1, 1), DType::F32, &Device::Cpu)?, &weight, None)?;
    assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, want);
    Ok(())
}

#[test]
fn half_data() -> Result<()> {
    for dtype in [DType::BF16, DType::F16] {
        for rows in [1, 4, 21, 131] {
            let half = Inputs::new(rows, 130, 80, true).cast(dtype, dtype);
            let want = half.cast(DType::F64, DType::F64).run(naive::linear)?;
            let got = half.run(linear)?;
            assert!(got.iter().all(|t| t.dtype() == dtype));
            compare(&format!("{rows} rows {dtype:?}"), &got, &want, 1e-2, 1e-2);
        }
    }
    Ok(())
}

/// A slice of a projection is read in place; a transposed input and a transposed weight are copied.
#[test]
fn strided_inputs() -> Result<()> {
    let wide = Var::from_tensor(&random(5, &[2, 7, 40], DType::F64))?;
    let weight = random(6, &[19, 9], DType::F64);
    let slices: [fn(&Tensor) -> Result<Tensor>; 4] = [
        |t| t.narrow(D::Minus1, 3, 19),
        |t| t.narrow(1, 2, 3)?.narrow(D::Minus1, 21, 19),
        |t| t.narrow(1, 4, 1)?.narrow(D::Minus1, 0, 19),
        |t| t.narrow(D::Minus1, 0, 19)?.transpose(0, 1),
    ];
    for (i, slice) in slices.iter().enumerate() {
        let run = |op: fn(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>| -> Result<Vec<Tensor>> {
            let x = slice(&wide)?;
            let y = op(&x, &weight.t()?, None)?;
            let grads = y.sqr()?.sum_all()?.backward()?;
            Ok(vec![y, grads.get(&wide).unwrap().clone()])
        };
        let definition =
            |x: &Tensor, w: &Tensor, _: Option<&Tensor>| x.contiguous()?.broadcast_matmul(&w.t()?);
        compare(&format!("slice {i}"), &run(linear)?, &run(definition)?, 1e-11, 1e-11);
    }
    Ok(())
}

#[test]
fn without_inputs_the_bias_remains() -> Result<()> {
    let bias = random(1, &[5], DType::F32);
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let y = linear(&zeros((3, 0))?, &zeros((5, 0))?, Some(&bias))?;
    assert_close("bias", &y, &bias.broadcast_as((3, 5))?, 0.0);
    assert_eq!(linear(&zeros((3, 4))?, &zeros((0, 4))?, None)?.dims(), [3, 0]);
    Ok(())
}

#[test]
fn untracked_inputs_leave_no_graph_and_only_wanted_gradients_come() -> Result<()> {
    let (x, weight) = (random(1, &[3, 4], DType::F32), random(2, &[5, 4], DType::F32));
    assert!(!linear(&x, &weight, None)?.track_op());
    let weight = Var::from_tensor(&weight)?;
    let grads = linear(&x, &weight, None)?.sum_all()?.backward()?;
    assert!(grads.get(&x).is_none() && grads.get(&weight).is_some());
    Ok(())
}

#[test]
fn errors_say_what_was_expected() {
    let t = |shape: &[usize], dtype| random(1, shape, dtype);
    let x = t(&[2, 3, 8], DType::F32);
    let message = |x: &Tensor, w: &Tensor, b: Option<&Tensor>| linear(x, w, b).unwrap_err().to_string();
    let cases = [
        (
            message(&x, &t(&[5, 7], DType::F32), None),
            "linear: x has shape (2, 3, 8), expected (..., 7), as weight is (5, 7)",
        ),
        (message(&x, &t(&[7], DType::F32), None), "linear: weight has shape (7), expected (outputs, inputs)"),
        (
            message(&x, &t(&[5, 8], DType::F32), Some(&t(&[6], DType::F32))),
            "linear: bias has shape (6), expected (5), the outputs of weight",
        ),
        (
            message(&x, &t(&[5, 8], DType::F64), None),
            "linear: weight has dtype F64 and x F32, expected x's, or a narrower one for x in F32 or F64",
        ),
    ];
    for (got, want) in cases {
        assert!(got.starts_with(want), "{got}");
    }
}
