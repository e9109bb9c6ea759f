//! `causal_conv1d` against recorded cases and against its definition.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{Case, assert_close, cases, random};
use semisep_kernels::causal_conv1d::naive;
use semisep_kernels::{CausalConv1d, causal_conv1d, causal_conv1d_update};

type Op = fn(CausalConv1d) -> Result<(Tensor, Tensor)>;

const FORMS: [(&str, Op); 2] = [("naive", naive::causal_conv1d), ("cpu", causal_conv1d)];

/// `seq_idx` of a case, row by row, as boundaries.
fn boundaries(case: &Case) -> Option<Vec<Vec<usize>>> {
    let rows = case.has("in.seq_idx").then(|| case.get("in.seq_idx").to_vec2::<i64>().unwrap())?;
    let ends = |r: &Vec<i64>| (1..=r.len()).filter(|&t| t == r.len() || r[t] != r[t - 1]).collect::<Vec<_>>();
    Some(rows.iter().map(|r| [vec![0], ends(r)].concat()).collect())
}

#[test]
fn golden_cases() -> Result<()> {
    for case in cases("causal_conv1d") {
        for (form, op) in FORMS {
            golden(&case, form, op, DType::F32, 1e-5, 1e-4)?;
            golden(&case, form, op, DType::F64, 1e-7, 1e-7)?;
        }
    }
    Ok(())
}

fn golden(case: &Case, form: &str, op: Op, dtype: DType, out: f64, grad: f64) -> Result<()> {
    let x = case.var("x", dtype).unwrap();
    let weight = case.var("weight", dtype).unwrap();
    let [bias, initial] = ["bias", "initial_state"].map(|n| case.var(n, dtype));
    let xt = x.transpose(1, 2)?;
    let args = CausalConv1d {
        x: &xt,
        weight: &weight,
        bias: bias.as_deref(),
        silu: case.flag("silu", false),
        initial_state: initial.as_deref(),
        cu_seqlens: None,
    };
    let (y, state) = match boundaries(case) {
        None => op(args)?,
        Some(cu) => rows_packed(args, &cu, op)?,
    };
    let y = y.transpose(1, 2)?;
    let what = |part: &str| format!("{} {form} {dtype:?} {part}", case.name);
    assert_close(&what("y"), &y, &case.get("out.y"), out);
    assert_close(&what("final_state"), &state, &case.get("out.final_state"), out);
    let grads = case.loss(&[("y", &y), ("final_state", &state)])?.backward()?;
    for (name, var) in [("x", Some(&x)), ("weight", Some(&weight)), ("bias", bias.as_ref())]
        .into_iter()
        .chain([("initial_state", initial.as_ref())])
    {
        let Some(var) = var else { continue };
        let got = grads.get(var).unwrap();
        assert_close(&what(name), got, &case.get(&format!("grad.{name}")), grad);
    }
    Ok(())
}

/// Every row packed on its own; the state recorded is that of the last sequence.
fn rows_packed(args: CausalConv1d, boundaries: &[Vec<usize>], op: Op) -> Result<(Tensor, Tensor)> {
    let (mut ys, mut states) = (Vec::new(), Vec::new());
    for (row, cu) in boundaries.iter().enumerate() {
        let x = args.x.narrow(0, row, 1)?;
        let (y, state) = op(CausalConv1d { x: &x, cu_seqlens: Some(cu), ..args })?;
        ys.push(y);
        states.push(state.narrow(0, cu.len() - 2, 1)?);
    }
    Ok((Tensor::cat(&ys, 0)?, Tensor::cat(&states, 0)?))
}

/// A random problem; every input a variable.
struct Inputs {
    x: Var,
    weight: Var,
    bias: Option<Var>,
    initial: Option<Var>,
    silu: bool,
}

impl Inputs {
    fn new(seed: u64, (n, b, l, d, k): (usize, usize, usize, usize, usize), dtype: DType) -> Result<Self> {
        let var = |i, shape: &[usize]| Var::from_tensor(&random(seed * 8 + i, shape, dtype));
        Ok(Self {
            x: var(0, &[b, l, d])?,
            weight: var(1, &[d, k])?,
            bias: (!seed.is_multiple_of(3)).then(|| var(2, &[d])).transpose()?,
            initial: (seed.is_multiple_of(2)).then(|| var(3, &[n, d, k - 1])).transpose()?,
            silu: seed % 4 < 3,
        })
    }

    fn args<'a>(&'a self, cu: Option<&'a [usize]>) -> CausalConv1d<'a> {
        CausalConv1d {
            x: &self.x,
            weight: &self.weight,
            bias: self.bias.as_deref(),
            silu: self.silu,
            initial_state: self.initial.as_deref(),
            cu_seqlens: cu,
        }
    }

    /// Outputs and the gradients of a random functional of both.
    fn run(&self, op: Op, cu: Option<&[usize]>) -> Result<Vec<Tensor>> {
        let (y, state) = op(self.args(cu))?;
        let weigh = |seed, t: &Tensor| (t * random(seed, t.dims(), t.dtype()))?.sum_all();
        let loss =
            if state.elem_count() > 0 { (weigh(91, &y)? + weigh(92, &state)?)? } else { weigh(91, &y)? };
        let grads = loss.backward()?;
        let vars = [Some(&self.x), Some(&self.weight), self.bias.as_ref(), self.initial.as_ref()];
        let grads = vars.into_iter().flatten().map(|v| match grads.get(v) {
            Some(g) => Ok(g.clone()),
            None => v.zeros_like(),
        });
        [y, state].into_iter().map(Ok).chain(grads).collect()
    }
}

fn same(what: &str, inputs: &Inputs, cu: Option<&[usize]>) -> Result<()> {
    let (got, want) = (inputs.run(causal_conv1d, cu)?, inputs.run(naive::causal_conv1d, cu)?);
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_close(&format!("{what}, part {i}"), got, want, 1e-12);
    }
    Ok(())
}

#[test]
fn odd_sizes_match_the_definition() -> Result<()> {
    let mut seed = 0;
    for k in [1, 2, 3, 4, 5, 7] {
        for (b, l, d) in
            [(1, 1, 1), (2, 2, 3), (3, 3, 17), (1, 7, 33), (2, 131, 5), (1, 300, 9), (1, 5, 1031)]
        {
            seed += 1;
            let inputs = Inputs::new(seed, (b, b, l, d, k), DType::F64)?;
            same(&format!("b {b} l {l} d {d} k {k} seed {seed}"), &inputs, None)?;
        }
    }
    Ok(())
}

#[test]
fn packed_sequences_match_the_definition() -> Result<()> {
    for (seed, cu) in
        [&[0, 5][..], &[0, 1, 2, 4], &[0, 0, 3, 3, 9], &[0, 150, 150, 151, 300, 302]].iter().enumerate()
    {
        for k in [1, 2, 3, 4, 6] {
            for shift in 0..2 {
                let l = cu[cu.len() - 1];
                let inputs = Inputs::new((2 * seed + shift) as u64, (cu.len() - 1, 1, l, 11, k), DType::F64)?;
                same(&format!("cu {cu:?} k {k} shift {shift}"), &inputs, Some(cu))?;
            }
        }
    }
    Ok(())
}

#[test]
fn an_empty_input_passes_the_state_on() -> Result<()> {
    let inputs = Inputs::new(2, (2, 2, 0, 6, 4), DType::F32)?;
    let (y, state) = causal_conv1d(inputs.args(None))?;
    assert_eq!(y.dims(), [2, 0, 6]);
    assert_close("state", &state, inputs.initial.as_ref().unwrap(), 0.0);
    Ok(())
}

#[test]
fn any_split_gives_the_whole() -> Result<()> {
    let inputs = Inputs::new(4, (2, 2, 37, 13, 4), DType::F64)?;
    let (y, end) = causal_conv1d(inputs.args(None))?;
    for cuts in [&[1, 36][..], &[2, 1, 34], &[17, 20], &[1; 37]] {
        let (mut ys, mut state, mut at) =
            (Vec::new(), inputs.initial.as_ref().unwrap().as_tensor().clone(), 0);
        for &len in cuts {
            let x = inputs.x.narrow(1, at, len)?;
            let (y, next) =
                causal_conv1d(CausalConv1d { x: &x, initial_state: Some(&state), ..inputs.args(None) })?;
            ys.push(y);
            state = next;
            at += len;
        }
        assert_close(&format!("y {cuts:?}"), &Tensor::cat(&ys, 1)?, &y, 1e-13);
        assert_close(&format!("state {cuts:?}"), &state, &end, 0.0);
    }
    Ok(())
}

#[test]
fn steps_give_the_whole() -> Result<()> {
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-6), (DType::BF16, 1e-2)] {
        for (seed, k) in [1, 2, 3, 4, 6].into_iter().enumerate() {
            for (b, d) in [(1, 2050), (3, 7), (9, 2100)] {
                let i = Inputs::new(seed as u64, (b, b, 9, d, k), dtype)?;
                let states = if dtype == DType::F64 { dtype } else { DType::F32 };
                let initial = random(5, &[b, d, k - 1], states);
                let args = CausalConv1d { initial_state: Some(&initial), ..i.args(None) };
                let (y, end) = causal_conv1d(args)?;
                let state = initial.copy()?;
                for t in 0..9 {
                    let x = i.x.narrow(1, t, 1)?.squeeze(1)?;
                    let got = causal_conv1d_update(&state, &x, &i.weight, i.bias.as_deref(), i.silu)?;
                    assert_eq!(got.dtype(), dtype);
                    assert_close(&format!("k {k} t {t}"), &got, &y.narrow(1, t, 1)?.squeeze(1)?, tolerance);
                }
                assert_close("state", &state, &end, 0.0);
            }
        }
    }
    Ok(())
}

#[test]
fn a_view_needs_no_copy_to_be_right() -> Result<()> {
    let wide = Var::from_tensor(&random(3, &[2, 40, 29], DType::F64))?;
    let inputs = Inputs::new(7, (2, 2, 40, 11, 4), DType::F64)?;
    for start in [0, 7, 18] {
        let view = wide.narrow(2, start, 11)?;
        let [got, want] = [causal_conv1d, naive::causal_conv1d].map(|op: Op| {
            let (y, state) = op(CausalConv1d { x: &view, ..inputs.args(None) })?;
            let loss = ((&y * random(1, y.dims(), DType::F64))?.sum_all()? + state.sqr()?.sum_all()?)?;
            let grad = loss.backward()?.get(&wide).unwrap().clone();
            Result::Ok([y, state, grad])
        });
        for (got, want) in got?.iter().zip(&want?) {
            assert_close("view", got, want, 1e-12);
        }
    }
    Ok(())
}

#[test]
fn half_precision_stays_within_its_rounding() -> Result<()> {
    for (dtype, tolerance) in [(DType::BF16, 1e-2), (DType::F16, 2e-3)] {
        let exact = Inputs::new(1, (2, 2, 45, 24, 4), DType::F64)?;
        let cast = |v: &Var, t| Var::from_tensor(&v.to_dtype(t)?);
        let half = Inputs {
            x: cast(&exact.x, dtype)?,
            weight: cast(&exact.weight, dtype)?,
            bias: exact.bias.as_ref().map(|b| cast(b, DType::F32)).transpose()?,
            initial: None,
            silu: exact.silu,
        };
        let (y, state) = causal_conv1d(half.args(None))?;
        assert_eq!((y.dtype(), state.dtype()), (dtype, DType::F32));
        let (want, end) = naive::causal_conv1d(exact.args(None))?;
        assert_close("y", &y, &want, tolerance);
        assert_close("state", &state, &end, tolerance);
        let grads = y.to_dtype(DType::F32)?.sqr()?.sum_all()?.backward()?;
        let wants = want.sqr()?.sum_all()?.backward()?;
        for (half, exact) in [(&half.x, &exact.x), (&half.weight, &exact.weight)] {
            assert_close("grad", grads.get(half).unwrap(), wants.get(exact).unwrap(), 2.0 * tolerance);
        }
    }
    Ok(())
}

#[test]
fn backward_is_deterministic() -> Result<()> {
    let inputs = Inputs::new(2, (2, 2, 700, 40, 4), DType::F32)?;
    let first = inputs.run(causal_conv1d, None)?;
    for (a, b) in first.iter().zip(&inputs.run(causal_conv1d, None)?) {
        assert_close("again", b, a, 0.0);
    }
    Ok(())
}

#[test]
fn errors_name_what_is_wrong() -> Result<()> {
    let i = Inputs::new(2, (2, 2, 5, 6, 4), DType::F32)?;
    let dev = &Device::Cpu;
    let zeros = |shape: &[usize], t| Tensor::zeros(shape, t, dev).unwrap();
    let bad_weight = zeros(&[5, 4], DType::F32);
    let no_taps = zeros(&[6, 0], DType::F32);
    let bad_bias = zeros(&[5], DType::F32);
    let bad_state = zeros(&[2, 6, 4], DType::F32);
    let half_state = zeros(&[2, 6, 3], DType::BF16);
    let ids = zeros(&[2, 5, 6], DType::U32);
    let flat = zeros(&[5, 6], DType::F32);
    let ok = i.args(None);
    for (args, expected) in [
        (CausalConv1d { weight: &bad_weight, ..ok }, "weight has shape [5, 4], expected (6, k)"),
        (CausalConv1d { weight: &no_taps, ..ok }, "weight has shape [6, 0]"),
        (CausalConv1d { bias: Some(&bad_bias), ..ok }, "bias has shape [5], expected (6)"),
        (
            CausalConv1d { initial_state: Some(&bad_state), ..ok },
            "initial_state has shape [2, 6, 4], expected (2, 6, 3)",
        ),
        (CausalConv1d { initial_state: Some(&half_state), ..ok }, "initial_state is BF16, expected F32"),
        (CausalConv1d { x: &ids, ..ok }, "x is U32"),
        (CausalConv1d { x: &flat, ..ok }, "x has shape [5, 6], expected (b, l, d)"),
        (CausalConv1d { cu_seqlens: Some(&[0, 5]), ..ok }, "batch of 1"),
    ] {
        let error = causal_conv1d(args).unwrap_err().to_string();
        assert!(error.starts_with("causal_conv1d: ") && error.contains(expected), "{error}");
    }
    let strided = zeros(&[6, 2, 3], DType::F32).transpose(0, 1)?;
    let x = i.x.narrow(1, 0, 1)?.squeeze(1)?;
    for (state, expected) in
        [(&strided, "contiguous"), (&bad_state, "state has shape [2, 6, 4], expected (2, 6, 3)")]
    {
        let error = causal_conv1d_update(state, &x, &i.weight, None, true).unwrap_err().to_string();
        assert!(error.starts_with("causal_conv1d_update: ") && error.contains(expected), "{error}");
    }
    Ok(())
}
