//! The modal scan against its definition, against itself, and against closed forms.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use common::scan::{Solution, compare};
use common::{assert_close, random};
use semisep_kernels::modal_scan::naive;
use semisep_kernels::{ModalScan, ModalSystem, modal_scan, modal_update};

type Scan = fn(&ModalScan) -> Result<(Tensor, Tensor)>;

/// Sizes of a random problem: batch, length, channels, systems, modes, outputs, rank; skip and initial state or not.
#[derive(Debug, Clone, Copy)]
struct Size {
    b: usize,
    l: usize,
    d: usize,
    p: usize,
    n: usize,
    c: usize,
    rank: usize,
    options: bool,
}

/// Named inputs in f64, and cotangents.
struct Problem {
    inputs: Vec<(&'static str, Tensor)>,
    cu: Option<Vec<usize>>,
    cot_y: Tensor,
    cot_state: Tensor,
}

/// Poles between 0.5 and 1 in absolute value, at any angle.
fn poles(seed: u64, p: usize, n: usize) -> Result<Tensor> {
    let radius = (random(seed, &[p, n, 1], DType::F64) * 0.24)?.affine(1.0, 0.75)?;
    let angle = (random(seed + 1, &[p, n, 1], DType::F64) * 3.0)?;
    let unit = Tensor::cat(&[angle.cos()?, angle.sin()?], 2)?;
    unit.broadcast_mul(&radius)
}

impl Problem {
    fn new(seed: u64, size: Size, cu: Option<&[usize]>) -> Result<Self> {
        let Size { b, l, d, p, n, c, rank, options } = size;
        let sequences = cu.map_or(b, |cu| cu.len() - 1);
        let values = |k: u64, shape: &[usize]| random(100 * seed + k, shape, DType::F64);
        let mut inputs = vec![
            ("u", values(0, &[b, l, d])),
            ("poles", poles(100 * seed + 40, p, n)?),
            ("input", values(2, &[p, n, 2])),
            ("output", values(3, &[c, p, n, 2])),
        ];
        if rank > 0 {
            // Small, so that the corrected system is stable, too.
            let small = 0.2 / n as f64;
            inputs.push(("left", (values(4, &[rank, p, n, 2]) * small)?));
            inputs.push(("right", values(5, &[rank, p, n, 2])));
        }
        if options {
            inputs.push(("skip", values(6, &[c, p])));
            inputs.push(("state", values(7, &[sequences, d, n, 2])));
        }
        let (cot_y, cot_state) = (values(20, &[b, l, c, d]), values(21, &[sequences, d, n, 2]));
        Ok(Self { inputs, cu: cu.map(<[usize]>::to_vec), cot_y, cot_state })
    }

    /// Data in this dtype; the bank in f64, as it is meant to be.
    fn vars(&self, dtype: DType) -> Result<Vec<(&'static str, Var)>> {
        let data = |name: &str| ["u", "state"].contains(&name);
        let cast = |name: &str, t: &Tensor| if data(name) { t.to_dtype(dtype) } else { Ok(t.clone()) };
        self.inputs.iter().map(|(name, t)| Ok((*name, Var::from_tensor(&cast(name, t)?)?))).collect()
    }

    fn solve(&self, scan: Scan, dtype: DType) -> Result<Solution> {
        let vars = self.vars(dtype)?;
        let get = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| v.1.as_tensor());
        let (y, state) = scan(&ModalScan {
            u: get("u").unwrap(),
            system: system(&vars),
            initial_state: get("state"),
            cu_seqlens: self.cu.as_deref(),
        })?;
        let loss = ((y.to_dtype(DType::F64)? * &self.cot_y)?.sum_all()?
            + (state.to_dtype(DType::F64)? * &self.cot_state)?.sum_all()?)?;
        let grads = loss.backward()?;
        let grads = vars.iter().map(|(name, var)| {
            Ok((*name, grads.get(var).map_or_else(|| var.zeros_like(), |g| Ok(g.clone()))?))
        });
        Ok((y.clone(), state, grads.collect::<Result<_>>()?))
    }
}

fn system<'a>(vars: &'a [(&'static str, Var)]) -> ModalSystem<'a> {
    let get = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| v.1.as_tensor());
    ModalSystem {
        poles: get("poles").unwrap(),
        input: get("input").unwrap(),
        output: get("output").unwrap(),
        low_rank: get("left").zip(get("right")),
        skip: get("skip"),
    }
}

#[test]
fn odd_sizes_match_the_definition() -> Result<()> {
    let shapes = [
        (2, 5, 5, 3, 1, 0),
        (1, 33, 33, 8, 1, 1),
        (3, 6, 2, 4, 2, 2),
        (1, 16, 1, 7, 3, 0),
        (2, 34, 17, 1, 2, 1),
    ];
    for (k, l) in [0, 1, 2, 15, 16, 17, 50].into_iter().enumerate() {
        for (j, (b, d, p, n, c, rank)) in shapes.into_iter().enumerate() {
            let size = Size { b, l, d, p, n, c, rank, options: (k + j) % 3 > 0 };
            let problem = Problem::new((10 * k + j) as u64, size, None)?;
            let want = problem.solve(naive::modal_scan, DType::F64)?;
            let what = format!("{size:?}");
            compare(&what, &problem.solve(modal_scan, DType::F64)?, &want, (1e-12, 1e-11));
            compare(&what, &problem.solve(modal_scan, DType::F32)?, &want, (1e-5, 1e-4));
        }
    }
    Ok(())
}

#[test]
fn packed_sequences_match_the_definition() -> Result<()> {
    let size = Size { b: 1, l: 45, d: 20, p: 10, n: 4, c: 2, rank: 1, options: true };
    for cu in [&[0, 45][..], &[0, 0, 17, 18, 45], &[0, 1, 2, 30, 45, 45]] {
        let problem = Problem::new(5, size, Some(cu))?;
        let want = problem.solve(naive::modal_scan, DType::F64)?;
        compare(&format!("{cu:?}"), &problem.solve(modal_scan, DType::F64)?, &want, (1e-12, 1e-11));
        compare(&format!("{cu:?}"), &problem.solve(modal_scan, DType::F32)?, &want, (1e-5, 1e-4));
    }
    Ok(())
}

#[test]
fn tokens_one_by_one_match_the_scan() -> Result<()> {
    for (rank, c, dtype, tolerance) in [
        (0, 1, DType::F64, 1e-13),
        (2, 3, DType::F64, 1e-13),
        (0, 2, DType::F32, 1e-6),
        (1, 1, DType::F32, 1e-6),
    ] {
        let size = Size { b: 2, l: 12, d: 34, p: 17, n: 5, c, rank, options: true };
        let problem = Problem::new(9, size, None)?;
        let (want, last, _) = problem.solve(modal_scan, dtype)?;
        let vars = problem.vars(dtype)?;
        let get = |name: &str| vars.iter().find(|v| v.0 == name).unwrap().1.as_tensor().detach();
        let (u, state) = (get("u"), get("state").copy()?);
        for t in 0..size.l {
            let y = modal_update(&state, &u.narrow(1, t, 1)?.squeeze(1)?, &system(&vars))?;
            assert_close(&format!("token {t}"), &y, &want.narrow(1, t, 1)?.squeeze(1)?, tolerance);
        }
        assert_close("state", &state, &last, tolerance);
    }
    Ok(())
}

/// `Λ - 1` in f32 keeps the memory of a pole that f32 itself cannot tell from its neighbours: after 20,000 tokens a
/// state of weight e^-0.2 is right to 1e-5.
#[test]
fn slow_poles_keep_their_memory_in_f32() -> Result<()> {
    let cpu = Device::Cpu;
    let poles = Tensor::new(&[[[(-1e-5f64).exp(), 0.0]]], &cpu)?;
    let one = Tensor::new(&[[[1.0f64, 0.0]]], &cpu)?;
    let u = Tensor::zeros((1, 20_000, 1), DType::F32, &cpu)?;
    let (_, state) = modal_scan(&ModalScan {
        u: &u,
        system: ModalSystem {
            poles: &poles,
            input: &one,
            output: &one.unsqueeze(0)?,
            low_rank: None,
            skip: None,
        },
        initial_state: Some(&Tensor::new(&[[[[1.0f32, 0.0]]]], &cpu)?),
        cu_seqlens: None,
    })?;
    let kept = f64::from(state.narrow(D::Minus1, 0, 1)?.flatten_all()?.to_vec1::<f32>()?[0]);
    assert!((kept / (-0.2f64).exp() - 1.0).abs() < 1e-3, "{kept}");
    Ok(())
}

#[test]
fn half_precision_data_and_bad_shapes() -> Result<()> {
    let size = Size { b: 1, l: 9, d: 4, p: 4, n: 3, c: 1, rank: 0, options: false };
    let problem = Problem::new(3, size, None)?;
    let want = problem.solve(modal_scan, DType::F64)?;
    let got = problem.solve(modal_scan, DType::BF16)?;
    assert_eq!((got.0.dtype(), got.1.dtype()), (DType::BF16, DType::F32));
    assert_close("bf16", &got.0, &want.0, 1e-2);
    let vars = problem.vars(DType::F32)?;
    let wide = Tensor::zeros((1, 9, 6), DType::F32, &Device::Cpu)?;
    let args = |u, cu_seqlens| ModalScan { u, system: system(&vars), initial_state: None, cu_seqlens };
    let error = modal_scan(&args(&wide, None)).unwrap_err().to_string();
    assert!(error.contains("modal_scan") && error.contains("do not divide"), "{error}");
    assert!(modal_scan(&args(vars[0].1.as_tensor(), Some(&[0, 4]))).is_err());
    Ok(())
}
