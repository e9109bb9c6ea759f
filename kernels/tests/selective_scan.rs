//! The selective scan against recorded reference values, against its definition, and against itself.

mod common;

use candle_core::{DType, Result, Tensor, Var};
use common::{Case, assert_close, cases};
use semisep_kernels::selective_scan::naive;
use semisep_kernels::{SelectiveScan, selective_scan};

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
