//! The scan with one decay a head against recorded reference values, its definition, and itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::scan::{Solution, compare, solution, variables};
use common::{Case, assert_close, cases, random};
use semisep_kernels::ssd::naive;
use semisep_kernels::{
    ScalarDecayScan, ScalarDecayStateUpdate, scalar_decay_scan, scalar_decay_state_update,
};

type Scan = fn(&ScalarDecayScan) -> Result<(Tensor, Tensor)>;

/// Scans under test: the definition and the fast one.
const SCANS: [(&str, Scan); 2] = [("naive", naive::scalar_decay_scan), ("fast", scalar_decay_scan)];

const NAMES: [&str; 5] = ["q", "k", "v", "g", "initial_state"];

/// A case's variables; those of retention with the length before the heads, as the scan has it.
struct Inputs {
    vars: [Option<Var>; 5],
    heads_first: bool,
}

impl Inputs {
    fn of(case: &Case, heads_first: bool, dtype: DType) -> Self {
        Self { vars: NAMES.map(|name| case.var(name, dtype)), heads_first }
    }

    fn sequence(&self, k: usize) -> Result<Tensor> {
        let t = self.vars[k].as_ref().unwrap();
        if self.heads_first { t.transpose(1, 2) } else { Ok(t.as_tensor().clone()) }
    }

    /// Outputs as the case lays them out, and the final state (b, h, n, p).
    fn scan(&self, case: &Case, scan: Scan, ones: bool) -> Result<(Tensor, Tensor)> {
        let [q, k, v] = [0, 1, 2].map(|i| self.sequence(i));
        let (q, k, mut v) = ((q? * case.number("scale").unwrap_or(1.0))?, k?, v?);
        let (b, l, h, _) = v.dims4()?;
        if ones {
            v = Tensor::cat(&[&v, &Tensor::ones((b, l, h, 1), v.dtype(), v.device())?], 3)?;
        }
        let log_decay = match (&self.vars[3], case.params.get("gammas")) {
            (Some(g), _) => g.as_tensor().clone(),
            (_, Some(gammas)) => {
                let gammas: Vec<f64> =
                    gammas.as_array().unwrap().iter().map(|g| g.as_f64().unwrap().ln()).collect();
                Tensor::new(gammas, &Device::Cpu)?.to_dtype(v.dtype())?
            }
            _ => Tensor::zeros(h, v.dtype(), &Device::Cpu)?,
        };
        let state = self.vars[4].as_ref().map(|s| s.transpose(2, 3)?.contiguous()).transpose()?;
        let args = ScalarDecayScan { state: state.as_ref(), ..ScalarDecayScan::new(&q, &k, &v, &log_decay) };
        let (y, last) = scan(&args)?;
        let y = if self.heads_first { y.transpose(1, 2)? } else { y };
        Ok((y, last.transpose(2, 3)?))
    }

    fn check_grads(&self, case: &Case, loss: &Tensor, what: &str, tolerance: f64) -> Result<()> {
        let grads = loss.backward()?;
        for (name, var) in NAMES.iter().zip(&self.vars) {
            let Some(var) = var else { continue };
            let grad = grads.get(var).unwrap_or_else(|| panic!("{what}: no gradient of {name}"));
            assert_close(&format!("{what} {name}"), grad, &case.get(&format!("grad.{name}")), tolerance);
        }
        Ok(())
    }
}

fn tolerances(dtype: DType) -> (f64, f64) {
    if dtype == DType::F64 { (1e-12, 1e-11) } else { (1e-5, 1e-4) }
}

fn for_all(op: &str, test: impl Fn(&Case, &str, Scan, DType) -> Result<()>) -> Result<()> {
    for case in cases(op) {
        for (name, scan) in SCANS {
            for dtype in [DType::F64, DType::F32] {
                test(&case, &format!("{} {name} {dtype:?}", case.name), scan, dtype)?;
            }
        }
    }
    Ok(())
}

#[test]
fn golden_simple_gla_retention_and_linear_attention() -> Result<()> {
    for op in ["simple_gla", "retention", "linear_attention"] {
        for_all(op, |case, what, scan, dtype| {
            let tolerance = tolerances(dtype);
            let normalized = case.flag("normalize", false);
            let inputs = Inputs::of(case, op == "retention", dtype);
            let (mut y, mut state) = inputs.scan(case, scan, normalized)?;
            if normalized {
                // The sum of keys is the state of a value of ones.
                let p = y.dim(3)? - 1;
                y = y.narrow(3, 0, p)?.broadcast_div(&(y.narrow(3, p, 1)? + 1e-10)?)?;
                state = state.narrow(3, 0, p)?;
            }
            assert_close(&format!("{what} o"), &y, &case.get("out.o"), tolerance.0);
            assert_close(&format!("{what} state"), &state, &case.get("out.final_state"), tolerance.0);
            let loss = case.loss(&[("o", &y), ("final_state", &state)])?;
            inputs.check_grads(case, &loss, what, tolerance.1)
        })?;
    }
    Ok(())
}

/// torchscale's parallel form divides the rows of the decay mask by the root of their sums, and then the rows of the
/// mixing matrix by the sums of their absolute values (1 to 5e4), which are constants to its gradient: a number a
/// token and head, that the head norm after it takes away again.
#[test]
fn golden_retention_of_torchscale_up_to_its_row_scales() -> Result<()> {
    for_all("retention_torchscale", |case, what, scan, dtype| {
        let inputs = Inputs::of(case, true, dtype);
        let (q, k) = (case.get("in.q"), case.get("in.k"));
        let (_, h, l, n) = q.dims4()?;
        let scale = (n as f64).powf(-0.5);
        let gammas: Vec<f64> =
            case.params["gammas"].as_array().unwrap().iter().map(|g| g.as_f64().unwrap()).collect();
        let mask: Vec<f64> = gammas
            .iter()
            .flat_map(|g| (0..l * l).map(move |i| (i / l, i % l)).map(move |(t, s)| (g, t, s)))
            .map(|(g, t, s)| if s <= t { g.powi((t - s) as i32) } else { 0.0 })
            .collect();
        let mask = Tensor::new(mask, &Device::Cpu)?.reshape((h, l, l))?;
        let roots = mask.sum_keepdim(2)?.sqrt()?;
        let scores = (q.matmul(&k.t()?)? * scale)?.broadcast_mul(&mask.broadcast_div(&roots)?)?;
        let rows = scores.abs()?.sum_keepdim(3)?.clamp(1.0, 5e4)?.broadcast_mul(&roots)?;
        let (y, _) = inputs.scan(case, scan, false)?;
        let y = (y * scale)?.broadcast_div(&rows.to_dtype(dtype)?)?;
        let tolerance = tolerances(dtype);
        assert_close(&format!("{what} o"), &y, &case.get("out.o"), tolerance.0);
        inputs.check_grads(case, &case.loss(&[("o", &y)])?, what, tolerance.1)
    })
}

/// Sizes, and whether there are scales, a state, and decays that include exact zeros and ones.
#[derive(Debug, Clone, Copy)]
struct Size {
    b: usize,
    l: usize,
    h: usize,
    p: usize,
    n: usize,
    g: usize,
    constant: bool,
    scale: bool,
    state: bool,
    exact: bool,
}

struct Problem {
    inputs: Vec<(&'static str, Tensor)>,
    cu: Option<Vec<usize>>,
    cot_y: Tensor,
    cot_state: Tensor,
}

impl Problem {
    fn new(seed: u64, size: Size, cu: Option<&[usize]>) -> Result<Self> {
        let Size { b, l, h, p, n, g, constant, scale, state, exact } = size;
        let sequences = cu.map_or(b, |cu| cu.len() - 1);
        let values = |k: u64, shape: &[usize]| random(100 * seed + k, shape, DType::F64);
        let raw = if constant { values(3, &[h]) } else { values(3, &[b, l, h]) };
        let mut log_decay = (raw.abs()? * -1.0)?;
        if exact {
            let never = raw.ones_like()?.affine(f64::NEG_INFINITY, 0.0)?;
            log_decay = raw.gt(0.6)?.where_cond(&never, &log_decay)?;
            log_decay = raw.lt(-0.6)?.where_cond(&raw.zeros_like()?, &log_decay)?;
        }
        let mut inputs = vec![
            ("q", values(0, &[b, l, g, n])),
            ("k", values(1, &[b, l, g, n])),
            ("v", values(2, &[b, l, h, p])),
            ("log_decay", log_decay),
        ];
        if scale {
            inputs.push(("scale", values(4, &[b, l, h])));
        }
        if state {
            inputs.push(("state", values(5, &[sequences, h, p, n])));
        }
        let (cot_y, cot_state) = (values(6, &[b, l, h, p]), values(7, &[sequences, h, p, n]));
        Ok(Self { inputs, cu: cu.map(<[usize]>::to_vec), cot_y, cot_state })
    }

    fn solve(&self, scan: Scan, dtype: DType) -> Result<Solution> {
        let vars = variables(&self.inputs, dtype)?;
        let get = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| v.1.as_tensor());
        let need = |name: &str| get(name).unwrap();
        let solved = scan(&ScalarDecayScan {
            scale: get("scale"),
            state: get("state"),
            cu_seqlens: self.cu.as_deref(),
            ..ScalarDecayScan::new(need("q"), need("k"), need("v"), need("log_decay"))
        })?;
        solution(solved, [&self.cot_y, &self.cot_state], &vars)
    }
}

#[test]
fn odd_sizes_match_the_definition() -> Result<()> {
    let shapes = [(2, 4, 3, 5, 2), (1, 3, 7, 18, 1), (3, 2, 1, 1, 2), (1, 6, 20, 16, 3)];
    for (i, l) in [0, 1, 2, 7, 63, 65, 130].into_iter().enumerate() {
        for (j, (b, h, p, n, g)) in shapes.into_iter().enumerate() {
            let [constant, scale, state, exact] =
                [(i + j) % 2 == 0, (i + j) % 3 > 0, (i + 2 * j) % 4 > 0, (i + j) % 4 == 1];
            let size = Size { b, l, h, p, n, g, constant, scale, state, exact };
            let problem = Problem::new((10 * i + j) as u64, size, None)?;
            let want = problem.solve(naive::scalar_decay_scan, DType::F64)?;
            let what = format!("{size:?}");
            compare(&what, &problem.solve(scalar_decay_scan, DType::F64)?, &want, (1e-12, 1e-11));
            compare(&what, &problem.solve(scalar_decay_scan, DType::F32)?, &want, (1e-5, 1e-4));
        }
    }
    Ok(())
}

#[test]
fn packed_sequences_match_the_definition() -> Result<()> {
    let cu = [0, 7, 7, 8, 45, 81];
    for constant in [false, true] {
        let size =
            Size { b: 1, l: 81, h: 4, p: 5, n: 6, g: 2, constant, scale: true, state: true, exact: false };
        let problem = Problem::new(5, size, Some(&cu))?;
        let want = problem.solve(naive::scalar_decay_scan, DType::F64)?;
        compare("packed", &problem.solve(scalar_decay_scan, DType::F64)?, &want, (1e-12, 1e-11));
    }
    Ok(())
}

/// The scan token by token.
fn stepwise(args: &ScalarDecayScan) -> Result<(Tensor, Tensor)> {
    let (b, l, h, p) = args.v.dims4()?;
    let work = if args.v.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let state = match args.state {
        Some(state) => state.to_dtype(work)?.copy()?.detach(),
        None => Tensor::zeros((b, h, p, args.k.dim(3)?), work, &Device::Cpu)?,
    };
    let view = state.reshape(state.shape())?;
    let mut ys = Vec::new();
    for t in 0..l {
        let at = |x: &Tensor| x.narrow(1, t, 1)?.squeeze(1);
        let (q, k, v, scale) = (at(args.q)?, at(args.k)?, at(args.v)?, args.scale.map(at).transpose()?);
        let g = if args.log_decay.rank() == 1 { args.log_decay.clone() } else { at(args.log_decay)? };
        let step =
            ScalarDecayStateUpdate { scale: scale.as_ref(), ..ScalarDecayStateUpdate::new(&q, &k, &v, &g) };
        ys.push(scalar_decay_state_update(&state, &step)?);
    }
    Ok((Tensor::stack(&ys, 1)?, view)) // the view sees the updates
}

#[test]
fn steps_give_the_whole() -> Result<()> {
    for (k, (b, h, p, n, g)) in
        [(1, 12, 64, 64, 12), (2, 3, 5, 7, 1), (3, 4, 6, 33, 2)].into_iter().enumerate()
    {
        for (constant, scale) in [(false, true), (true, false), (true, true)] {
            let size = Size { b, l: 9, h, p, n, g, constant, scale, state: true, exact: !constant };
            let problem = Problem::new(k as u64, size, None)?;
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::BF16, 1e-2)] {
                let (y, state, _) = problem.solve(stepwise, dtype)?;
                let (want, final_state, _) = problem.solve(scalar_decay_scan, dtype)?;
                assert_close("y", &y, &want, tolerance);
                assert_close("state", &state, &final_state, tolerance);
            }
        }
    }
    Ok(())
}

#[test]
fn errors_name_what_is_wrong() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (v, k, g) = (zeros(&[2, 5, 4, 3])?, zeros(&[2, 5, 2, 8])?, zeros(&[2, 5, 4])?);
    let message = |args: &ScalarDecayScan| scalar_decay_scan(args).unwrap_err().to_string();
    let (narrow, three, short) = (zeros(&[2, 5, 2, 7])?, zeros(&[2, 5, 3, 8])?, zeros(&[3])?);
    let found = message(&ScalarDecayScan::new(&narrow, &k, &v, &g));
    assert!(found.contains("scalar_decay_scan: q has shape (2, 5, 2, 7), expected (2, 5, 2, 8)"), "{found}");
    assert!(message(&ScalarDecayScan::new(&three, &three, &v, &g)).contains("do not divide"));
    assert!(message(&ScalarDecayScan::new(&k, &k, &v, &short)).contains("expected (4), one a head"));
    assert!(
        message(&ScalarDecayScan { scale: Some(&short), ..ScalarDecayScan::new(&k, &k, &v, &g) })
            .contains("scale")
    );

    let (v, k, g) = (zeros(&[2, 4, 3])?, zeros(&[2, 2, 8])?, zeros(&[4])?);
    let args = ScalarDecayStateUpdate::new(&k, &k, &v, &g);
    let message = |state: &Tensor| scalar_decay_state_update(state, &args).unwrap_err().to_string();
    assert!(message(&zeros(&[2, 4, 8, 3])?).contains("state has shape (2, 4, 8, 3), expected (2, 4, 3, 8)"));
    Ok(())
}
