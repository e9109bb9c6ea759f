//! The max-plus scan against its definition and against itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, random};
use semisep_kernels::max_plus::naive;
use semisep_kernels::{MaxPlusScan, Stabilized, max_plus_scan};

type Scan = fn(&MaxPlusScan) -> Result<Stabilized>;

/// Sizes, options and boundaries of a random problem.
#[derive(Debug, Clone)]
struct Problem {
    size: (usize, usize, usize),
    state: bool,
    cu: Option<Vec<usize>>,
}

impl Problem {
    /// Factors, maxima, last maxima, then the gradients of decays, gains and state.
    fn solve(&self, scan: Scan, dtype: DType) -> Result<Vec<Tensor>> {
        let (b, l, h) = self.size;
        let sequences = self.cu.as_ref().map_or(b, |cu| cu.len() - 1);
        let var = |seed, shape: &[usize], scale: f64| {
            Var::from_tensor(&(random(seed, shape, DType::F64) * scale)?.to_dtype(dtype)?)
        };
        let decay = Var::from_tensor(&var(1, &[b, l, h], 0.5)?.affine(1.0, -0.5)?)?;
        let (gain, state) = (var(2, &[b, l, h], 2.0)?, var(3, &[sequences, h], 2.0)?);
        let out = scan(&MaxPlusScan {
            log_decay: &decay,
            log_gain: &gain,
            state: self.state.then_some(state.as_tensor()),
            cu_seqlens: self.cu.as_deref(),
        })?;
        let mut out = vec![out.log_decay, out.log_gain, out.max, out.last];
        let mut loss = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for (i, t) in out.iter().enumerate() {
            let cot = random(5 + i as u64, t.dims(), DType::F64);
            loss = (loss + (t.to_dtype(DType::F64)? * cot)?.sum_all()?)?;
        }
        let grads = loss.backward()?;
        for var in [decay, gain, state] {
            out.push(grads.get(&var).map_or_else(|| var.zeros_like(), |g| Ok(g.clone()))?);
        }
        Ok(out)
    }
}

#[test]
fn odd_sizes_match_the_definition() -> Result<()> {
    let sizes = [(2, 1, 5), (1, 2, 16), (3, 31, 7), (2, 33, 1), (1, 130, 3), (2, 0, 3)];
    for size in sizes {
        for state in [false, true] {
            check(&Problem { size, state, cu: None })?;
        }
    }
    check(&Problem { size: (1, 81, 9), state: true, cu: Some(vec![0, 7, 7, 8, 45, 81]) })?;
    check(&Problem { size: (1, 81, 9), state: false, cu: Some(vec![0, 0, 40, 81, 81]) })
}

fn check(problem: &Problem) -> Result<()> {
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-5)] {
        let want = problem.solve(naive::max_plus_scan, dtype)?;
        for (i, (got, want)) in problem.solve(max_plus_scan, dtype)?.iter().zip(&want).enumerate() {
            assert_close(&format!("{problem:?} {dtype:?} result {i}"), got, want, tolerance);
        }
    }
    Ok(())
}

/// One of the two factors is 1, neither is greater, and together they undo the maximum.
#[test]
fn factors_are_at_most_one() -> Result<()> {
    let decay = random(1, &[1, 50, 4], DType::F64).affine(300.0, -300.0)?;
    let gain = (random(2, &[1, 50, 4], DType::F64) * 1000.0)?;
    let out = max_plus_scan(&MaxPlusScan::new(&decay, &gain))?;
    let [keep, take, max, gain] = [&out.log_decay, &out.log_gain, &out.max, &gain]
        .map(|t| t.flatten_all().unwrap().to_vec1::<f64>().unwrap());
    for i in 0..keep.len() {
        assert!(keep[i].max(take[i]) == 0.0 && keep[i] <= 0.0 && take[i] <= 0.0);
        assert!((take[i] + max[i] - gain[i]).abs() < 1e-12);
    }
    Ok(())
}

#[test]
fn errors_name_what_is_wrong() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (decay, gain, state) = (zeros(&[2, 5, 4])?, zeros(&[2, 5, 3])?, zeros(&[1, 4])?);
    let found = max_plus_scan(&MaxPlusScan::new(&decay, &gain)).unwrap_err().to_string();
    assert!(found.contains("max_plus_scan: log_gain has shape (2, 5, 3), expected (2, 5, 4)"), "{found}");
    let args = MaxPlusScan { state: Some(&state), ..MaxPlusScan::new(&decay, &decay) };
    let found = max_plus_scan(&args).unwrap_err().to_string();
    assert!(found.contains("max_plus_scan: state has shape (1, 4), expected (2, 4)"), "{found}");
    Ok(())
}
