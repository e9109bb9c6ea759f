//! The filter of a diagonal-plus-low-rank system against its definition and against the recurrence.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Result, Tensor, Var};
use common::{assert_close, random};
use semisep_kernels::dplr_kernel::naive;
use semisep_kernels::{DplrKernel, dplr_kernel};

type Kernel = fn(&DplrKernel) -> Result<Tensor>;

struct Problem {
    vars: [Var; 3],
    period: usize,
    length: usize,
}

impl Problem {
    fn new(
        seed: u64,
        (d, n, c, rank): (usize, usize, usize, usize),
        period: usize,
        length: usize,
    ) -> Result<Self> {
        let values = |k: u64, shape: &[usize]| random(10 * seed + k, shape, DType::F64);
        let re = (values(0, &[d, n, 1]) * 0.4)?.affine(1.0, -0.5)?;
        let im = (values(1, &[d, n, 1]) * 5.0)?;
        let vars = [
            Tensor::cat(&[re, im], 2)?,
            (values(2, &[1 + rank, d, n, 2]) * 0.3)?,
            values(3, &[c + rank, d, n, 2]),
        ];
        let [a, b, c] = vars.map(|t| Var::from_tensor(&t));
        Ok(Self { vars: [a?, b?, c?], period, length })
    }

    fn solve(&self, kernel: Kernel) -> Result<(Tensor, Vec<Tensor>)> {
        let [poles, left, right] = self.vars.each_ref().map(Var::as_tensor);
        let k = kernel(&DplrKernel { poles, left, right, period: self.period, length: self.length })?;
        let grads = (&k * random(7, k.dims(), DType::F64))?.sum_all()?.backward()?;
        let grads = self.vars.iter().map(|v| grads.get(v).map_or_else(|| v.zeros_like(), |g| Ok(g.clone())));
        Ok((k, grads.collect::<Result<_>>()?))
    }
}

#[test]
fn odd_sizes_match_the_definition() -> Result<()> {
    let shapes = [(3, 4, 1, 1), (2, 7, 2, 2), (1, 3, 1, 0), (2, 5, 3, 3), (20, 1, 1, 1)];
    for (i, (period, length)) in
        [(1, 1), (2, 2), (16, 16), (37, 37), (36, 20), (15, 0)].into_iter().enumerate()
    {
        for (j, shape) in shapes.into_iter().enumerate() {
            let problem = Problem::new((10 * i + j) as u64, shape, period, length)?;
            let (want, want_grads) = problem.solve(naive::dplr_kernel)?;
            let (got, got_grads) = problem.solve(dplr_kernel)?;
            let what = format!("{shape:?}, period {period}, length {length}");
            assert_close(&what, &got, &want, 1e-12);
            for (name, (got, want)) in
                ["poles", "left", "right"].iter().zip(got_grads.iter().zip(&want_grads))
            {
                assert_close(&format!("{what}: gradient of {name}"), got, want, 1e-11);
            }
        }
    }
    Ok(())
}

#[test]
fn bad_sizes_are_named() -> Result<()> {
    let problem = Problem::new(1, (2, 3, 1, 1), 8, 9)?;
    let error = problem.solve(dplr_kernel).unwrap_err().to_string();
    assert!(error.contains("dplr_kernel") && error.contains("period"), "{error}");
    Ok(())
}
