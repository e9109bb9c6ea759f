//! The token shift against its definition and against itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, random};
use semisep_kernels::token_shift::naive;
use semisep_kernels::{TokenShift, token_shift};

type Shift = fn(&TokenShift) -> Result<(Vec<Tensor>, Tensor)>;

/// Sizes, options and boundaries of a random problem.
#[derive(Debug, Clone)]
struct Problem {
    size: (usize, usize, usize, usize),
    data: bool,
    state: bool,
    cu: Option<Vec<usize>>,
}

impl Problem {
    /// Mixes, last tokens, then the gradients of x, mix, state and data, as far as given.
    fn solve(&self, shift: Shift, dtype: DType) -> Result<Vec<Tensor>> {
        let (b, l, d, m) = self.size;
        let sequences = self.cu.as_ref().map_or(b, |cu| cu.len() - 1);
        let wide = if dtype == DType::F64 { dtype } else { DType::F32 };
        let var = |seed, shape: &[usize], dtype| {
            Var::from_tensor(&random(seed, shape, DType::F64).to_dtype(dtype)?)
        };
        let (x, mix) = (var(1, &[b, l, d], dtype)?, var(2, &[m, d], wide)?);
        let state = self.state.then(|| var(4, &[sequences, d], wide)).transpose()?;
        let vars = (0..m).map(|j| var(10 + j as u64, &[b, l, d], dtype));
        let vars: Vec<Var> = if self.data { vars.collect::<Result<_>>()? } else { Vec::new() };
        let data: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let (mut out, last) = shift(&TokenShift {
            x: &x,
            mix: &mix,
            data: self.data.then_some(&data[..]),
            state: state.as_ref().map(Var::as_tensor),
            cu_seqlens: self.cu.as_deref(),
        })?;
        out.push(last);
        let mut loss = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        // The second mix plays no part in the loss.
        for (j, t) in out.iter().enumerate().filter(|(j, _)| *j != 1 || m == 1) {
            let cot = random(5 + j as u64, t.dims(), DType::F64);
            loss = (loss + (t.to_dtype(DType::F64)? * cot)?.sum_all()?)?;
        }
        let grads = loss.backward()?;
        for var in [Some(x), Some(mix), state].iter().flatten().chain(&vars) {
            out.push(grads.get(var).map_or_else(|| var.zeros_like(), |g| Ok(g.clone()))?);
        }
        Ok(out)
    }
}

#[test]
fn odd_sizes_match_the_definition() -> Result<()> {
    for (b, l, d, m) in [(2, 1, 5, 1), (1, 2, 16, 3), (3, 31, 7, 5), (2, 33, 40, 6), (1, 130, 3, 2)] {
        for options in 0..4 {
            let problem =
                Problem { size: (b, l, d, m), data: options & 1 > 0, state: options & 2 > 0, cu: None };
            check(&problem)?;
        }
    }
    check(&Problem { size: (1, 81, 9, 2), data: true, state: true, cu: Some(vec![0, 7, 7, 8, 45, 81]) })?;
    check(&Problem { size: (1, 81, 9, 2), data: false, state: false, cu: Some(vec![0, 0, 40, 81, 81]) })
}

fn check(problem: &Problem) -> Result<()> {
    let want = problem.solve(naive::token_shift, DType::F64)?;
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-6)] {
        for (i, (got, want)) in problem.solve(token_shift, dtype)?.iter().zip(&want).enumerate() {
            assert_close(&format!("{problem:?} {dtype:?} result {i}"), got, want, tolerance);
        }
    }
    for dtype in [DType::BF16, DType::F16] {
        let got = problem.solve(token_shift, dtype)?;
        assert_eq!((got[0].dtype(), got[problem.size.3].dtype()), (dtype, DType::F32));
        for (i, (got, want)) in got.iter().zip(problem.solve(naive::token_shift, dtype)?).enumerate() {
            assert_close(&format!("{problem:?} {dtype:?} result {i}"), got, &want, 5e-3);
        }
    }
    Ok(())
}

#[test]
fn no_tokens_leave_the_state() -> Result<()> {
    let (x, mix) = (random(1, &[2, 0, 4], DType::F32), random(2, &[3, 4], DType::F32));
    let state = random(3, &[2, 4], DType::F32);
    let (y, last) = token_shift(&TokenShift { state: Some(&state), ..TokenShift::new(&x, &mix) })?;
    assert_eq!((y.len(), y[2].dims()), (3, &[2, 0, 4][..]));
    assert_close("state", &last, &state, 0.0);
    Ok(())
}

/// Mixes of 0 and 1 are the token and the one before it.
#[test]
fn the_ends_of_the_scale() -> Result<()> {
    let x = random(1, &[1, 6, 4], DType::F64);
    let mix = Tensor::cat(
        &[Tensor::zeros((1, 4), DType::F64, &Device::Cpu)?, Tensor::ones((1, 4), DType::F64, &Device::Cpu)?],
        0,
    )?;
    let (y, last) = token_shift(&TokenShift::new(&x, &mix))?;
    assert_close("own", &y[0], &x, 0.0);
    assert_close("before", &y[1].narrow(1, 1, 5)?, &x.narrow(1, 0, 5)?, 1e-15);
    assert_close("first", &y[1].narrow(1, 0, 1)?.sqr()?.sum_all()?, &Tensor::new(0f64, &Device::Cpu)?, 0.0);
    assert_close("last", &last, &x.narrow(1, 5, 1)?.squeeze(1)?, 0.0);
    Ok(())
}

#[test]
fn errors_name_what_is_wrong() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (x, mix) = (zeros(&[2, 5, 16])?, zeros(&[3, 8])?);
    let found = token_shift(&TokenShift::new(&x, &mix)).unwrap_err().to_string();
    assert!(found.contains("token_shift: mix has shape (3, 8), expected (3, 16)"), "{found}");
    let (mix, state) = (zeros(&[3, 16])?, zeros(&[1, 16])?);
    let args = TokenShift { state: Some(&state), ..TokenShift::new(&x, &mix) };
    let found = token_shift(&args).unwrap_err().to_string();
    assert!(found.contains("token_shift: state has shape (1, 16), expected (2, 16)"), "{found}");
    Ok(())
}
