//! The selective scan against recorded reference values, against its definition, and against itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::scan::{Solution, compare, solution};
use common::{Case, assert_close, cases, random};
use semisep_kernels::selective_scan::naive;
use semisep_kernels::{SelectiveScan, SelectiveStateUpdate, selective_scan, selective_state_update};

type Scan = fn(&SelectiveScan) -> Result<(Tensor, Tensor)>;

/// Scans under test: the definition and the fast one.
const SCANS: [(&str, Scan); 2] = [("naive", naive::selective_scan), ("fast", selective_scan)];

/// Recorded maps: (b, n, l) for one group, (b, g, n, l), or constant (e, n): then every channel is a group.
fn map(t: &Tensor, batch: usize, length: usize) -> Result<Tensor> {
    match t.rank() {
        2 => {
            let (e, n) = t.dims2()?;
            t.broadcast_as((batch, length, e, n))
        }
        3 => t.transpose(1, 2)?.unsqueeze(2),
        _ => t.permute((0, 3, 1, 2)),
    }
}

fn golden(case: &Case, scan: Scan, dtype: DType, tolerance: (f64, f64)) -> Result<()> {
    let data = |name: &str| case.var(name, dtype);
    let parameter = |name: &str| case.var(name, if dtype == DType::F64 { dtype } else { DType::F32 });
    let vars: Vec<(&str, Option<Var>)> = vec![
        ("u", data("u")),
        ("delta", data("delta")),
        ("A", parameter("A")),
        ("B", data("B")),
        ("C", data("C")),
        ("D", parameter("D")),
        ("delta_bias", parameter("delta_bias")),
        ("z", data("z")),
        ("initial_state", parameter("initial_state")),
    ];
    let get = |name: &str| vars.iter().find(|v| v.0 == name).and_then(|v| v.1.as_ref().map(Var::as_tensor));
    let (batch, _, length) = get("u").unwrap().dims3()?;
    let turned = |name: &str| get(name).map(|t| t.transpose(1, 2)).transpose();
    let (x, dt, z) = (turned("u")?.unwrap(), turned("delta")?.unwrap(), turned("z")?);
    let b = map(get("B").unwrap(), batch, length)?;
    let c = map(get("C").unwrap(), batch, length)?;
    // Constant maps make every channel a group; the other map follows.
    let per_channel = |t: &Tensor| t.broadcast_as((batch, length, x.dim(2)?, t.dim(3)?));
    let (b, c) = match (b.dim(2)?, c.dim(2)?) {
        (i, j) if i == j => (b, c),
        _ => (per_channel(&b)?, per_channel(&c)?),
    };
    let (y, state) = scan(&SelectiveScan {
        d: get("D"),
        dt_bias: get("delta_bias"),
        z: z.as_ref(),
        dt_softplus: case.flag("delta_softplus", false),
        initial_state: get("initial_state"),
        ..SelectiveScan::new(&x, &dt, get("A").unwrap(), &b, &c)
    })?;
    assert_eq!(y.dtype(), dtype);
    let y = y.transpose(1, 2)?;
    assert_close(&format!("{} y {dtype:?}", case.name), &y, &case.get("out.y"), tolerance.0);
    assert_close(&format!("{} state {dtype:?}", case.name), &state, &case.get("out.last_state"), tolerance.0);
    let grads = case.loss(&[("y", &y), ("last_state", &state)])?.backward()?;
    for (name, var) in vars.iter().filter_map(|(name, var)| var.as_ref().map(|v| (name, v))) {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{}: no gradient of {name}", case.name));
        let what = format!("{} grad {name} {dtype:?}", case.name);
        assert_close(&what, grad, &case.get(&format!("grad.{name}")), tolerance.1);
    }
    Ok(())
}

#[test]
fn recorded_cases() -> Result<()> {
    for (name, scan) in SCANS {
        for case in cases("selective_scan") {
            println!("{name} {}", case.name);
            golden(&case, scan, DType::F64, (1e-12, 1e-11))?;
            golden(&case, scan, DType::F32, (1e-5, 1e-4))?;
        }
    }
    Ok(())
}

/// Sizes of a random problem, and which options it uses.
#[derive(Debug, Clone, Copy)]
struct Size {
    b: usize,
    l: usize,
    e: usize,
    n: usize,
    g: usize,
    /// d, dt_bias, z, softplus, initial state.
    options: [bool; 5],
}

const ALL: [bool; 5] = [true; 5];

/// A random problem in f64: named inputs, and cotangents of the output and the final state.
struct Problem {
    inputs: Vec<(&'static str, Tensor)>,
    softplus: bool,
    cu: Option<Vec<usize>>,
    cot_y: Tensor,
    cot_state: Tensor,
}

impl Problem {
    fn new(seed: u64, size: Size, cu: Option<&[usize]>) -> Result<Self> {
        let Size { b, l, e, n, g, options: [d, bias, z, softplus, state] } = size;
        let sequences = cu.map_or(b, |cu| cu.len() - 1);
        let values = |k: u64, shape: &[usize]| random(100 * seed + k, shape, DType::F64);
        let dt = values(1, &[b, l, e]);
        let dt = if softplus { ((dt * 2.0)? - 1.0)? } else { (dt.abs()? * 0.5)? };
        let mut inputs = vec![
            ("x", values(0, &[b, l, e])),
            ("dt", dt),
            ("a", values(2, &[e, n]).exp()?.neg()?),
            ("b", values(3, &[b, l, g, n])),
            ("c", values(4, &[b, l, g, n])),
        ];
        let optional: [(&'static str, bool, Vec<usize>); 4] = [
            ("d", d, vec![e]),
            ("dt_bias", bias, vec![e]),
            ("z", z, vec![b, l, e]),
            ("initial_state", state, vec![sequences, e, n]),
        ];
        for (k, (name, _, shape)) in optional.iter().enumerate().filter(|(_, o)| o.1) {
            let value = values(5 + k as u64, shape);
            // A negative step would make the state grow without bounds.
            inputs.push((name, if *name == "dt_bias" && !softplus { value.abs()? } else { value }));
        }
        let (cot_y, cot_state) = (values(20, &[b, l, e]), values(21, &[sequences, e, n]));
        Ok(Self { inputs, softplus, cu: cu.map(<[usize]>::to_vec), cot_y, cot_state })
    }

    /// The inputs in this dtype; parameters and states no narrower than f32.
    fn vars(&self, dtype: DType) -> Result<Vec<(&'static str, Var)>> {
        let work = if dtype == DType::F64 { dtype } else { DType::F32 };
        let kept = |name: &str| ["a", "d", "dt_bias", "initial_state"].contains(&name);
        let dtype = |name: &str| if kept(name) { work } else { dtype };
        self.inputs
            .iter()
            .map(|(name, t)| Ok((*name, Var::from_tensor(&t.to_dtype(dtype(name))?)?)))
            .collect()
    }

    fn solve(&self, scan: Scan, dtype: DType) -> Result<Solution> {
        let vars = self.vars(dtype)?;
        let get = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| v.1.as_tensor());
        let need = |name: &str| get(name).unwrap();
        let solved = scan(&SelectiveScan {
            d: get("d"),
            dt_bias: get("dt_bias"),
            z: get("z"),
            dt_softplus: self.softplus,
            initial_state: get("initial_state"),
            cu_seqlens: self.cu.as_deref(),
            ..SelectiveScan::new(need("x"), need("dt"), need("a"), need("b"), need("c"))
        })?;
        solution(solved, [&self.cot_y, &self.cot_state], &vars)
    }
}

#[test]
fn odd_sizes_match_the_definition() -> Result<()> {
    let shapes = [(2, 5, 3, 1), (1, 80, 16, 1), (3, 6, 4, 2), (1, 130, 5, 1), (1, 68, 18, 2), (1, 3, 1, 3)];
    for (k, l) in [0, 1, 2, 7, 63, 65, 130].into_iter().enumerate() {
        for (j, (b, e, n, g)) in shapes.into_iter().enumerate() {
            let options = std::array::from_fn(|i| j == 0 || (k + j + i) % 3 > 0);
            let size = Size { b, l, e, n, g, options };
            let problem = Problem::new((10 * k + j) as u64, size, None)?;
            let want = problem.solve(naive::selective_scan, DType::F64)?;
            let what = format!("{size:?}");
            compare(&what, &problem.solve(selective_scan, DType::F64)?, &want, (1e-12, 1e-11));
            compare(&what, &problem.solve(selective_scan, DType::F32)?, &want, (1e-5, 1e-4));
        }
    }
    Ok(())
}

#[test]
fn half_precision_stays_within_its_rounding() -> Result<()> {
    let size = Size { b: 2, l: 50, e: 24, n: 16, g: 1, options: ALL };
    let problem = Problem::new(3, size, None)?;
    for dtype in [DType::BF16, DType::F16] {
        let got = problem.solve(selective_scan, dtype)?;
        assert_eq!((got.0.dtype(), got.1.dtype()), (dtype, DType::F32));
        compare(
            &format!("{dtype:?}"),
            &got,
            &problem.solve(naive::selective_scan, DType::F64)?,
            (1e-2, 1e-2),
        );
        // Rounding of the inputs aside, only that of the output and the gradients is left.
        compare(&format!("{dtype:?}"), &got, &problem.solve(naive::selective_scan, dtype)?, (3e-3, 5e-3));
    }
    Ok(())
}

#[test]
fn packed_sequences_match_the_definition_and_separate_calls() -> Result<()> {
    let cu = [0, 7, 7, 8, 45, 81];
    let size = Size { b: 1, l: 81, e: 70, n: 4, g: 1, options: ALL };
    let problem = Problem::new(5, size, Some(&cu))?;
    let packed = problem.solve(selective_scan, DType::F64)?;
    compare("packed", &packed, &problem.solve(naive::selective_scan, DType::F64)?, (1e-12, 1e-11));
    for (k, w) in cu.windows(2).enumerate() {
        let part = |name: &str, t: &Tensor| match name {
            "initial_state" => t.narrow(0, k, 1),
            "a" | "d" | "dt_bias" => Ok(t.clone()),
            _ => t.narrow(1, w[0], w[1] - w[0])?.contiguous(),
        };
        let inputs =
            problem.inputs.iter().map(|(name, t)| Ok((*name, part(name, t)?))).collect::<Result<_>>()?;
        let one = Problem {
            inputs,
            softplus: true,
            cu: None,
            cot_y: part("y", &problem.cot_y)?,
            cot_state: part("initial_state", &problem.cot_state)?,
        };
        let (y, state, grads) = one.solve(selective_scan, DType::F64)?;
        assert_close("y", &part("y", &packed.0)?, &y, 0.0);
        assert_close("state", &packed.1.narrow(0, k, 1)?, &state, 0.0);
        for ((name, whole), (_, grad)) in packed.2.iter().zip(&grads) {
            if !["a", "d", "dt_bias"].contains(name) {
                assert_close(name, &part(name, whole)?, grad, 1e-14);
            }
        }
    }
    Ok(())
}

/// The scan in two calls, the state carried over: outputs, state and gradients, those through the state included.
fn split(at: usize) -> impl Fn(&SelectiveScan) -> Result<(Tensor, Tensor)> {
    move |args| {
        let piece = |start: usize, len: usize, state: Option<&Tensor>| {
            let cut = |t: &Tensor| t.narrow(1, start, len);
            let (x, dt, b, c) = (cut(args.x)?, cut(args.dt)?, cut(args.b)?, cut(args.c)?);
            let z = args.z.map(cut).transpose()?;
            let initial_state = state;
            selective_scan(&SelectiveScan {
                x: &x,
                dt: &dt,
                b: &b,
                c: &c,
                z: z.as_ref(),
                initial_state,
                ..*args
            })
        };
        let (first, state) = piece(0, at, args.initial_state)?;
        let (second, state) = piece(at, args.x.dim(1)? - at, Some(&state))?;
        Ok((Tensor::cat(&[first, second], 1)?, state))
    }
}

#[test]
fn any_split_gives_the_whole() -> Result<()> {
    let size = Size { b: 2, l: 70, e: 20, n: 8, g: 2, options: ALL };
    let problem = Problem::new(11, size, None)?;
    let whole = problem.solve(selective_scan, DType::F64)?;
    compare("1", &problem.solve(|args| split(1)(args), DType::F64)?, &whole, (1e-13, 1e-12));
    compare("33", &problem.solve(|args| split(33)(args), DType::F64)?, &whole, (1e-13, 1e-12));
    compare("69", &problem.solve(|args| split(69)(args), DType::F64)?, &whole, (1e-13, 1e-12));
    Ok(())
}

/// The scan token by token.
fn stepwise(args: &SelectiveScan) -> Result<(Tensor, Tensor)> {
    let (b, l, e) = args.x.dims3()?;
    let state = match args.initial_state {
        Some(state) => state.copy()?.detach(),
        None => Tensor::zeros((b, e, args.a.dim(1)?), args.a.dtype(), &Device::Cpu)?,
    };
    let view = state.reshape(state.shape())?;
    let mut ys = Vec::new();
    for t in 0..l {
        let at = |x: &Tensor| x.narrow(1, t, 1)?.squeeze(1);
        let (x, dt, b, c) = (at(args.x)?, at(args.dt)?, at(args.b)?, at(args.c)?);
        let z = args.z.map(at).transpose()?;
        let step = SelectiveStateUpdate {
            d: args.d,
            dt_bias: args.dt_bias,
            z: z.as_ref(),
            dt_softplus: args.dt_softplus,
            ..SelectiveStateUpdate::new(&x, &dt, args.a, &b, &c)
        };
        ys.push(selective_state_update(&state, &step)?);
    }
    Ok((Tensor::stack(&ys, 1)?, view)) // the view sees the updates
}

#[test]
fn steps_give_the_whole() -> Result<()> {
    for (k, (b, e, n, g)) in
        [(1, 1536, 16, 1), (2, 37, 5, 1), (3, 40, 33, 4), (1, 3, 8, 3)].into_iter().enumerate()
    {
        for options in [ALL, [false, false, false, false, true], [false; 5]] {
            let problem = Problem::new(k as u64, Size { b, l: 9, e, n, g, options }, None)?;
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::BF16, 1e-2)] {
                let (y, state, _) = problem.solve(stepwise, dtype)?;
                let (want, final_state, _) = problem.solve(selective_scan, dtype)?;
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
    let (b, l, e, n) = (2, 11, 24, 4);
    let wide = random(1, &[b, l, 3 * e + 2 * n], DType::F32);
    let a = random(2, &[e, n], DType::F32).exp()?.neg()?;
    let part = |at: usize, len: usize| wide.narrow(2, at, len);
    let (x, dt, z) = (part(0, e)?, part(e, e)?, part(2 * e, e)?);
    let map = |at: usize| part(at, n)?.reshape((b, l, 1, n));
    let (bm, cm) = (part(3 * e, n)?.unsqueeze(2)?, part(3 * e + n, n)?.unsqueeze(2)?);
    let run = |x: &Tensor, dt: &Tensor, z: &Tensor, bm: &Tensor, cm: &Tensor| {
        let args = SelectiveScan { z: Some(z), dt_softplus: true, ..SelectiveScan::new(x, dt, &a, bm, cm) };
        selective_scan(&args)
    };
    let (y, state) = run(&x, &dt, &z, &bm, &cm)?;
    let whole = |t: &Tensor| t.contiguous();
    let (want, final_state) = run(
        &whole(&x)?,
        &whole(&dt)?,
        &whole(&z)?,
        &map(3 * e)?.contiguous()?,
        &map(3 * e + n)?.contiguous()?,
    )?;
    assert_close("y", &y, &want, 0.0);
    assert_close("state", &state, &final_state, 0.0);
    Ok(())
}

#[test]
fn backward_is_deterministic() -> Result<()> {
    let problem = Problem::new(8, Size { b: 2, l: 40, e: 300, n: 16, g: 1, options: ALL }, None)?;
    let first = problem.solve(selective_scan, DType::F32)?;
    for _ in 0..3 {
        compare("again", &problem.solve(selective_scan, DType::F32)?, &first, (0.0, 0.0));
    }
    Ok(())
}

/// Slow decays over many tokens: rounding must not add up beyond the tolerance.
#[test]
fn long_sequences_keep_their_accuracy() -> Result<()> {
    let (l, e, n) = (4000, 16, 4);
    let x = random(1, &[1, l, e], DType::F64);
    let dt = (random(2, &[1, l, e], DType::F64).abs()? * 1e-3)?;
    let a = random(3, &[e, n], DType::F64).exp()?.neg()?;
    let b = random(4, &[1, l, 1, n], DType::F64);
    let (want, final_state) = selective_scan(&SelectiveScan::new(&x, &dt, &a, &b, &b))?;
    let f32 = |t: &Tensor| t.to_dtype(DType::F32);
    let (x, dt, a, b) = (f32(&x)?, f32(&dt)?, f32(&a)?, f32(&b)?);
    let (y, state) = selective_scan(&SelectiveScan::new(&x, &dt, &a, &b, &b))?;
    assert_close("y", &y, &want, 1e-5);
    assert_close("state", &state, &final_state, 1e-5);
    Ok(())
}

#[test]
fn errors_name_what_is_wrong() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (x, a, map) = (zeros(&[2, 5, 16])?, zeros(&[16, 4])?, zeros(&[2, 5, 1, 4])?);
    let message = |args: &SelectiveScan| selective_scan(args).unwrap_err().to_string();
    let narrow = zeros(&[2, 5, 8])?;
    assert!(
        message(&SelectiveScan::new(&x, &narrow, &a, &map, &map))
            .contains("selective_scan: dt has shape (2, 5, 8), expected (2, 5, 16), as x")
    );
    let three = zeros(&[2, 5, 3, 4])?;
    assert!(message(&SelectiveScan::new(&x, &x, &a, &three, &three)).contains("do not divide"));
    let cu = [0, 10];
    let packed = SelectiveScan { cu_seqlens: Some(&cu), ..SelectiveScan::new(&x, &x, &a, &map, &map) };
    assert!(message(&packed).contains("batch of 1"));

    let (x, map) = (zeros(&[2, 16])?, zeros(&[2, 1, 4])?);
    let args = SelectiveStateUpdate::new(&x, &x, &a, &map, &map);
    let message = |state: &Tensor| selective_state_update(state, &args).unwrap_err().to_string();
    assert!(message(&zeros(&[2, 16, 5])?).contains("state has shape (2, 16, 5), expected (2, 16, 4)"));
    assert!(message(&zeros(&[2, 16, 4])?.to_dtype(DType::BF16)?).contains("BF16"));
    assert!(message(&zeros(&[2, 4, 16])?.transpose(1, 2)?).contains("strides"));
    let state = zeros(&[2, 16, 4])?;
    let inside = state.flatten_all()?.narrow(0, 0, 32)?.reshape((2, 16))?;
    let shared = SelectiveStateUpdate { z: Some(&inside), ..args };
    let error = selective_state_update(&state, &shared).unwrap_err().to_string();
    assert!(error.contains("own storage"), "{error}");
    Ok(())
}
