//! The scan with inputs and outputs against its definition, and against itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, random};
use semisep_kernels::mimo_scan::naive;
use semisep_kernels::{MimoScan, mimo_scan, set_threads};

type Scan = fn(&MimoScan) -> Result<(Tensor, Tensor)>;

#[derive(Debug, Clone)]
struct Size {
    b: usize,
    l: usize,
    d: usize,
    p: usize,
    outputs: usize,
    complex: bool,
    reverse: bool,
    skip: bool,
    initial: bool,
    cu: Option<Vec<usize>>,
}

impl Size {
    fn number(&self) -> Vec<usize> {
        if self.complex { vec![2, self.p] } else { vec![self.p] }
    }

    fn states(&self) -> Vec<usize> {
        let n = self.cu.as_ref().map_or(self.b, |cu| cu.len() - 1);
        [vec![n], self.number()].concat()
    }

    /// u, a, B, C, D and the initial state; decays inside the unit circle.
    fn inputs(&self) -> Vec<Tensor> {
        let width = self.number().iter().product();
        let shapes = [
            vec![self.b, self.l, self.d],
            self.number(),
            vec![width, self.d],
            vec![self.outputs, width],
            vec![self.outputs],
            self.states(),
        ];
        let mut all: Vec<Tensor> =
            shapes.iter().zip(1..).map(|(shape, seed)| random(seed, shape, DType::F64)).collect();
        all[1] = (&all[1] * 0.69).unwrap();
        all
    }

    /// Outputs, final states and the gradients of all that takes part.
    fn solve(&self, scan: Scan, dtype: DType) -> Result<Vec<Tensor>> {
        let vars = self
            .inputs()
            .iter()
            .map(|t| Var::from_tensor(&t.to_dtype(dtype)?))
            .collect::<Result<Vec<_>>>()?;
        let [u, a, input, output, skip, initial] = [0, 1, 2, 3, 4, 5].map(|k| vars[k].as_tensor());
        let (y, state) = scan(&MimoScan {
            skip: self.skip.then_some(skip),
            reverse: self.reverse,
            initial_state: self.initial.then_some(initial),
            cu_seqlens: self.cu.as_deref(),
            ..MimoScan::new(u, a, input, output)
        })?;
        assert_eq!((y.dims(), state.dims()), (&[self.b, self.l, self.outputs][..], &self.states()[..]));
        let cotangent = |seed, t: &Tensor| random(seed, t.dims(), DType::F64).to_dtype(t.dtype());
        let loss = ((&y * cotangent(7, &y)?)?.sum_all()? + (&state * cotangent(8, &state)?)?.sum_all()?)?;
        let grads = loss.backward()?;
        let mut all = vec![y, state];
        for (k, var) in vars.iter().enumerate() {
            if (k != 4 || self.skip) && (k != 5 || self.initial) {
                // Where there is no token, the definition does not reach the inputs.
                all.push(grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)?);
            }
        }
        Ok(all)
    }
}

/// Empty, one token, odd, all at once, in several blocks, packed; real, complex, both directions.
fn sizes() -> Vec<Size> {
    let mut sizes = Vec::new();
    let lengths = [
        (1, 0, 3, 2, 3),
        (2, 1, 1, 1, 2),
        (3, 7, 17, 5, 34),
        (2, 65, 6, 33, 5),
        (1, 700, 5, 9, 10),
        (2, 331, 4, 18, 4),
    ];
    for (b, l, d, p, outputs) in lengths {
        for option in 0..4 {
            let (complex, reverse) = (option & 1 > 0, option & 2 > 0);
            let (skip, initial) = (outputs % d == 0 && option != 2, option != 1);
            sizes.push(Size { b, l, d, p, outputs, complex, reverse, skip, initial, cu: None });
            if b == 1 && l > 10 {
                let cu = Some(vec![0, 5, 5, 6, l - 40, l]);
                sizes.push(Size { b, l, d, p, outputs, complex, reverse, skip, initial, cu });
            }
        }
    }
    sizes
}

#[test]
fn fast_equals_definition() -> Result<()> {
    for size in sizes() {
        let want = size.solve(naive::mimo_scan, DType::F64)?;
        for (dtype, tolerance) in [(DType::F64, (1e-12, 1e-11)), (DType::F32, (1e-5, 1e-4))] {
            let got = size.solve(mimo_scan, dtype)?;
            assert_eq!(got.len(), want.len());
            for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                let tolerance = if k < 2 { tolerance.0 } else { tolerance.1 };
                assert_close(&format!("{size:?} {dtype:?} {k}"), got, want, tolerance);
            }
        }
    }
    Ok(())
}

/// Blocks and sums are those of the sizes alone.
#[test]
fn threads_change_nothing() -> Result<()> {
    let size = Size {
        b: 1,
        l: 1500,
        d: 24,
        p: 40,
        outputs: 24,
        complex: true,
        reverse: false,
        skip: true,
        initial: true,
        cu: None,
    };
    let all = size.solve(mimo_scan, DType::F32)?;
    set_threads(1);
    let one = size.solve(mimo_scan, DType::F32);
    set_threads(usize::MAX);
    for (k, (all, one)) in all.iter().zip(&one?).enumerate() {
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(all), bits(one), "{k}");
    }
    Ok(())
}

/// Gradients of a loss on the final state alone, of a part of the inputs, from a view of a wider tensor, in half
/// precision.
#[test]
fn parts_of_the_graph() -> Result<()> {
    let dtype = DType::F64;
    let (wide, a) = (Var::from_tensor(&random(1, &[2, 90, 7], dtype))?, (random(2, &[2, 5], dtype) * 0.6)?);
    let (input, output) = (random(3, &[10, 4], dtype), random(4, &[3, 10], dtype));
    let of = |scan: Scan| -> Result<Tensor> {
        let (_, state) = scan(&MimoScan::new(&wide.narrow(2, 2, 4)?, &a, &input, &output))?;
        Ok(state.sqr()?.sum_all()?.backward()?.get(&wide).unwrap().clone())
    };
    assert_close("gradient", &of(mimo_scan)?, &of(naive::mimo_scan)?, 1e-12);
    let u = wide.narrow(2, 2, 4)?.detach();
    let (want, _) = naive::mimo_scan(&MimoScan::new(&u, &a, &input, &output))?;
    for dtype in [DType::BF16, DType::F16] {
        let args = [&u, &a, &input, &output].map(|t| t.to_dtype(dtype).unwrap());
        let (y, state) = mimo_scan(&MimoScan::new(&args[0], &args[1], &args[2], &args[3]))?;
        assert_eq!((y.dtype(), state.dtype()), (dtype, DType::F32));
        let args = args.map(|t| t.to_dtype(DType::F64).unwrap());
        let (want_rounded, _) = naive::mimo_scan(&MimoScan::new(&args[0], &args[1], &args[2], &args[3]))?;
        assert_close("half", &y, &want_rounded, 1e-2);
        assert_close("half against f64", &y, &want, 5e-2);
    }
    Ok(())
}

#[test]
fn bad_shapes_are_named() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (u, a, input, output) = (zeros(&[1, 4, 3])?, zeros(&[2, 5])?, zeros(&[10, 3])?, zeros(&[4, 10])?);
    let good = MimoScan::new(&u, &a, &input, &output);
    mimo_scan(&good)?;
    let (short, skip, states, numbers) = (zeros(&[5, 3])?, zeros(&[4])?, zeros(&[2, 2, 5])?, zeros(&[3, 5])?);
    for (args, want) in [
        (MimoScan { input: &short, ..good }, "input has shape (5, 3), expected (10, 3)"),
        (MimoScan { skip: Some(&skip), ..good }, "4 outputs are no multiple of the 3 inputs"),
        (MimoScan { initial_state: Some(&states), ..good }, "initial_state has shape (2, 2, 5)"),
        (MimoScan { a: &numbers, ..good }, "a has shape (3, 5)"),
        (MimoScan { u: &a, ..good }, "u has shape (2, 5)"),
        (MimoScan { cu_seqlens: Some(&[0, 3]), ..good }, "cu_seqlens"),
    ] {
        let error = mimo_scan(&args).unwrap_err().to_string();
        assert!(error.contains("mimo_scan") && error.contains(want), "{error}");
    }
    Ok(())
}
