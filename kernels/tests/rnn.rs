//! Recurrent cells against their definition.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, random};
use semisep_kernels::rnn::naive;
use semisep_kernels::{Cell, Recurrence, recurrence};

type Op = fn(&Recurrence) -> Result<(Tensor, Tensor)>;

const CELLS: [Cell; 4] = [Cell::Lstm, Cell::Gru, Cell::Tanh, Cell::Relu];

/// Batch, length, width, packed boundaries, and whether there are a bias and an initial state.
type Size<'a> = (usize, usize, usize, Option<&'a [usize]>, bool);

/// Outputs, final states and the gradients of x, the weight, the bias and the initial state.
fn solve(op: Op, cell: Cell, (b, l, h, cu, options): Size, dtype: DType) -> Result<Vec<Tensor>> {
    let (sequences, rows) = (cu.map_or(b, |cu| cu.len() - 1), cell.gates() * h);
    let values = |seed, shape: &[usize], scale: f64| {
        Var::from_tensor(&(random(seed, shape, DType::F64) * scale)?.to_dtype(dtype)?)
    };
    let vars = [
        values(1, &[b, l, rows], 1.5)?,
        values(2, &[rows, h], 1.5 / (h as f64).sqrt())?,
        values(3, &[rows], 0.5)?,
        values(4, &[sequences, cell.states(), h], 1.0)?,
    ];
    let [x, weight, bias, state] = vars.each_ref().map(Var::as_tensor);
    let (y, last) = op(&Recurrence {
        bias_hh: options.then_some(bias),
        initial_state: options.then_some(state),
        cu_seqlens: cu,
        ..Recurrence::new(cell, x, weight)
    })?;
    assert_eq!((y.dims(), last.dims()), (&[b, l, h][..], &[sequences, cell.states(), h][..]));
    let cotangent = |seed, t: &Tensor| random(seed, t.dims(), DType::F64).to_dtype(t.dtype());
    let loss = ((&y * cotangent(6, &y)?)?.sum_all()? + (&last * cotangent(7, &last)?)?.sum_all()?)?;
    let grads = loss.backward()?;
    let mut all = vec![y, last];
    for var in &vars[..if options { 4 } else { 2 }] {
        // Where there is no token, the definition does not reach the inputs.
        all.push(grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)?);
    }
    Ok(all)
}

#[test]
fn fast_equals_definition() -> Result<()> {
    let cu: &[usize] = &[0, 5, 5, 6, 31];
    let sizes: [Size; 8] = [
        (1, 0, 3, None, true),
        (2, 1, 1, None, true),
        (3, 7, 17, None, false),
        (1, 40, 33, None, true),
        (2, 25, 100, None, true),
        (40, 4, 20, None, true),
        (1, 31, 20, Some(cu), true),
        (1, 31, 20, Some(cu), false),
    ];
    for cell in CELLS {
        for size in sizes {
            let want = solve(naive::recurrence, cell, size, DType::F64)?;
            for (dtype, tolerance) in [(DType::F64, (1e-12, 1e-11)), (DType::F32, (1e-5, 1e-4))] {
                for (k, (got, want)) in solve(recurrence, cell, size, dtype)?.iter().zip(&want).enumerate() {
                    let tolerance = if k < 2 { tolerance.0 } else { tolerance.1 };
                    assert_close(&format!("{cell:?} {size:?} {dtype:?} {k}"), got, want, tolerance);
                }
            }
        }
    }
    Ok(())
}

/// Two halves, the second from where the first left off.
#[test]
fn states_go_on() -> Result<()> {
    for cell in CELLS {
        let x = random(1, &[2, 11, cell.gates() * 6], DType::F64);
        let weight = (random(2, &[cell.gates() * 6, 6], DType::F64) * 0.4)?;
        let (want, last) = recurrence(&Recurrence::new(cell, &x, &weight))?;
        let (a, state) = recurrence(&Recurrence::new(cell, &x.narrow(1, 0, 4)?, &weight))?;
        let rest = x.narrow(1, 4, 7)?;
        let second = Recurrence { initial_state: Some(&state), ..Recurrence::new(cell, &rest, &weight) };
        let (b, state) = recurrence(&second)?;
        assert_close("outputs", &Tensor::cat(&[a, b], 1)?, &want, 1e-13);
        assert_close("state", &state, &last, 1e-13);
    }
    Ok(())
}

#[test]
fn half_precision_data() -> Result<()> {
    let x = random(1, &[2, 9, 32], DType::BF16);
    let weight = (random(2, &[32, 8], DType::F32) * 0.4)?;
    let (y, state) = recurrence(&Recurrence::new(Cell::Lstm, &x, &weight))?;
    assert_eq!((y.dtype(), state.dtype()), (DType::BF16, DType::F32));
    let x = x.to_dtype(DType::F32)?;
    assert_close("bf16", &y, &recurrence(&Recurrence::new(Cell::Lstm, &x, &weight))?.0, 1e-2);
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let t = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (x, weight) = (t(&[2, 5, 16])?, t(&[16, 4])?);
    let message = |args: &Recurrence| recurrence(args).unwrap_err().to_string();
    assert!(message(&Recurrence::new(Cell::Gru, &x, &weight)).contains("weight_hh has shape (16, 4)"));
    assert!(message(&Recurrence::new(Cell::Lstm, &t(&[2, 5, 12])?, &weight)).contains("x has shape"));
    let state = t(&[2, 1, 4])?;
    let bad = Recurrence { initial_state: Some(&state), ..Recurrence::new(Cell::Lstm, &x, &weight) };
    assert!(message(&bad).contains("initial_state"));
    Ok(())
}
