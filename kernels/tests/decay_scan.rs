//! The decay scan against recorded reference values, against its definition, and against itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::scan::{Solution, compare, solution, variables};
use common::{Case, assert_close, cases, random};
use semisep_kernels::decay_scan::naive;
use semisep_kernels::{DecayScan, DecayStateUpdate, decay_scan, decay_state_update};

type Scan = fn(&DecayScan) -> Result<(Tensor, Tensor)>;

/// Scans under test: the definition and the fast one.
const SCANS: [(&str, Scan); 2] = [("naive", naive::decay_scan), ("fast", decay_scan)];

/// One recorded case of gla, wkv5 or wkv6 through a scan: output, final state, and the case's gradients.
fn golden(op: &str, case: &Case, name: &str, scan: Scan, dtype: DType) -> Result<()> {
    let tolerance = if dtype == DType::F64 { (1e-12, 1e-11) } else { (1e-5, 1e-4) };
    let gla = op == "gla";
    let names = if gla {
        ["q", "k", "v", "gk", "u", "initial_state"]
    } else {
        ["r", "k", "v", "w", "u", "initial_state"]
    };
    let vars = names.map(|name| case.var(name, dtype));
    let [q, k, v, w, u, state] = &vars;
    let (q, k, v, w) = (q.as_ref().unwrap(), k.as_ref().unwrap(), v.as_ref().unwrap(), w.as_ref().unwrap());
    // Reference decays are logarithms (GLA), factors a token (RWKV-6), or factors of all tokens (RWKV-5).
    let log_decay = if gla { w.as_tensor().clone() } else { w.log()? };
    let log_decay = log_decay.broadcast_as(k.shape())?;
    let scale = case.number("scale").unwrap_or(1.0);
    let (y, last) = scan(&DecayScan {
        bonus: u.as_ref().map(Var::as_tensor),
        state: state.as_ref().map(Var::as_tensor),
        ..DecayScan::new(&(q.as_tensor() * scale)?, k, v, &log_decay)
    })?;
    let output = if gla { "o" } else { "y" };
    let what = |part: &str| format!("{} {name} {dtype:?} {part}", case.name);
    assert_close(&what(output), &y, &case.get(&format!("out.{output}")), tolerance.0);
    assert_close(&what("state"), &last, &case.get("out.final_state"), tolerance.0);
    let grads = case.loss(&[(output, &y), ("final_state", &last)])?.backward()?;
    for (name, var) in names.iter().zip(&vars) {
        let Some(var) = var else { continue };
        let grad = grads.get(var).unwrap_or_else(|| panic!("{}: no gradient of {name}", case.name));
        assert_close(&what(name), grad, &case.get(&format!("grad.{name}")), tolerance.1);
    }
    Ok(())
}

#[test]
fn golden_cases() -> Result<()> {
    for op in ["gla", "wkv5", "wkv6"] {
        for case in cases(op) {
            for (name, scan) in SCANS {
                for dtype in [DType::F64, DType::F32] {
                    golden(op, &case, name, scan, dtype)?;
                }
            }
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Size {
    b: usize,
    l: usize,
    h: usize,
    n: usize,
    p: usize,
    bonus: bool,
    state: bool,
    decay: Decay,
}

/// How log decays are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Decay {
    /// Around -0.5.
    Mild,
    /// RWKV-6's `-exp(w)`, from -3e-4 to -3000.
    Wild,
    /// Mild, but one in six is -∞ and some are 0.
    Exact,
}

/// Inputs by name, and the cotangents of both outputs; in f64, of whatever dtype the scan then is.
struct Problem {
    inputs: Vec<(&'static str, Tensor)>,
    cu: Option<Vec<usize>>,
    cot_y: Tensor,
    cot_state: Tensor,
}

impl Problem {
    fn new(seed: u64, size: Size, cu: Option<&[usize]>) -> Result<Self> {
        let Size { b, l, h, n, p, bonus, state, decay } = size;
        let sequences = cu.map_or(b, |cu| cu.len() - 1);
        let values =
            |k: u64, shape: &[usize]| Ok::<_, candle_core::Error>(random(100 * seed + k, shape, DType::F64));
        let raw = values(3, &[b, l, h, n])?;
        let log_decay = match decay {
            Decay::Mild => (raw.abs()? * -1.0)?,
            Decay::Wild => (raw * 8.0)?.exp()?.neg()?,
            Decay::Exact => {
                let mild = (raw.abs()? * -1.0)?;
                let never = raw.ones_like()?.affine(f64::NEG_INFINITY, 0.0)?;
                let mild = raw.gt(0.66)?.where_cond(&never, &mild)?;
                raw.lt(-0.8)?.where_cond(&raw.zeros_like()?, &mild)?
            }
        };
        let mut inputs = vec![
            ("q", values(0, &[b, l, h, n])?),
            ("k", values(1, &[b, l, h, n])?),
            ("v", values(2, &[b, l, h, p])?),
            ("log_decay", log_decay),
        ];
        if bonus {
            inputs.push(("bonus", values(4, &[h, n])?));
        }
        if state {
            inputs.push(("state", values(5, &[sequences, h, n, p])?));
        }
        let (cot_y, cot_state) = (values(6, &[b, l, h, p])?, values(7, &[sequences, h, n, p])?);
        Ok(Self { inputs, cu: cu.map(<[usize]>::to_vec), cot_y, cot_state })
    }

    fn solve(&self, scan: Scan, dtype: DType) -> Result<Solution> {
        let vars = variables(&self.inputs, dtype)?;
        let get = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| v.1.as_tensor());
        let need = |name: &str| get(name).unwrap();
        let solved = scan(&DecayScan {
            bonus: get("bonus"),
            state: get("state"),
            cu_seqlens: self.cu.as_deref(),
            ..DecayScan::new(need("q"), need("k"), need("v"), need("log_decay"))
        })?;
        solution(solved, [&self.cot_y, &self.cot_state], &vars)
    }
}

#[test]
fn odd_sizes_match_the_definition() -> Result<()> {
    let shapes = [(2, 3, 5, 7), (1, 2, 64, 64), (3, 1, 1, 1), (1, 4, 16, 33), (1, 2, 70, 3)];
    for (i, l) in [0, 1, 2, 7, 16, 17, 33, 130].into_iter().enumerate() {
        for (j, (b, h, n, p)) in shapes.into_iter().enumerate() {
            let decay = [Decay::Mild, Decay::Wild, Decay::Exact][(i + j) % 3];
            let size = Size { b, l, h, n, p, bonus: (i + j) % 2 == 0, state: (i + 2 * j) % 4 != 0, decay };
            let problem = Problem::new((10 * i + j) as u64, size, None)?;
            let want = problem.solve(naive::decay_scan, DType::F64)?;
            let what = format!("{size:?}");
            compare(&what, &problem.solve(decay_scan, DType::F64)?, &want, (1e-12, 1e-11));
            compare(&what, &problem.solve(decay_scan, DType::F32)?, &want, (1e-5, 1e-4));
        }
    }
    Ok(())
}

/// Whatever the decay: unbounded ones as of RWKV-6, exact zeros and ones, in both forms.
#[test]
fn any_decay_keeps_its_accuracy() -> Result<()> {
    for (k, decay) in [Decay::Mild, Decay::Wild, Decay::Exact].into_iter().enumerate() {
        for bonus in [false, true] {
            let size = Size { b: 1, l: 150, h: 2, n: 24, p: 16, bonus, state: true, decay };
            let problem = Problem::new(40 + k as u64, size, None)?;
            let want = problem.solve(naive::decay_scan, DType::F64)?;
            let what = format!("{size:?}");
            let got = problem.solve(decay_scan, DType::F64)?;
            compare(&what, &got, &want, (1e-12, 1e-11));
            for (name, grad) in &got.2 {
                assert!(grad.sqr()?.sum_all()?.to_scalar::<f64>()?.is_finite(), "{what}: gradient of {name}");
            }
            compare(&what, &problem.solve(decay_scan, DType::F32)?, &want, (1e-5, 1e-4));
        }
    }
    Ok(())
}

/// What comes later changes no bit of what came before, wherever in a chunk, and however steep it decays.
#[test]
fn the_future_does_not_reach_the_past() -> Result<()> {
    for (k, decay) in [Decay::Mild, Decay::Wild, Decay::Exact].into_iter().enumerate() {
        for bonus in [false, true] {
            let size = Size { b: 1, l: 41, h: 2, n: 24, p: 16, bonus, state: true, decay };
            let problem = Problem::new(60 + k as u64, size, None)?;
            let run = |from: usize| -> Result<Tensor> {
                let other = Problem::new(90, Size { decay: Decay::Wild, ..size }, None)?;
                let changed = |name: &str, t: &Tensor| {
                    let late = other.inputs.iter().find(|o| o.0 == name).unwrap();
                    if t.rank() == 4 && t.dim(1)? == 41 {
                        Tensor::cat(&[t.narrow(1, 0, from)?, late.1.narrow(1, from, 41 - from)?], 1)
                    } else {
                        Ok(t.clone())
                    }
                };
                let inputs = problem.inputs.iter().map(|(name, t)| Ok((*name, changed(name, t)?)));
                let inputs = inputs.collect::<Result<_>>()?;
                let (cot_y, cot_state) = (problem.cot_y.clone(), problem.cot_state.clone());
                Ok(Problem { inputs, cu: None, cot_y, cot_state }.solve(decay_scan, DType::F32)?.0)
            };
            let whole = run(41)?;
            for from in [1, 7, 15, 16, 17, 31, 40] {
                let (got, want) = (run(from)?.narrow(1, 0, from)?, whole.narrow(1, 0, from)?);
                assert_close(&format!("{decay:?} before {from}"), &got, &want, 0.0);
            }
        }
    }
    Ok(())
}

#[test]
fn half_precision_stays_within_its_rounding() -> Result<()> {
    for bonus in [false, true] {
        let size = Size { b: 2, l: 50, h: 3, n: 16, p: 8, bonus, state: true, decay: Decay::Mild };
        let problem = Problem::new(3, size, None)?;
        for dtype in [DType::BF16, DType::F16] {
            let got = problem.solve(decay_scan, dtype)?;
            assert_eq!((got.0.dtype(), got.1.dtype()), (dtype, DType::F32));
            compare(
                &format!("{dtype:?}"),
                &got,
                &problem.solve(naive::decay_scan, DType::F64)?,
                (1e-2, 1e-2),
            );
        }
    }
    Ok(())
}

#[test]
fn packed_sequences_match_the_definition_and_separate_calls() -> Result<()> {
    let cu = [0, 7, 7, 8, 45, 81];
    for bonus in [false, true] {
        let size = Size { b: 1, l: 81, h: 3, n: 6, p: 5, bonus, state: true, decay: Decay::Mild };
        let problem = Problem::new(5, size, Some(&cu))?;
        let packed = problem.solve(decay_scan, DType::F64)?;
        compare("packed", &packed, &problem.solve(naive::decay_scan, DType::F64)?, (1e-12, 1e-11));
        for (k, w) in cu.windows(2).enumerate() {
            let part = |name: &str, t: &Tensor| match name {
                "state" => t.narrow(0, k, 1),
                "bonus" => Ok(t.clone()),
                _ => t.narrow(1, w[0], w[1] - w[0])?.contiguous(),
            };
            let inputs =
                problem.inputs.iter().map(|(name, t)| Ok((*name, part(name, t)?))).collect::<Result<_>>()?;
            let one = Problem {
                inputs,
                cu: None,
                cot_y: part("y", &problem.cot_y)?,
                cot_state: part("state", &problem.cot_state)?,
            };
            let (y, state, grads) = one.solve(decay_scan, DType::F64)?;
            assert_close("y", &part("y", &packed.0)?, &y, 1e-14);
            assert_close("state", &packed.1.narrow(0, k, 1)?, &state, 1e-14);
            for ((name, whole), (_, grad)) in packed.2.iter().zip(&grads).filter(|(g, _)| g.0 != "bonus") {
                assert_close(name, &part(name, whole)?, grad, 1e-13);
            }
        }
    }
    Ok(())
}

/// The scan in two calls, the state carried over: outputs, state and gradients, those through the state included.
fn split(at: usize, args: &DecayScan) -> Result<(Tensor, Tensor)> {
    let piece = |start: usize, len: usize, state: Option<&Tensor>| {
        let [q, k, v, g] = [args.q, args.k, args.v, args.log_decay].map(|t| t.narrow(1, start, len));
        decay_scan(&DecayScan { bonus: args.bonus, state, ..DecayScan::new(&q?, &k?, &v?, &g?) })
    };
    let (first, state) = piece(0, at, args.state)?;
    let (second, state) = piece(at, args.q.dim(1)? - at, Some(&state))?;
    Ok((Tensor::cat(&[first, second], 1)?, state))
}

#[test]
fn any_split_gives_the_whole() -> Result<()> {
    for bonus in [false, true] {
        let size = Size { b: 2, l: 70, h: 3, n: 8, p: 6, bonus, state: true, decay: Decay::Mild };
        let problem = Problem::new(11, size, None)?;
        let whole = problem.solve(decay_scan, DType::F64)?;
        let splits: [Scan; 3] = [|args| split(1, args), |args| split(33, args), |args| split(69, args)];
        for scan in splits {
            compare("split", &problem.solve(scan, DType::F64)?, &whole, (1e-12, 1e-11));
        }
    }
    Ok(())
}

/// The scan token by token.
fn stepwise(args: &DecayScan) -> Result<(Tensor, Tensor)> {
    let (b, l, h, n) = args.q.dims4()?;
    let work = if args.v.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let state = match args.state {
        Some(state) => state.to_dtype(work)?.copy()?.detach(),
        None => Tensor::zeros((b, h, n, args.v.dim(3)?), work, &Device::Cpu)?,
    };
    let view = state.reshape(state.shape())?;
    let mut ys = Vec::new();
    for t in 0..l {
        let at = |x: &Tensor| x.narrow(1, t, 1)?.squeeze(1);
        let (q, k, v, g) = (at(args.q)?, at(args.k)?, at(args.v)?, at(args.log_decay)?);
        let step = DecayStateUpdate { bonus: args.bonus, ..DecayStateUpdate::new(&q, &k, &v, &g) };
        ys.push(decay_state_update(&state, &step)?);
    }
    Ok((Tensor::stack(&ys, 1)?, view)) // the view sees the updates
}

#[test]
fn steps_give_the_whole() -> Result<()> {
    for (k, (b, h, n, p)) in
        [(1, 12, 64, 64), (2, 3, 5, 7), (3, 4, 33, 6), (1, 3, 8, 1)].into_iter().enumerate()
    {
        for (bonus, state, decay) in
            [(true, true, Decay::Wild), (false, true, Decay::Exact), (false, false, Decay::Mild)]
        {
            let size = Size { b, l: 9, h, n, p, bonus, state, decay };
            let problem = Problem::new(k as u64, size, None)?;
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::BF16, 1e-2)] {
                let (y, state, _) = problem.solve(stepwise, dtype)?;
                let (want, final_state, _) = problem.solve(decay_scan, dtype)?;
                assert_close("y", &y, &want, tolerance);
                assert_close("state", &state, &final_state, tolerance);
            }
        }
    }
    Ok(())
}

/// Parts of one projection, as layers pass them, give what copies give.
#[test]
fn views_need_no_copy_to_be_right() -> Result<()> {
    let (b, l, h, n, p) = (2, 11, 3, 4, 6);
    let wide = random(1, &[b, l, 3 * h * n + h * p], DType::F32);
    let run = |copy: bool| {
        let part = |at: usize, width: usize| {
            let part = wide.narrow(2, at, h * width)?;
            let part = if copy { part.contiguous()? } else { part };
            part.reshape((b, l, h, width))
        };
        let (q, k, g, v) = (part(0, n)?, part(h * n, n)?, part(2 * h * n, n)?, part(3 * h * n, p)?);
        decay_scan(&DecayScan::new(&q, &k, &v, &g))
    };
    let ((y, state), (want, final_state)) = (run(false)?, run(true)?);
    assert_close("y", &y, &want, 0.0);
    assert_close("state", &state, &final_state, 0.0);
    Ok(())
}

#[test]
fn backward_is_deterministic() -> Result<()> {
    let size = Size { b: 2, l: 90, h: 4, n: 16, p: 16, bonus: true, state: true, decay: Decay::Mild };
    let problem = Problem::new(8, size, None)?;
    let first = problem.solve(decay_scan, DType::F32)?;
    for _ in 0..3 {
        compare("again", &problem.solve(decay_scan, DType::F32)?, &first, (0.0, 0.0));
    }
    Ok(())
}

#[test]
fn errors_name_what_is_wrong() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (q, v) = (zeros(&[2, 5, 4, 3])?, zeros(&[2, 5, 4, 6])?);
    let message = |args: &DecayScan| decay_scan(args).unwrap_err().to_string();
    let short = zeros(&[2, 4, 4, 3])?;
    let found = message(&DecayScan::new(&q, &short, &v, &q));
    assert!(found.contains("decay_scan: k has shape (2, 4, 4, 3), expected (2, 5, 4, 3)"), "{found}");
    assert!(message(&DecayScan::new(&q, &q, &v, &short)).contains("log_decay has shape"));
    assert!(message(&DecayScan { bonus: Some(&v), ..DecayScan::new(&q, &q, &v, &q) }).contains("bonus"));
    assert!(
        message(&DecayScan { state: Some(&v), ..DecayScan::new(&q, &q, &v, &q) }).contains("(2, 4, 3, 6)")
    );
    let none = zeros(&[2, 5, 4, 0])?;
    assert!(message(&DecayScan::new(&q, &q, &none, &q)).contains("the width of a value is 0"));
    let args = DecayScan { cu_seqlens: Some(&[0, 5]), ..DecayScan::new(&q, &q, &v, &q) };
    assert!(message(&args).contains("packed sequences need a batch of 1"));
    let ids = zeros(&[2, 5, 4, 3])?.to_dtype(DType::U32)?;
    assert!(message(&DecayScan::new(&q, &ids, &v, &q)).contains("U32"));

    let (q, v) = (zeros(&[2, 4, 3])?, zeros(&[2, 4, 6])?);
    let args = DecayStateUpdate::new(&q, &q, &v, &q);
    let message = |state: &Tensor| decay_state_update(state, &args).unwrap_err().to_string();
    assert!(message(&zeros(&[2, 4, 6, 3])?).contains("state has shape (2, 4, 6, 3), expected (2, 4, 3, 6)"));
    assert!(message(&zeros(&[2, 4, 3, 6])?.to_dtype(DType::F16)?).contains("F16"));
    assert!(message(&zeros(&[2, 4, 6, 3])?.transpose(2, 3)?).contains("strides"));
    Ok(())
}
