//! RWKV-4's average against recorded reference values, against its definition, and against itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, cases, random};
use semisep_kernels::wkv4::naive;
use semisep_kernels::{Wkv4, Wkv4Update, wkv4, wkv4_state, wkv4_update};

type Average = fn(&Wkv4) -> Result<(Tensor, Tensor)>;

const FORMS: [(&str, Average); 2] = [("naive", naive::wkv4), ("fast", wkv4)];
const LADDER: [(DType, f64, f64); 2] = [(DType::F64, 1e-12, 1e-11), (DType::F32, 1e-5, 1e-4)];

#[test]
fn recorded_cases() -> Result<()> {
    for (name, average) in FORMS {
        for case in cases("wkv4") {
            for (dtype, out, grad) in LADDER {
                let state = |what: &str| -> Result<Tensor> {
                    let rows = ["num", "den", "max"].map(|row| case.get(&format!("extra.{what}_{row}")));
                    Tensor::stack(&rows, 1)
                };
                let vars = ["k", "v", "w", "u"].map(|n| case.var(n, dtype).unwrap());
                let [k, v, w, u] = vars.each_ref().map(|v| v.as_tensor());
                let initial = case.has("extra.initial_num").then(|| state("initial")).transpose()?;
                let initial = initial.map(|t| t.to_dtype(dtype)).transpose()?;
                let (y, last) = average(&Wkv4 { state: initial.as_ref(), ..Wkv4::new(k, v, w, u) })?;
                let what = format!("{name} {} {dtype:?}", case.name);
                assert_close(&format!("{what}: y"), &y, &case.get("out.y"), out);
                assert_close(&format!("{what}: state"), &last, &state("final")?, out);
                let grads = case.loss(&[("y", &y)])?.backward()?;
                for (name, var) in ["k", "v", "w", "u"].iter().zip(&vars) {
                    let want = case.get(&format!("grad.{name}"));
                    assert_close(
                        &format!("{what}: gradient of {name}"),
                        grads.get(var).unwrap(),
                        &want,
                        grad,
                    );
                }
            }
        }
    }
    Ok(())
}

/// A random problem in f64: k, v, w, u and perhaps a state; cotangents of both outputs.
struct Problem {
    inputs: Vec<Tensor>,
    cu: Option<Vec<usize>>,
    cot: [Tensor; 2],
}

/// Output, final state, gradients of the inputs.
type Solution = Vec<Tensor>;

impl Problem {
    fn new(seed: u64, (b, l, c): (usize, usize, usize), state: bool, cu: Option<&[usize]>) -> Result<Self> {
        let sequences = cu.map_or(b, |cu| cu.len() - 1);
        let values = |k: u64, shape: &[usize]| random(100 * seed + k, shape, DType::F64);
        let mut inputs = vec![
            (values(0, &[b, l, c]) * 3.0)?,
            values(1, &[b, l, c]),
            values(2, &[c]).exp()?.neg()?,
            values(3, &[c]),
        ];
        if state {
            let sums = values(4, &[sequences, 3, c]);
            // A denominator is positive.
            let den = (sums.narrow(1, 1, 1)?.abs()? + 0.1)?;
            inputs.push(Tensor::cat(&[&sums.narrow(1, 0, 1)?, &den, &sums.narrow(1, 2, 1)?], 1)?);
        }
        let cot = [values(20, &[b, l, c]), values(21, &[sequences, 3, c])];
        Ok(Self { inputs, cu: cu.map(<[usize]>::to_vec), cot })
    }

    fn solve(&self, average: impl Fn(&Wkv4) -> Result<(Tensor, Tensor)>, dtype: DType) -> Result<Solution> {
        let wide = if dtype == DType::F64 { dtype } else { DType::F32 };
        let dtype_of = |i: usize| if i < 2 { dtype } else { wide };
        let vars = self.inputs.iter().enumerate();
        let vars: Vec<Var> =
            vars.map(|(i, t)| Var::from_tensor(&t.to_dtype(dtype_of(i))?)).collect::<Result<_>>()?;
        let (y, state) = average(&Wkv4 {
            state: vars.get(4).map(Var::as_tensor),
            cu_seqlens: self.cu.as_deref(),
            ..Wkv4::new(&vars[0], &vars[1], &vars[2], &vars[3])
        })?;
        let [cot_y, cot_state] = &self.cot;
        let mut all = vec![y.clone(), state.clone()];
        if !(y.track_op() || state.track_op()) {
            return Ok(all);
        }
        let loss = ((y.to_dtype(DType::F64)? * cot_y)?.sum_all()?
            + (state.to_dtype(DType::F64)? * cot_state)?.sum_all()?)?;
        let grads = loss.backward()?;
        for var in &vars {
            all.push(grads.get(var).map_or_else(|| var.zeros_like(), |g| Ok(g.clone()))?);
        }
        Ok(all)
    }
}

fn compare(what: &str, got: &Solution, want: &Solution, out: f64, grad: f64) {
    const NAMES: [&str; 7] = ["y", "state", "k", "v", "w", "u", "initial state"];
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let tolerance = if i < 2 { out } else { grad };
        assert_close(&format!("{what}: {}", NAMES[i]), got, want, tolerance);
    }
}

#[test]
fn odd_sizes_match_the_definition() -> Result<()> {
    for (i, l) in [1, 2, 31, 32, 33, 97].into_iter().enumerate() {
        for (j, (b, c)) in [(2, 5), (1, 80), (3, 32), (1, 130), (1, 1)].into_iter().enumerate() {
            for state in [false, true] {
                let problem = Problem::new((10 * i + j) as u64, (b, l, c), state, None)?;
                let want = problem.solve(naive::wkv4, DType::F64)?;
                for (dtype, out, grad) in LADDER {
                    let what = format!("{b} x {l} x {c}, state {state}, {dtype:?}");
                    compare(&what, &problem.solve(wkv4, dtype)?, &want, out, grad);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn no_tokens_leave_the_state() -> Result<()> {
    let problem = Problem::new(1, (2, 0, 7), true, None)?;
    let got = problem.solve(wkv4, DType::F64)?;
    assert_eq!(got[0].dims(), [2, 0, 7]);
    assert_close("state", &got[1], &problem.inputs[4], 0.0);
    assert_close("gradient of the state", &got[6], &problem.cot[1], 0.0);
    Ok(())
}

#[test]
fn half_precision_stays_within_its_rounding() -> Result<()> {
    let problem = Problem::new(3, (2, 50, 24), true, None)?;
    for dtype in [DType::BF16, DType::F16] {
        let got = problem.solve(wkv4, dtype)?;
        assert_eq!((got[0].dtype(), got[1].dtype()), (dtype, DType::F32));
        // Rounding of the inputs aside, only that of the output and the gradients is left.
        compare(&format!("{dtype:?}"), &got, &problem.solve(naive::wkv4, dtype)?, 3e-3, 5e-3);
    }
    Ok(())
}

#[test]
fn packed_sequences_match_the_definition_and_separate_calls() -> Result<()> {
    let cu = [0, 7, 7, 8, 45, 81];
    for state in [false, true] {
        let problem = Problem::new(5, (1, 81, 40), state, Some(&cu))?;
        let packed = problem.solve(wkv4, DType::F64)?;
        if state {
            compare("packed", &packed, &problem.solve(naive::wkv4, DType::F64)?, 1e-12, 1e-11);
        }
        for (k, pair) in cu.windows(2).enumerate() {
            let part = |t: &Tensor| t.narrow(1, pair[0], pair[1] - pair[0])?.contiguous();
            let mut inputs = problem.inputs.clone();
            (inputs[0], inputs[1]) = (part(&inputs[0])?, part(&inputs[1])?);
            if state {
                inputs[4] = inputs[4].narrow(0, k, 1)?;
            }
            let cot = [part(&problem.cot[0])?, problem.cot[1].narrow(0, k, 1)?];
            let alone = Problem { inputs, cu: None, cot }.solve(wkv4, DType::F64)?;
            assert_close("y", &part(&packed[0])?, &alone[0], 0.0);
            assert_close("state", &packed[1].narrow(0, k, 1)?, &alone[1], 0.0);
            assert_close("gradient of k", &part(&packed[2])?, &alone[2], 1e-14);
        }
    }
    Ok(())
}

/// The average in two calls, the state carried over: outputs, state and gradients, those through the state included.
#[test]
fn any_split_gives_the_whole() -> Result<()> {
    let problem = Problem::new(11, (2, 70, 20), true, None)?;
    let whole = problem.solve(wkv4, DType::F64)?;
    for at in [1, 33, 69] {
        let split = |args: &Wkv4| {
            let piece = |start: usize, len: usize, state: Option<&Tensor>| {
                let (k, v) = (args.k.narrow(1, start, len)?, args.v.narrow(1, start, len)?);
                wkv4(&Wkv4 { k: &k, v: &v, state, ..*args })
            };
            let (first, state) = piece(0, at, args.state)?;
            let (second, state) = piece(at, 70 - at, Some(&state))?;
            Ok((Tensor::cat(&[first, second], 1)?, state))
        };
        compare(&format!("split at {at}"), &problem.solve(split, DType::F64)?, &whole, 1e-13, 1e-11);
    }
    Ok(())
}

#[test]
fn steps_give_the_whole() -> Result<()> {
    for (b, c) in [(1, 768), (3, 37), (2, 1)] {
        for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-5), (DType::BF16, 1e-2)] {
            let problem = Problem::new(1, (b, 9, c), false, None)?;
            let [k, v] = [0, 1].map(|i| problem.inputs[i].to_dtype(dtype).unwrap());
            let (w, u) = (&problem.inputs[2], &problem.inputs[3]);
            let state = wkv4_state(b, c, dtype, &Device::Cpu)?;
            let (want, last) = wkv4(&Wkv4::new(&k, &v, w, u))?;
            for t in 0..9 {
                let at = |x: &Tensor| x.narrow(1, t, 1)?.squeeze(1);
                let y = wkv4_update(&state, &Wkv4Update { k: &at(&k)?, v: &at(&v)?, w, u })?;
                assert_close("y", &y, &at(&want)?, tolerance);
            }
            assert_close("state", &state, &last, tolerance);
        }
    }
    Ok(())
}

/// Keys far apart, far from zero, and a first key below the empty state's exponent in f32's eyes: weights neither
/// overflow nor vanish together.
#[test]
fn extreme_keys_stay_finite() -> Result<()> {
    let k = Tensor::new(&[[[-300f32], [200.0], [-5000.0], [900.0], [-1e30], [899.5]]], &Device::Cpu)?;
    let v = Tensor::new(&[[[1f32], [2.0], [3.0], [4.0], [5.0], [6.0]]], &Device::Cpu)?;
    let (w, u) = (Tensor::new(&[-0.5f32], &Device::Cpu)?, Tensor::new(&[1f32], &Device::Cpu)?);
    let [k, v] = [k, v].map(|t| Var::from_tensor(&t).unwrap());
    let (y, state) = wkv4(&Wkv4::new(&k, &v, &w, &u))?;
    let wide = |t: &Tensor| t.to_dtype(DType::F64);
    let (want, _) = naive::wkv4(&Wkv4::new(&wide(&k)?, &wide(&v)?, &wide(&w)?, &wide(&u)?))?;
    assert_close("y", &y, &want, 1e-6);
    assert_eq!(y.flatten_all()?.to_vec1::<f32>()?[0], 1.0);
    let grads = (y.sum_all()? + state.sum_all()?)?.backward()?;
    for var in [&k, &v] {
        let grad = grads.get(var).unwrap().flatten_all()?.to_vec1::<f32>()?;
        assert!(grad.iter().all(|g| g.is_finite()), "{grad:?}");
    }
    Ok(())
}

#[test]
fn errors_name_what_is_wrong() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (k, w) = (zeros(&[2, 5, 16])?, zeros(&[16])?);
    let message = |args: &Wkv4| wkv4(args).unwrap_err().to_string();
    let narrow = zeros(&[2, 5, 8])?;
    let found = message(&Wkv4::new(&k, &narrow, &w, &w));
    assert!(found.contains("wkv4: v has shape (2, 5, 8), expected (2, 5, 16), as k"), "{found}");
    let state = zeros(&[2, 2, 16])?;
    let found = message(&Wkv4 { state: Some(&state), ..Wkv4::new(&k, &k, &w, &w) });
    assert!(found.contains("wkv4: state has shape (2, 2, 16), expected (2, 3, 16)"), "{found}");
    let cu = [0, 10];
    assert!(message(&Wkv4 { cu_seqlens: Some(&cu), ..Wkv4::new(&k, &k, &w, &w) }).contains("batch of 1"));
    let token = zeros(&[2, 16])?;
    let args = Wkv4Update { k: &token, v: &token, w: &w, u: &w };
    let half = zeros(&[2, 3, 16])?.to_dtype(DType::BF16)?;
    assert!(wkv4_update(&half, &args).unwrap_err().to_string().contains("states are f32"));
    Ok(())
}
