//! The SSD scan against recorded reference values, against its definition, and against itself.

mod common;

use candle_core::{DType, Result, Tensor, Var};
use common::{Case, assert_close, cases};
use semisep_kernels::ssd::naive;
use semisep_kernels::{SsdChunkScan, ssd_chunk_scan};

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
