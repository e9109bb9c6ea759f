//! The diagonal scan against recorded reference values, against its definition, and against itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, cases, random};
use semisep_kernels::diagonal_scan::naive;
use semisep_kernels::{DiagonalScan, diagonal_scan, diagonal_state_update};

type Scan = fn(&DiagonalScan) -> Result<(Tensor, Tensor)>;

const SCANS: [(&str, Scan); 2] = [("naive", naive::diagonal_scan), ("fast", diagonal_scan)];

/// HGRN is `h ← exp(g) h + x`.
#[test]
fn recorded_hgrn() -> Result<()> {
    for (name, scan) in SCANS {
        for case in cases("hgrn") {
            for (dtype, tolerance) in [(DType::F64, (1e-12, 1e-11)), (DType::F32, (1e-5, 1e-4))] {
                let (x, g) = (case.var("x", dtype).unwrap(), case.var("g", dtype).unwrap());
                let initial = case.var("initial_state", dtype);
                let (o, state) = scan(&DiagonalScan {
                    initial_state: initial.as_ref().map(Var::as_tensor),
                    ..DiagonalScan::new(&g.exp()?, x.as_tensor())
                })?;
                let what = format!("{name} {} {dtype:?}", case.name);
                assert_close(&what, &o, &case.get("out.o"), tolerance.0);
                assert_close(&what, &state, &case.get("out.final_state"), tolerance.0);
                let grads = case.loss(&[("o", &o), ("final_state", &state)])?.backward()?;
                for (name, var) in [("x", Some(x)), ("g", Some(g)), ("initial_state", initial)] {
                    if let Some(var) = var {
                        let want = case.get(&format!("grad.{name}"));
                        assert_close(&format!("{what} {name}"), grads.get(&var).unwrap(), &want, tolerance.1);
                    }
                }
            }
        }
    }
    Ok(())
}

#[derive(Debug, Clone)]
struct Size {
    b: usize,
    l: usize,
    p: usize,
    complex: bool,
    varying: bool,
    reverse: bool,
    initial: bool,
    cu: Option<Vec<usize>>,
}

impl Size {
    fn number(&self) -> Vec<usize> {
        if self.complex { vec![2, self.p] } else { vec![self.p] }
    }

    fn tokens(&self) -> Vec<usize> {
        [vec![self.b, self.l], self.number()].concat()
    }

    fn states(&self) -> Vec<usize> {
        let n = self.cu.as_ref().map_or(self.b, |cu| cu.len() - 1);
        [vec![n], self.number()].concat()
    }

    /// a, x and the initial state in f64; decays inside the unit circle.
    fn inputs(&self) -> Vec<Tensor> {
        let a = random(1, &if self.varying { self.tokens() } else { self.number() }, DType::F64);
        vec![
            (a * 0.69).unwrap(),
            random(2, &self.tokens(), DType::F64),
            random(3, &self.states(), DType::F64),
        ]
    }

    /// Outputs, final states and the gradients of a, x and the initial state.
    fn solve(&self, scan: Scan, dtype: DType) -> Result<Vec<Tensor>> {
        let vars = self
            .inputs()
            .iter()
            .map(|t| Var::from_tensor(&t.to_dtype(dtype)?))
            .collect::<Result<Vec<_>>>()?;
        let (h, state) = scan(&DiagonalScan {
            reverse: self.reverse,
            initial_state: self.initial.then(|| vars[2].as_tensor()),
            cu_seqlens: self.cu.as_deref(),
            ..DiagonalScan::new(vars[0].as_tensor(), vars[1].as_tensor())
        })?;
        assert_eq!((h.dims(), state.dims()), (&self.tokens()[..], &self.states()[..]), "{self:?}");
        let cotangent = |seed, t: &Tensor| random(seed, t.dims(), DType::F64).to_dtype(t.dtype());
        let loss = ((&h * cotangent(4, &h)?)?.sum_all()? + (&state * cotangent(5, &state)?)?.sum_all()?)?;
        let grads = loss.backward()?;
        let mut all = vec![h, state];
        for var in &vars[..2 + usize::from(self.initial)] {
            // Where there is no token, the definition does not reach the inputs.
            let grad = grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)?;
            all.push(grad);
        }
        Ok(all)
    }
}

fn sizes() -> Vec<Size> {
    let size =
        |b, l, p| Size { b, l, p, complex: false, varying: false, reverse: false, initial: true, cu: None };
    let mut sizes = Vec::new();
    for (b, l, p) in [(1, 0, 3), (2, 1, 1), (3, 7, 17), (1, 130, 33), (2, 65, 100), (1, 1100, 8)] {
        for option in 0..8 {
            let (complex, varying, reverse) = (option & 1 > 0, option & 2 > 0, option & 4 > 0);
            sizes.push(Size { complex, varying, reverse, initial: option % 3 != 0, ..size(b, l, p) });
        }
    }
    for option in 0..8 {
        let (complex, varying, reverse) = (option & 1 > 0, option & 2 > 0, option & 4 > 0);
        let cu = Some(vec![0, 5, 5, 6, 41]);
        sizes.push(Size { complex, varying, reverse, cu, initial: option < 5, ..size(1, 41, 20) });
    }
    sizes
}

#[test]
fn fast_equals_definition() -> Result<()> {
    for size in sizes() {
        let want = size.solve(naive::diagonal_scan, DType::F64)?;
        for (dtype, tolerance) in [(DType::F64, (1e-12, 1e-11)), (DType::F32, (1e-5, 1e-4))] {
            for (k, (got, want)) in size.solve(diagonal_scan, dtype)?.iter().zip(&want).enumerate() {
                let tolerance = if k < 2 { tolerance.0 } else { tolerance.1 };
                assert_close(&format!("{size:?} {dtype:?} {k}"), got, want, tolerance);
            }
        }
    }
    Ok(())
}

/// Gradients of a loss on the final state alone.
#[test]
fn final_state_gradient() -> Result<()> {
    let x = Var::from_tensor(&random(1, &[2, 9, 2, 5], DType::F64))?;
    let a = (random(2, &[2, 5], DType::F64) * 0.6)?;
    let of = |scan: Scan| -> Result<Tensor> {
        let (_, state) = scan(&DiagonalScan::new(&a, x.as_tensor()))?;
        Ok(state.sqr()?.sum_all()?.backward()?.get(&x).unwrap().clone())
    };
    assert_close("gradient", &of(diagonal_scan)?, &of(naive::diagonal_scan)?, 1e-12);
    Ok(())
}

/// A long scan with slow decays stays exact in f32, whatever the threads do.
#[test]
fn long_and_slow() -> Result<()> {
    let (l, p) = (20_000, 4);
    let angle: Vec<f64> = (0..p).map(|k| 0.1 + k as f64).collect();
    let a: Vec<f64> =
        angle.iter().map(|t| 0.999 * t.cos()).chain(angle.iter().map(|t| 0.999 * t.sin())).collect();
    let a = Tensor::from_vec(a, (2, p), &Device::Cpu)?.to_dtype(DType::F32)?;
    let x = random(5, &[1, l, 2, p], DType::F32);
    let (h, last) = diagonal_scan(&DiagonalScan::new(&a, &x))?;
    let (a, x) = (a.to_dtype(DType::F64)?, x.to_dtype(DType::F64)?);
    let (want, want_last) = diagonal_scan(&DiagonalScan::new(&a, &x))?;
    assert_close("states", &h, &want, 1e-5);
    assert_close("last", &last, &want_last, 1e-5);
    Ok(())
}

/// A long sequence of few channels is shared among threads in blocks; its pieces, one after the other, are not.
#[test]
fn a_long_sequence_equals_its_pieces() -> Result<()> {
    const L: usize = 15_000;
    const PIECE: usize = 500;
    for (complex, varying, reverse) in
        [(false, false, false), (false, true, true), (true, false, true), (true, true, false)]
    {
        let number: &[usize] = if complex { &[2, 6] } else { &[6] };
        let tokens = [&[1, L][..], number].concat();
        let a = (random(1, if varying { &tokens } else { number }, DType::F64) * 0.7)?;
        let vars = [
            Var::from_tensor(&a)?,
            Var::from_tensor(&random(2, &tokens, DType::F64))?,
            Var::from_tensor(&random(3, &[&[1][..], number].concat(), DType::F64))?,
        ];
        let [a, x, initial] = vars.each_ref().map(Var::as_tensor);
        let scan = DiagonalScan { reverse, initial_state: Some(initial), ..DiagonalScan::new(a, x) };
        let (h, last) = diagonal_scan(&scan)?;
        let mut starts: Vec<usize> = (0..L).step_by(PIECE).collect();
        if reverse {
            starts.reverse();
        }
        let (mut state, mut pieces) = (initial.clone(), Vec::new());
        for start in starts {
            let decay = if varying { a.narrow(1, start, PIECE)? } else { a.clone() };
            let piece = x.narrow(1, start, PIECE)?;
            let scan = DiagonalScan { initial_state: Some(&state), ..DiagonalScan::new(&decay, &piece) };
            let (out, next) = diagonal_scan(&DiagonalScan { reverse, ..scan })?;
            pieces.push((start, out));
            state = next;
        }
        pieces.sort_by_key(|(start, _)| *start);
        let pieces: Vec<Tensor> = pieces.into_iter().map(|(_, out)| out).collect();
        let want = Tensor::cat(&pieces, 1)?;
        assert_close("outputs", &h, &want, 1e-12);
        assert_close("state", &last, &state, 1e-12);
        let loss = |h: &Tensor, last: &Tensor| (h * x.cos()?.detach())?.sum_all()? + last.sum_all()?;
        let (got, want) = (loss(&h, &last)?.backward()?, loss(&want, &state)?.backward()?);
        for (k, var) in vars.iter().enumerate() {
            assert_close(&format!("gradient {k}"), got.get(var).unwrap(), want.get(var).unwrap(), 1e-11);
        }
    }
    Ok(())
}

#[test]
fn steps_equal_the_scan() -> Result<()> {
    for complex in [false, true] {
        for varying in [false, true] {
            let number: &[usize] = if complex { &[2, 21] } else { &[21] };
            let tokens = [&[3, 6][..], number].concat();
            let a = (random(1, if varying { &tokens } else { number }, DType::F32) * 0.7)?;
            let x = random(2, &tokens, DType::F32);
            let state = random(3, &[&[3][..], number].concat(), DType::F32);
            let (h, last) = diagonal_scan(&DiagonalScan {
                initial_state: Some(&state.copy()?),
                ..DiagonalScan::new(&a, &x)
            })?;
            for t in 0..6 {
                let token = |t: &Tensor, i: usize| t.narrow(1, i, 1)?.squeeze(1);
                let decay = if varying { token(&a, t)? } else { a.clone() };
                let y = diagonal_state_update(&state, &decay, &token(&x, t)?)?;
                assert_close("step", &y, &token(&h, t)?, 1e-6);
            }
            assert_close("state", &state, &last, 1e-6);
        }
    }
    Ok(())
}

#[test]
fn half_precision_data() -> Result<()> {
    let a = (random(1, &[12], DType::F32) * 0.9)?;
    let x = random(2, &[2, 40, 12], DType::BF16);
    let (h, state) = diagonal_scan(&DiagonalScan::new(&a, &x))?;
    assert_eq!((h.dtype(), state.dtype()), (DType::BF16, DType::F32));
    let (want, _) = diagonal_scan(&DiagonalScan::new(&a, &x.to_dtype(DType::F32)?))?;
    assert_close("bf16", &h, &want, 1e-2);
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let x = Tensor::zeros((2, 5, 2, 4), DType::F32, &Device::Cpu)?;
    let a = Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?;
    let message = |args: &DiagonalScan| diagonal_scan(args).unwrap_err().to_string();
    assert!(message(&DiagonalScan::new(&a.narrow(1, 0, 3)?, &x)).contains("a has shape (2, 3)"));
    assert!(message(&DiagonalScan::new(&a, &a)).contains("x has shape (2, 4)"));
    let state = Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?;
    let bad = DiagonalScan { initial_state: Some(&state), ..DiagonalScan::new(&a, &x) };
    assert!(message(&bad).contains("initial_state"));
    let bad = DiagonalScan { cu_seqlens: Some(&[0, 5]), ..DiagonalScan::new(&a, &x) };
    assert!(message(&bad).contains("batch of 1"));
    assert!(diagonal_state_update(&state, &a, &x.narrow(1, 0, 1)?.squeeze(1)?).is_err());
    Ok(())
}
