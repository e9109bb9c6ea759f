//! The SSD scan against recorded reference values, against its definition, and against itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::scan::{Solution, compare, solution};
use common::{Case, assert_close, cases, random};
use semisep_kernels::ssd::naive;
use semisep_kernels::{SsdChunkScan, SsdStateUpdate, ssd_chunk_scan, ssd_state_update};

type Scan = fn(&SsdChunkScan) -> Result<(Tensor, Tensor)>;

/// Scans under test: the definition and the fast one.
const SCANS: [(&str, Scan); 2] = [("naive", naive::ssd_chunk_scan), ("fast", ssd_chunk_scan)];

/// Inputs of one case as variables, by name.
struct Inputs(Vec<(&'static str, Var)>);

impl Inputs {
    fn of(case: &Case, dtype: DType) -> Self {
        let work = if dtype == DType::F64 { dtype } else { DType::F32 };
        let names = ["x", "dt", "A", "B", "C", "D", "dt_bias", "z", "initial_states"];
        let dtype =
            |name: &str| if ["A", "D", "dt_bias", "initial_states"].contains(&name) { work } else { dtype };
        Self(names.iter().filter_map(|&name| Some((name, case.var(name, dtype(name))?))).collect())
    }

    fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().find(|v| v.0 == name).map(|v| v.1.as_tensor())
    }

    fn need(&self, name: &str) -> &Tensor {
        self.get(name).unwrap()
    }
}

fn options(case: &Case) -> (bool, (f64, f64)) {
    let limit = case.params.get("dt_limit").map(|v| (v[0].as_f64().unwrap(), v[1].as_f64().unwrap()));
    (case.flag("dt_softplus", false), limit.unwrap_or((0.0, f64::INFINITY)))
}

fn check(
    case: &Case,
    inputs: &Inputs,
    (y, state): (&Tensor, &Tensor),
    state_name: &str,
    tolerance: (f64, f64),
) -> Result<()> {
    let what = |part: &str| format!("{} {part} {:?}", case.name, y.dtype());
    assert_close(&what("y"), y, &case.get("out.y"), tolerance.0);
    assert_close(&what("state"), state, &case.get(&format!("out.{state_name}")), tolerance.0);
    let grads = case.loss(&[("y", y), (state_name, state)])?.backward()?;
    for (name, var) in &inputs.0 {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{}: no gradient of {name}", case.name));
        assert_close(&what(name), grad, &case.get(&format!("grad.{name}")), tolerance.1);
    }
    Ok(())
}

/// Row `row` of a case with `seq_idx`: its runs are packed sequences, of which the first starts from the row's initial
/// state; the recorded final state is that of the last run.
fn packed_row(case: &Case, scan: Scan, inputs: &Inputs, row: usize) -> Result<(Tensor, Tensor)> {
    let index: Vec<i64> = case.get("in.seq_idx").get(row)?.to_vec1()?;
    let mut cu = vec![0];
    cu.extend((1..index.len()).filter(|&t| index[t] != index[t - 1]));
    cu.push(index.len());
    let at = |t: &Tensor| t.narrow(0, row, 1);
    let (x, dt, b, c) =
        (at(inputs.need("x"))?, at(inputs.need("dt"))?, at(inputs.need("B"))?, at(inputs.need("C"))?);
    let z = inputs.get("z").map(at).transpose()?;
    let initial = match inputs.get("initial_states") {
        None => None,
        Some(state) => {
            let first = at(state)?;
            let mut shape = first.dims().to_vec();
            shape[0] = cu.len() - 2;
            let rest = Tensor::zeros(shape, first.dtype(), first.device())?;
            Some(Tensor::cat(&[&first, &rest], 0)?)
        }
    };
    let (dt_softplus, dt_limit) = options(case);
    let (y, states) = scan(&SsdChunkScan {
        d: inputs.get("D"),
        dt_bias: inputs.get("dt_bias"),
        z: z.as_ref(),
        dt_softplus,
        dt_limit,
        initial_state: initial.as_ref(),
        cu_seqlens: Some(&cu),
        ..SsdChunkScan::new(&x, &dt, inputs.need("A"), &b, &c, 8)
    })?;
    Ok((y, states.narrow(0, cu.len() - 2, 1)?))
}

fn golden(case: &Case, scan: Scan, dtype: DType, chunk: usize, tolerance: (f64, f64)) -> Result<()> {
    let inputs = Inputs::of(case, dtype);
    let (y, state) = if case.has("in.seq_idx") {
        let rows: Vec<_> = (0..2).map(|row| packed_row(case, scan, &inputs, row)).collect::<Result<_>>()?;
        let (ys, states): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        (Tensor::cat(&ys, 0)?, Tensor::cat(&states, 0)?)
    } else {
        let cu: Option<Vec<usize>> =
            case.params.get("cu").map(|cu| serde_json::from_value(cu.clone()).unwrap());
        let (dt_softplus, dt_limit) = options(case);
        scan(&SsdChunkScan {
            d: inputs.get("D"),
            dt_bias: inputs.get("dt_bias"),
            z: inputs.get("z"),
            dt_softplus: dt_softplus || cu.is_some(),
            dt_limit,
            initial_state: inputs.get("initial_states"),
            cu_seqlens: cu.as_deref(),
            ..SsdChunkScan::new(
                inputs.need("x"),
                inputs.need("dt"),
                inputs.need("A"),
                inputs.need("B"),
                inputs.need("C"),
                chunk,
            )
        })?
    };
    assert_eq!(y.dtype(), dtype);
    let state_name = if case.has("out.final_states") { "final_states" } else { "final_state" };
    check(case, &inputs, (&y, &state), state_name, tolerance)
}

#[test]
fn recorded_cases() -> Result<()> {
    for (name, scan) in SCANS {
        for case in cases("ssd").iter().chain(&cases("ssd_varlen")) {
            println!("{name} {}", case.name);
            for chunk in [8, 256] {
                golden(case, scan, DType::F64, chunk, (1e-12, 1e-11))?;
                golden(case, scan, DType::F32, chunk, (1e-5, 1e-4))?;
            }
        }
    }
    Ok(())
}

/// Sizes of a random problem, and which options it uses.
#[derive(Debug, Clone, Copy)]
struct Size {
    b: usize,
    l: usize,
    h: usize,
    p: usize,
    n: usize,
    g: usize,
    chunk: usize,
    /// d a head, d a channel (before that a head), dt_bias, z, softplus, initial state, dt_limit.
    options: [bool; 7],
}

const ALL: [bool; 7] = [true; 7];

/// A random problem in f64: named inputs, and cotangents of the output and the final state.
struct Problem {
    inputs: Vec<(&'static str, Tensor)>,
    softplus: bool,
    limit: (f64, f64),
    chunk: usize,
    cu: Option<Vec<usize>>,
    cot_y: Tensor,
    cot_state: Tensor,
}

impl Problem {
    fn new(seed: u64, size: Size, cu: Option<&[usize]>) -> Result<Self> {
        let Size { b, l, h, p, n, g, chunk, options: [d, wide, bias, z, softplus, state, limited] } = size;
        let sequences = cu.map_or(b, |cu| cu.len() - 1);
        let values = |k: u64, shape: &[usize]| random(100 * seed + k, shape, DType::F64);
        let dt = values(1, &[b, l, h]);
        let dt = if softplus { ((dt * 2.0)? - 1.0)? } else { (dt.abs()? * 0.5)? };
        let mut inputs = vec![
            ("x", values(0, &[b, l, h, p])),
            ("dt", dt),
            ("a", values(2, &[h]).exp()?.neg()?),
            ("b", values(3, &[b, l, g, n])),
            ("c", values(4, &[b, l, g, n])),
        ];
        let optional: [(&'static str, bool, Vec<usize>); 4] = [
            ("d", d || wide, if wide { vec![h, p] } else { vec![h] }),
            ("dt_bias", bias, vec![h]),
            ("z", z, vec![b, l, h, p]),
            ("initial_state", state, vec![sequences, h, p, n]),
        ];
        for (k, (name, _, shape)) in optional.iter().enumerate().filter(|(_, o)| o.1) {
            let value = values(5 + k as u64, shape);
            // A negative step would make the state grow without bounds.
            inputs.push((name, if *name == "dt_bias" && !softplus { value.abs()? } else { value }));
        }
        let (cot_y, cot_state) = (values(20, &[b, l, h, p]), values(21, &[sequences, h, p, n]));
        let limit = if limited { (0.2, 0.7) } else { (0.0, f64::INFINITY) };
        Ok(Self { inputs, softplus, limit, chunk, cu: cu.map(<[usize]>::to_vec), cot_y, cot_state })
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
        let solved = scan(&SsdChunkScan {
            d: get("d"),
            dt_bias: get("dt_bias"),
            z: get("z"),
            dt_softplus: self.softplus,
            dt_limit: self.limit,
            initial_state: get("initial_state"),
            cu_seqlens: self.cu.as_deref(),
            ..SsdChunkScan::new(need("x"), need("dt"), need("a"), need("b"), need("c"), self.chunk)
        })?;
        solution(solved, [&self.cot_y, &self.cot_state], &vars)
    }
}

#[test]
fn odd_sizes_match_the_definition() -> Result<()> {
    let shapes = [(2, 4, 3, 5, 2), (1, 3, 7, 18, 1), (3, 2, 1, 1, 1), (1, 6, 20, 16, 3), (1, 5, 4, 3, 5)];
    for (k, l) in [0, 1, 2, 7, 63, 65, 130].into_iter().enumerate() {
        for (j, (b, h, p, n, g)) in shapes.into_iter().enumerate() {
            let options = std::array::from_fn(|i| j == 0 || (k + j + i) % 3 > 0);
            let size = Size { b, l, h, p, n, g, chunk: [1, 16, 64, 1000][(k + j) % 4], options };
            let problem = Problem::new((10 * k + j) as u64, size, None)?;
            let want = problem.solve(naive::ssd_chunk_scan, DType::F64)?;
            let what = format!("{size:?}");
            compare(&what, &problem.solve(ssd_chunk_scan, DType::F64)?, &want, (1e-12, 1e-11));
            compare(&what, &problem.solve(ssd_chunk_scan, DType::F32)?, &want, (1e-5, 1e-4));
        }
    }
    Ok(())
}

#[test]
fn half_precision_stays_within_its_rounding() -> Result<()> {
    let options = [true, false, true, true, true, true, false];
    let size = Size { b: 2, l: 50, h: 4, p: 8, n: 16, g: 2, chunk: 16, options };
    let problem = Problem::new(3, size, None)?;
    for dtype in [DType::BF16, DType::F16] {
        let got = problem.solve(ssd_chunk_scan, dtype)?;
        assert_eq!((got.0.dtype(), got.1.dtype()), (dtype, DType::F32));
        compare(
            &format!("{dtype:?}"),
            &got,
            &problem.solve(naive::ssd_chunk_scan, DType::F64)?,
            (1e-2, 1e-2),
        );
        // Rounding of the inputs aside, only that of the output and the gradients is left.
        compare(&format!("{dtype:?}"), &got, &problem.solve(naive::ssd_chunk_scan, dtype)?, (3e-3, 5e-3));
    }
    Ok(())
}

#[test]
fn packed_sequences_match_the_definition_and_separate_calls() -> Result<()> {
    let cu = [0, 7, 7, 8, 45, 81];
    let size = Size { b: 1, l: 81, h: 4, p: 5, n: 6, g: 2, chunk: 16, options: ALL };
    let problem = Problem::new(5, size, Some(&cu))?;
    let packed = problem.solve(ssd_chunk_scan, DType::F64)?;
    compare("packed", &packed, &problem.solve(naive::ssd_chunk_scan, DType::F64)?, (1e-12, 1e-11));
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
            cu: None,
            cot_y: part("y", &problem.cot_y)?,
            cot_state: part("initial_state", &problem.cot_state)?,
            ..problem
        };
        let (y, state, grads) = one.solve(ssd_chunk_scan, DType::F64)?;
        assert_close("y", &part("y", &packed.0)?, &y, 1e-14);
        assert_close("state", &packed.1.narrow(0, k, 1)?, &state, 1e-14);
        for ((name, whole), (_, grad)) in packed.2.iter().zip(&grads) {
            if !["a", "d", "dt_bias"].contains(name) {
                assert_close(name, &part(name, whole)?, grad, 1e-13);
            }
        }
    }
    Ok(())
}

/// The scan in two calls, the state carried over: outputs, state and gradients, those through the state included.
fn split(at: usize, args: &SsdChunkScan) -> Result<(Tensor, Tensor)> {
    let piece = |start: usize, len: usize, initial_state: Option<&Tensor>| {
        let cut = |t: &Tensor| t.narrow(1, start, len);
        let (x, dt, b, c) = (cut(args.x)?, cut(args.dt)?, cut(args.b)?, cut(args.c)?);
        let z = args.z.map(cut).transpose()?;
        ssd_chunk_scan(&SsdChunkScan { x: &x, dt: &dt, b: &b, c: &c, z: z.as_ref(), initial_state, ..*args })
    };
    let (first, state) = piece(0, at, args.initial_state)?;
    let (second, state) = piece(at, args.x.dim(1)? - at, Some(&state))?;
    Ok((Tensor::cat(&[first, second], 1)?, state))
}

#[test]
fn any_split_gives_the_whole() -> Result<()> {
    let size = Size { b: 2, l: 70, h: 4, p: 6, n: 8, g: 2, chunk: 16, options: ALL };
    let problem = Problem::new(11, size, None)?;
    let whole = problem.solve(ssd_chunk_scan, DType::F64)?;
    let splits: [Scan; 3] = [|args| split(1, args), |args| split(33, args), |args| split(69, args)];
    for scan in splits {
        compare("split", &problem.solve(scan, DType::F64)?, &whole, (1e-12, 1e-11));
    }
    Ok(())
}

/// The scan token by token.
fn stepwise(args: &SsdChunkScan) -> Result<(Tensor, Tensor)> {
    let (b, l, h, p) = args.x.dims4()?;
    let state = match args.initial_state {
        Some(state) => state.copy()?.detach(),
        None => Tensor::zeros((b, h, p, args.b.dim(3)?), args.a.dtype(), &Device::Cpu)?,
    };
    let view = state.reshape(state.shape())?;
    let mut ys = Vec::new();
    for t in 0..l {
        let at = |x: &Tensor| x.narrow(1, t, 1)?.squeeze(1);
        let (x, dt, b, c) = (at(args.x)?, at(args.dt)?, at(args.b)?, at(args.c)?);
        let z = args.z.map(at).transpose()?;
        let step = SsdStateUpdate {
            d: args.d,
            dt_bias: args.dt_bias,
            z: z.as_ref(),
            dt_softplus: args.dt_softplus,
            dt_limit: args.dt_limit,
            ..SsdStateUpdate::new(&x, &dt, args.a, &b, &c)
        };
        ys.push(ssd_state_update(&state, &step)?);
    }
    Ok((Tensor::stack(&ys, 1)?, view)) // the view sees the updates
}

#[test]
fn steps_give_the_whole() -> Result<()> {
    for (k, (b, h, p, n, g)) in
        [(1, 24, 64, 128, 1), (2, 3, 5, 7, 1), (3, 4, 6, 33, 2), (1, 3, 1, 8, 3)].into_iter().enumerate()
    {
        for options in [ALL, [false, false, false, false, false, true, false], [false; 7]] {
            let size = Size { b, l: 9, h, p, n, g, chunk: 4, options };
            let problem = Problem::new(k as u64, size, None)?;
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::BF16, 1e-2)] {
                let (y, state, _) = problem.solve(stepwise, dtype)?;
                let (want, final_state, _) = problem.solve(ssd_chunk_scan, dtype)?;
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
    let (b, l, h, p, n) = (2, 11, 3, 4, 6);
    let wide = random(1, &[b, l, 2 * h * p + 2 * n + h], DType::F32);
    let a = random(2, &[h], DType::F32).exp()?.neg()?;
    let run = |copy: bool| {
        let part = |at: usize, len: usize| {
            let part = wide.narrow(2, at, len)?;
            if copy { part.contiguous() } else { Ok(part) }
        };
        let x = part(0, h * p)?.reshape((b, l, h, p))?;
        let z = part(h * p, h * p)?.reshape((b, l, h, p))?;
        let (bm, cm) = (part(2 * h * p, n)?.unsqueeze(2)?, part(2 * h * p + n, n)?.unsqueeze(2)?);
        let dt = part(2 * h * p + 2 * n, h)?;
        let args =
            SsdChunkScan { z: Some(&z), dt_softplus: true, ..SsdChunkScan::new(&x, &dt, &a, &bm, &cm, 4) };
        ssd_chunk_scan(&args)
    };
    let ((y, state), (want, final_state)) = (run(false)?, run(true)?);
    assert_close("y", &y, &want, 0.0);
    assert_close("state", &state, &final_state, 0.0);
    Ok(())
}

#[test]
fn backward_is_deterministic() -> Result<()> {
    let size = Size { b: 2, l: 90, h: 8, p: 16, n: 16, g: 1, chunk: 64, options: ALL };
    let problem = Problem::new(8, size, None)?;
    let first = problem.solve(ssd_chunk_scan, DType::F32)?;
    for _ in 0..3 {
        compare("again", &problem.solve(ssd_chunk_scan, DType::F32)?, &first, (0.0, 0.0));
    }
    Ok(())
}

/// Steep decays, and steep ones among slow ones: in-chunk sums of `Δ A` reach -1300, where differences of such sums in
/// f32 would be off by 1e-4, and exponentials of their negatives overflow.
#[test]
fn steep_decays_keep_their_accuracy() -> Result<()> {
    for seed in 0..3 {
        let options = [true, false, false, false, false, true, false];
        let size = Size { b: 1, l: 130, h: 2, p: 8, n: 8, g: 1, chunk: 64, options };
        let mut problem = Problem::new(seed, size, None)?;
        let steep = random(90 + seed, &[1, 130, 2], DType::F64);
        // seed 0: all steps near -20; else one token in four, the others slow.
        let dt = match seed {
            0 => ((steep * 0.1)? + 1.0)?,
            _ => {
                let often = steep.gt(0.5)?.to_dtype(DType::F64)?;
                ((often * 1.0)? + (steep.abs()? * 0.002)?)?
            }
        };
        let a = Tensor::new(&[-20.0, -19.0], &Device::Cpu)?;
        for (name, t) in &mut problem.inputs {
            match *name {
                "dt" => *t = dt.clone(),
                "a" => *t = a.clone(),
                _ => {}
            }
        }
        let want = problem.solve(naive::ssd_chunk_scan, DType::F64)?;
        compare("f64", &problem.solve(ssd_chunk_scan, DType::F64)?, &want, (1e-12, 1e-11));
        compare("f32", &problem.solve(ssd_chunk_scan, DType::F32)?, &want, (1e-5, 1e-4));
    }
    Ok(())
}

#[test]
fn errors_name_what_is_wrong() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (x, dt, a, map) = (zeros(&[2, 5, 4, 3])?, zeros(&[2, 5, 4])?, zeros(&[4])?, zeros(&[2, 5, 1, 8])?);
    let message = |args: &SsdChunkScan| ssd_chunk_scan(args).unwrap_err().to_string();
    let narrow = zeros(&[2, 5, 3])?;
    assert!(
        message(&SsdChunkScan::new(&x, &narrow, &a, &map, &map, 8))
            .contains("ssd_chunk_scan: dt has shape (2, 5, 3), expected (2, 5, 4)")
    );
    let three = zeros(&[2, 5, 3, 8])?;
    assert!(message(&SsdChunkScan::new(&x, &dt, &a, &three, &three, 8)).contains("do not divide"));
    assert!(message(&SsdChunkScan::new(&x, &dt, &a, &map, &map, 0)).contains("chunk_size is 0"));
    let limited = SsdChunkScan { dt_limit: (2.0, 1.0), ..SsdChunkScan::new(&x, &dt, &a, &map, &map, 8) };
    assert!(message(&limited).contains("dt_limit"));
    let (x, map) = (zeros(&[2, 5, 4, 0])?, zeros(&[2, 5, 1, 8])?);
    assert!(message(&SsdChunkScan::new(&x, &dt, &a, &map, &map, 8)).contains("head dimension is 0"));

    let (x, dt, map) = (zeros(&[2, 4, 3])?, zeros(&[2, 4])?, zeros(&[2, 1, 8])?);
    let args = SsdStateUpdate::new(&x, &dt, &a, &map, &map);
    let message = |state: &Tensor| ssd_state_update(state, &args).unwrap_err().to_string();
    assert!(message(&zeros(&[2, 4, 3, 9])?).contains("state has shape (2, 4, 3, 9), expected (2, 4, 3, 8)"));
    assert!(message(&zeros(&[2, 4, 3, 8])?.to_dtype(DType::F16)?).contains("F16"));
    assert!(message(&zeros(&[2, 4, 8, 3])?.transpose(2, 3)?).contains("strides"));
    Ok(())
}
