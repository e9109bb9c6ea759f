//! The delta-rule scans against recorded reference values, against their definition, and against themselves.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::scan::{Solution, compare};
use common::{Case, assert_close, cases, random};
use semisep_kernels::delta_scan::naive;
use semisep_kernels::{
    DeltaScan, DeltaUpdate, GatedDeltaRule, GatedDeltaRuleUpdate, delta_scan, delta_update, gated_delta_rule,
    gated_delta_rule_update,
};

/// Both ops in one form.
#[derive(Clone, Copy)]
struct Ops {
    name: &'static str,
    plain: fn(&DeltaScan) -> Result<(Tensor, Tensor)>,
    correct: fn(&GatedDeltaRule) -> Result<(Tensor, Tensor)>,
}

const NAIVE: Ops = Ops { name: "naive", plain: naive::delta_scan, correct: naive::gated_delta_rule };
const FAST: Ops = Ops { name: "fast", plain: delta_scan, correct: gated_delta_rule };

/// Inputs by name.
struct Inputs(Vec<(&'static str, Tensor)>);

impl Inputs {
    fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().find(|v| v.0 == name).map(|v| &v.1)
    }

    fn need(&self, name: &str) -> &Tensor {
        self.get(name).unwrap()
    }

    fn map(&self, f: impl Fn(&'static str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        self.0.iter().map(|(name, t)| Ok((*name, f(name, t)?))).collect::<Result<_>>().map(Self)
    }

    fn run(&self, ops: Ops, scale: f64, cu_seqlens: Option<&[usize]>) -> Result<(Tensor, Tensor)> {
        let (q, k, v) = (self.need("q"), self.need("k"), self.need("v"));
        let (log_decay, initial_state) = (self.get("log_decay"), self.get("initial_state"));
        match self.get("beta") {
            Some(beta) => (ops.correct)(&GatedDeltaRule {
                log_decay,
                scale,
                initial_state,
                cu_seqlens,
                ..GatedDeltaRule::new(q, k, v, beta)
            }),
            None => (ops.plain)(&DeltaScan {
                log_decay,
                scale,
                initial_state,
                cu_seqlens,
                ..DeltaScan::new(q, k, v, self.need("a"), self.need("b"))
            }),
        }
    }

    fn step(&self, state: &Tensor, t: usize, scale: f64) -> Result<Tensor> {
        let one = self.map(|name, x| match name {
            "initial_state" => Ok(x.clone()),
            _ => x.narrow(1, t, 1)?.squeeze(1),
        })?;
        let (q, k, v) = (one.need("q"), one.need("k"), one.need("v"));
        let log_decay = one.get("log_decay");
        match one.get("beta") {
            Some(beta) => gated_delta_rule_update(
                state,
                &GatedDeltaRuleUpdate { log_decay, scale, ..GatedDeltaRuleUpdate::new(q, k, v, beta) },
            ),
            None => {
                let plain = DeltaUpdate::new(q, k, v, one.need("a"), one.need("b"));
                delta_update(state, &DeltaUpdate { log_decay, scale, ..plain })
            }
        }
    }
}

/// The recorded names of an input, and ours. RWKV-7 records decay factors and transposed states.
const NAMES: [(&str, &str); 12] = [
    ("q", "q"),
    ("r", "q"),
    ("k", "k"),
    ("v", "v"),
    ("g", "log_decay"),
    ("gk", "log_decay"),
    ("w", "log_decay"),
    ("a", "a"),
    ("b", "b"),
    ("b_", "b"),
    ("beta", "beta"),
    ("initial_state", "initial_state"),
];

fn golden(case: &Case, ops: Ops, dtype: DType, tolerance: (f64, f64)) -> Result<()> {
    let wkv7 = case.name.starts_with("wkv7");
    let state = |t: &Tensor| if wkv7 { t.transpose(2, 3)?.contiguous() } else { Ok(t.clone()) };
    let vars: Vec<(&str, &str, Var)> =
        NAMES.iter().filter_map(|&(theirs, ours)| Some((theirs, ours, case.var(theirs, dtype)?))).collect();
    let inputs = vars.iter().map(|(theirs, ours, var)| match *theirs {
        "w" => Ok((*ours, var.log()?)),
        "initial_state" => Ok((*ours, state(var)?)),
        _ => Ok((*ours, var.as_tensor().clone())),
    });
    let inputs = Inputs(inputs.collect::<Result<_>>()?);
    let (y, end) = inputs.run(ops, case.number("scale").unwrap_or(1.0), None)?;
    let (end, output) = (state(&end)?, if wkv7 { "y" } else { "o" });
    let what = |part: &str| format!("{} {} {part} {dtype:?}", ops.name, case.name);
    assert_close(&what("y"), &y, &case.get(&format!("out.{output}")), tolerance.0);
    assert_close(&what("state"), &end, &case.get("out.final_state"), tolerance.0);
    let grads = case.loss(&[(output, &y), ("final_state", &end)])?.backward()?;
    for (theirs, _, var) in &vars {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{}: no gradient of {theirs}", case.name));
        assert_close(&what(theirs), grad, &case.get(&format!("grad.{theirs}")), tolerance.1);
    }
    Ok(())
}

#[test]
fn recorded_cases() -> Result<()> {
    for op in ["delta_rule", "gated_delta_rule", "kda", "dplr", "wkv7"] {
        for case in cases(op) {
            for ops in [NAIVE, FAST] {
                golden(&case, ops, DType::F64, (1e-12, 1e-11))?;
                golden(&case, ops, DType::F32, (1e-5, 1e-4))?;
            }
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Decay {
    None,
    Head,
    Channel,
}

/// Sizes and options of a random problem.
#[derive(Debug, Clone, Copy)]
struct Size {
    b: usize,
    l: usize,
    h: usize,
    n: usize,
    p: usize,
    /// The gated delta rule, or the general scan.
    correct: bool,
    decay: Decay,
    /// Largest -log of a decay.
    steep: f64,
    initial: bool,
}

/// A random problem in f64: named inputs, and cotangents of the output and the final state.
struct Problem {
    inputs: Inputs,
    scale: f64,
    cu: Option<Vec<usize>>,
    cot_y: Tensor,
    cot_state: Tensor,
}

impl Problem {
    fn new(seed: u64, size: Size, cu: Option<&[usize]>) -> Result<Self> {
        let Size { b, l, h, n, p, correct, decay, steep, initial } = size;
        let sequences = cu.map_or(b, |cu| cu.len() - 1);
        let values = |k: u64, shape: &[usize]| random(100 * seed + k, shape, DType::F64);
        // Of length below one, so that the corrections contract.
        let unit = |t: Tensor| t * (1.0 / (n as f64).sqrt());
        let k = unit(values(1, &[b, l, h, n]))?;
        let mut inputs =
            vec![("q", values(0, &[b, l, h, n])), ("k", k.clone()), ("v", values(2, &[b, l, h, p]))];
        let decays: &[usize] = if decay == Decay::Head { &[b, l, h] } else { &[b, l, h, n] };
        if decay != Decay::None {
            inputs.push(("log_decay", ((values(3, decays) - 1.0)? * (0.5 * steep))?));
        }
        if correct {
            inputs.push(("beta", (values(4, &[b, l, h]) + 1.0)?));
        } else {
            let a = unit(values(5, &[b, l, h, n]))?;
            inputs.push(("b", ((&a * -1.0)? + unit(values(6, &[b, l, h, n]))?)?));
            inputs.push(("a", a));
        }
        if initial {
            inputs.push(("initial_state", values(7, &[sequences, h, n, p])));
        }
        let (cot_y, cot_state) = (values(8, &[b, l, h, p]), values(9, &[sequences, h, n, p]));
        Ok(Self { inputs: Inputs(inputs), scale: 0.7, cu: cu.map(<[usize]>::to_vec), cot_y, cot_state })
    }

    fn solve(&self, ops: Ops, dtype: DType) -> Result<Solution> {
        let work = if dtype == DType::F64 { dtype } else { DType::F32 };
        let vars: Vec<(&'static str, Var)> = self
            .inputs
            .0
            .iter()
            .map(|(name, t)| {
                let dtype = if *name == "initial_state" { work } else { dtype };
                Ok((*name, Var::from_tensor(&t.to_dtype(dtype)?)?))
            })
            .collect::<Result<_>>()?;
        let inputs = Inputs(vars.iter().map(|(name, var)| (*name, var.as_tensor().clone())).collect());
        let (y, state) = inputs.run(ops, self.scale, self.cu.as_deref())?;
        let loss = (y.to_dtype(DType::F64)? * &self.cot_y)?.sum_all()?;
        let loss = (loss + (state.to_dtype(DType::F64)? * &self.cot_state)?.sum_all()?)?;
        let grads = loss.backward()?;
        let grads = vars
            .iter()
            .map(|(name, var)| (*name, grads.get(var).cloned().unwrap_or_else(|| var.zeros_like().unwrap())))
            .collect();
        Ok((y, state, grads))
    }
}

#[track_caller]
/// Every rule and kind of decay.
fn variants() -> impl Iterator<Item = (bool, Decay)> {
    [Decay::None, Decay::Head, Decay::Channel].into_iter().flat_map(|d| [(true, d), (false, d)])
}

#[test]
fn fast_matches_the_definition() -> Result<()> {
    let sizes = [
        (2, 0, 2, 3, 5),
        (2, 1, 3, 4, 2),
        (1, 7, 1, 1, 1),
        (2, 33, 2, 16, 8),
        (1, 70, 2, 5, 17),
        (1, 131, 1, 64, 32),
    ];
    for (i, (b, l, h, n, p)) in sizes.into_iter().enumerate() {
        for (j, (correct, decay)) in variants().enumerate() {
            for initial in [true, false] {
                let size = Size { b, l, h, n, p, correct, decay, steep: 0.3, initial };
                let problem = Problem::new((10 * i + j) as u64, size, None)?;
                let want = problem.solve(NAIVE, DType::F64)?;
                let what = format!("{size:?}");
                compare(&what, &problem.solve(FAST, DType::F64)?, &want, (1e-12, 1e-11));
                compare(&what, &problem.solve(FAST, DType::F32)?, &want, (1e-5, 1e-4));
            }
        }
    }
    Ok(())
}

/// From RWKV-7's strongest decay (0.545 a token) to decays that forget all in one token.
#[test]
fn steep_decays_keep_their_accuracy() -> Result<()> {
    for (seed, steep) in [0.6065, 3.0, 20.0, 90.0, 1000.0].into_iter().enumerate() {
        for (correct, decay) in variants().filter(|v| v.1 != Decay::None) {
            let size = Size { b: 1, l: 90, h: 2, n: 8, p: 8, correct, decay, steep, initial: true };
            let problem = Problem::new(seed as u64, size, None)?;
            let want = problem.solve(NAIVE, DType::F64)?;
            let what = format!("{size:?}");
            compare(&what, &problem.solve(FAST, DType::F64)?, &want, (1e-12, 1e-11));
            // Of the steepest nothing is left in f32.
            if steep < 1000.0 {
                compare(&what, &problem.solve(FAST, DType::F32)?, &want, (1e-5, 1e-4));
            }
        }
    }
    Ok(())
}

/// Few steep tokens among slow ones, up to a decay to nothing.
#[test]
fn sudden_resets_keep_their_accuracy() -> Result<()> {
    for (correct, decay) in variants().filter(|v| v.1 != Decay::None) {
        let size = Size { b: 1, l: 90, h: 2, n: 8, p: 8, correct, decay, steep: 0.1, initial: true };
        for reset in [-35.0, -200.0, f64::NEG_INFINITY] {
            let mut problem = Problem::new(5, size, None)?;
            for (_, t) in problem.inputs.0.iter_mut().filter(|(name, _)| *name == "log_decay") {
                let steep = random(77, t.dims(), DType::F64).gt(0.8)?;
                *t = steep.where_cond(&Tensor::full(reset, t.dims(), t.device())?, t)?;
            }
            let want = problem.solve(NAIVE, DType::F64)?;
            let what = format!("{reset} {size:?}");
            compare(&what, &problem.solve(FAST, DType::F64)?, &want, (1e-12, 1e-11));
            compare(&what, &problem.solve(FAST, DType::F32)?, &want, (1e-5, 1e-4));
        }
    }
    Ok(())
}

#[test]
fn half_precision_stays_within_its_rounding() -> Result<()> {
    for (correct, decay) in variants() {
        let size = Size { b: 2, l: 50, h: 2, n: 8, p: 16, correct, decay, steep: 0.5, initial: true };
        let problem = Problem::new(3, size, None)?;
        for dtype in [DType::BF16, DType::F16] {
            let got = problem.solve(FAST, dtype)?;
            assert_eq!((got.0.dtype(), got.1.dtype()), (dtype, DType::F32));
            // Rounding of the inputs aside, only that of the output and the gradients is left.
            compare(&format!("{dtype:?} {size:?}"), &got, &problem.solve(NAIVE, dtype)?, (3e-3, 1e-2));
        }
    }
    Ok(())
}

#[test]
fn packed_sequences_match_the_definition_and_separate_calls() -> Result<()> {
    let cu = [0, 7, 7, 8, 45, 81];
    for (correct, decay) in variants() {
        let size = Size { b: 1, l: 81, h: 2, n: 5, p: 6, correct, decay, steep: 0.3, initial: true };
        let problem = Problem::new(5, size, Some(&cu))?;
        let packed = problem.solve(FAST, DType::F64)?;
        compare("packed", &packed, &problem.solve(NAIVE, DType::F64)?, (1e-12, 1e-11));
        for (k, w) in cu.windows(2).enumerate() {
            let part = |name: &str, t: &Tensor| match name {
                "initial_state" => t.narrow(0, k, 1),
                _ => t.narrow(1, w[0], w[1] - w[0])?.contiguous(),
            };
            let one = Problem {
                inputs: problem.inputs.map(part)?,
                cu: None,
                cot_y: part("y", &problem.cot_y)?,
                cot_state: part("initial_state", &problem.cot_state)?,
                ..problem
            };
            let (y, state, grads) = one.solve(FAST, DType::F64)?;
            assert_close("y", &part("y", &packed.0)?, &y, 1e-14);
            assert_close("state", &packed.1.narrow(0, k, 1)?, &state, 1e-14);
            for ((name, whole), (_, grad)) in packed.2.iter().zip(&grads) {
                assert_close(name, &part(name, whole)?, grad, 1e-13);
            }
        }
    }
    Ok(())
}

#[test]
fn any_split_gives_the_whole() -> Result<()> {
    for (correct, decay) in variants() {
        let size = Size { b: 2, l: 70, h: 2, n: 6, p: 8, correct, decay, steep: 0.3, initial: true };
        let problem = Problem::new(11, size, None)?;
        let (want, want_state) = problem.inputs.run(FAST, problem.scale, None)?;
        for at in [1, 33, 69] {
            let cut = |start: usize, len: usize| {
                problem.inputs.map(|name, t| match name {
                    "initial_state" => Ok(t.clone()),
                    _ => t.narrow(1, start, len),
                })
            };
            let (first, state) = cut(0, at)?.run(FAST, problem.scale, None)?;
            let rest = cut(at, 70 - at)?
                .map(|name, t| Ok(if name == "initial_state" { state.clone() } else { t.clone() }))?;
            let (second, state) = rest.run(FAST, problem.scale, None)?;
            assert_close("y", &Tensor::cat(&[first, second], 1)?, &want, 1e-12);
            assert_close("state", &state, &want_state, 1e-12);
        }
    }
    Ok(())
}

#[test]
fn steps_give_the_whole() -> Result<()> {
    for (k, (b, h, n, p)) in
        [(1, 12, 64, 64), (2, 3, 5, 7), (3, 2, 33, 6), (1, 3, 1, 1)].into_iter().enumerate()
    {
        for (correct, decay) in variants() {
            let size = Size { b, l: 9, h, n, p, correct, decay, steep: 0.3, initial: true };
            let problem = Problem::new(k as u64, size, None)?;
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::BF16, 1e-2)] {
                let work = if dtype == DType::F64 { dtype } else { DType::F32 };
                let inputs = problem
                    .inputs
                    .map(|name, t| t.to_dtype(if name == "initial_state" { work } else { dtype }))?;
                let (want, want_state) = inputs.run(FAST, problem.scale, None)?;
                let state = inputs.need("initial_state").copy()?;
                let ys = (0..9).map(|t| inputs.step(&state, t, problem.scale)).collect::<Result<Vec<_>>>()?;
                assert_close("y", &Tensor::stack(&ys, 1)?, &want, tolerance);
                assert_close("state", &state, &want_state, tolerance);
            }
        }
    }
    Ok(())
}

/// Parts of one projection, as layers pass them, give what copies give.
#[test]
fn views_need_no_copy_to_be_right() -> Result<()> {
    let (b, l, h, n, p) = (2, 11, 3, 6, 4);
    let wide = random(1, &[b, l, h * (3 * n + p + 1)], DType::F32);
    let run = |copy: bool| {
        let part = |at: usize, len: usize| {
            let part = wide.narrow(2, at, len)?;
            if copy { part.contiguous() } else { Ok(part) }
        };
        let keys = |k: usize| part(k * h * n, h * n)?.reshape((b, l, h, n));
        let v = part(3 * h * n, h * p)?.reshape((b, l, h, p))?;
        let beta = part(h * (3 * n + p), h)?;
        let g = (keys(2)? - 1.0)?;
        let (q, k) = (keys(0)?, keys(1)?);
        gated_delta_rule(&GatedDeltaRule { log_decay: Some(&g), ..GatedDeltaRule::new(&q, &k, &v, &beta) })
    };
    let ((y, state), (want, final_state)) = (run(false)?, run(true)?);
    assert_close("y", &y, &want, 0.0);
    assert_close("state", &state, &final_state, 0.0);
    Ok(())
}

#[test]
fn backward_is_deterministic() -> Result<()> {
    let size = Size {
        b: 2,
        l: 90,
        h: 4,
        n: 16,
        p: 16,
        correct: false,
        decay: Decay::Channel,
        steep: 0.5,
        initial: true,
    };
    let problem = Problem::new(8, size, None)?;
    let first = problem.solve(FAST, DType::F32)?;
    for _ in 0..3 {
        compare("again", &problem.solve(FAST, DType::F32)?, &first, (0.0, 0.0));
    }
    Ok(())
}

/// The delta rule is the general scan with `a = -β exp(g) k`, `b = k` and `β v` for `v`.
#[test]
fn the_delta_rule_is_a_case_of_the_general_scan() -> Result<()> {
    let size = Size {
        b: 1,
        l: 70,
        h: 2,
        n: 6,
        p: 8,
        correct: true,
        decay: Decay::Channel,
        steep: 0.6,
        initial: true,
    };
    let problem = Problem::new(2, size, None)?;
    let (want, want_state) = problem.inputs.run(FAST, 1.0, None)?;
    let i = &problem.inputs;
    let beta = i.need("beta").unsqueeze(3)?;
    let a = i.need("k").mul(&i.need("log_decay").exp()?)?.broadcast_mul(&beta)?.neg()?;
    let v = i.need("v").broadcast_mul(&beta)?;
    let (y, state) = delta_scan(&DeltaScan {
        log_decay: i.get("log_decay"),
        initial_state: i.get("initial_state"),
        ..DeltaScan::new(i.need("q"), i.need("k"), &v, &a, i.need("k"))
    })?;
    assert_close("y", &y, &want, 1e-12);
    assert_close("state", &state, &want_state, 1e-12);
    Ok(())
}

#[test]
fn errors_name_what_is_wrong() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (k, v, beta, narrow) =
        (zeros(&[2, 5, 3, 4])?, zeros(&[2, 5, 3, 6])?, zeros(&[2, 5, 3])?, zeros(&[2, 5, 4])?);
    let message = |args: &GatedDeltaRule| gated_delta_rule(args).unwrap_err().to_string();
    let good = GatedDeltaRule::new(&k, &k, &v, &beta);
    assert!(gated_delta_rule(&good).is_ok());
    assert!(
        message(&GatedDeltaRule { beta: &narrow, ..good })
            .contains("gated_delta_rule: beta has shape (2, 5, 4), expected (2, 5, 3)")
    );
    assert!(
        message(&GatedDeltaRule { k: &v, ..good })
            .contains("k has shape (2, 5, 3, 6), expected (2, 5, 3, 4)")
    );
    let decayed = GatedDeltaRule { log_decay: Some(&v), ..good };
    assert!(message(&decayed).contains("expected (2, 5, 3) (one a head) or (2, 5, 3, 4)"));
    assert!(message(&GatedDeltaRule { scale: f64::NAN, ..good }).contains("scale"));
    assert!(message(&GatedDeltaRule { cu_seqlens: Some(&[0, 5]), ..good }).contains("batch of 1"));
    let state = zeros(&[2, 3, 6, 4])?;
    let stated = GatedDeltaRule { initial_state: Some(&state), ..good };
    assert!(message(&stated).contains("initial_state has shape (2, 3, 6, 4), expected (2, 3, 4, 6)"));
    let plain = delta_scan(&DeltaScan::new(&k, &k, &v, &k, &v)).unwrap_err().to_string();
    assert!(plain.contains("delta_scan: b has shape"), "{plain}");

    let (k, v) = (zeros(&[2, 3, 4])?, zeros(&[2, 3, 6])?);
    let args = DeltaUpdate::new(&k, &k, &v, &k, &k);
    let message = |state: &Tensor| delta_update(state, &args).unwrap_err().to_string();
    assert!(message(&zeros(&[2, 3, 6, 4])?).contains("state has shape (2, 3, 6, 4), expected (2, 3, 4, 6)"));
    assert!(message(&zeros(&[2, 3, 4, 6])?.to_dtype(DType::F16)?).contains("F16"));
    assert!(message(&zeros(&[2, 3, 6, 4])?.transpose(2, 3)?).contains("strides"));
    Ok(())
}
