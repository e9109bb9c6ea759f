//! Mamba-3 against recorded values: SISO and MIMO, states and gradients.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use candle_core::{DType, Device, IndexOp, Result, Tensor, Var};
use semisep_core::{Context, Mixer, State, VarBuilder};
use semisep_mamba3::{Mamba3, Mamba3Config};
use semisep_tests::{Case, CaseParameters, assert_close, cases};
use serde_json::json;

const STATES: [(&str, &str); 4] =
    [("ssm", "ssm_state"), ("angle", "angle_state"), ("k", "k_state"), ("v", "v_state")];

fn build(case: &Case, dtype: DType) -> Result<(Mamba3, Arc<CaseParameters>)> {
    let keys = [
        "d_state",
        "expand",
        "headdim",
        "ngroups",
        "rope_fraction",
        "A_floor",
        "is_outproj_norm",
        "is_mimo",
        "mimo_rank",
        "norm_eps",
    ];
    let own: serde_json::Map<_, _> = keys.iter().map(|k| ((*k).into(), case.config[k].clone())).collect();
    let config: Mamba3Config = serde_json::from_value(json!(own)).unwrap();
    let d_model = case.config["d_model"].as_u64().unwrap() as usize;
    let parameters = case.parameters(str::to_owned);
    let layer = Mamba3::new(d_model, &config, &VarBuilder::new(parameters.clone(), dtype, Device::Cpu))?;
    assert_eq!(parameters.unread(), Vec::<String>::new());
    Ok((layer, parameters))
}

fn initial(
    case: &Case,
    layer: &Mamba3,
    batch: usize,
    dtype: DType,
) -> Result<(State, Vec<(&'static str, Var)>)> {
    let (mut state, mut vars) = (layer.new_state(batch)?, Vec::new());
    for (name, recorded) in STATES {
        if case.has(&format!("in.{recorded}")) {
            let var = case.input(recorded, dtype)?;
            state.set(name, var.as_tensor().clone())?;
            vars.push((recorded, var));
        }
    }
    Ok((state, vars))
}

/// Only sines and cosines of angles matter.
fn compare_states(case: &Case, what: &str, state: &State, suffix: &str, tolerance: f64) -> Result<()> {
    for (name, recorded) in STATES {
        let (got, want) = (state.get(name)?, case.get(&format!("extra.final_{recorded}{suffix}"))?);
        let what = format!("{what} {recorded}{suffix}");
        if name == "angle" {
            let got = got.to_dtype(DType::F64)?;
            assert_close(&what, &got.sin()?, &want.sin()?, tolerance);
            assert_close(&what, &got.cos()?, &want.cos()?, tolerance);
        } else {
            assert_close(&what, got, &want, tolerance);
        }
    }
    Ok(())
}

#[test]
fn recorded_cases() -> Result<()> {
    for case in cases("layers", "mamba3__") {
        for (dtype, out, grad) in [(DType::F64, 1e-11, 1e-10), (DType::F32, 1e-5, 1e-4)] {
            let what = format!("{} {dtype:?}", case.name);
            let (layer, parameters) = build(&case, dtype)?;
            let u = case.input("u", dtype)?;
            let (b, l, _) = u.dims3()?;
            let (mut state, vars) = initial(&case, &layer, b, dtype)?;
            let y = layer.forward(&u, &mut Context::with_state(&mut state))?;
            assert_close(&format!("{what} y"), &y, &case.get("out.y")?, out);
            compare_states(&case, &what, &state, "", out)?;
            let mut inputs = vec![("u", &u)];
            inputs.extend(vars.iter().map(|(name, var)| (*name, var)));
            case.check_gradients(&[("y", &y)], &inputs, &parameters, grad)?;

            let mut state = initial(&case, &layer, b, dtype)?.0.fork()?.detach();
            let steps: Vec<Tensor> = (0..l)
                .map(|t| layer.step(&u.i((.., t))?.contiguous()?, &mut Context::with_state(&mut state)))
                .collect::<Result<_>>()?;
            assert_close(
                &format!("{what} y_step"),
                &Tensor::stack(&steps, 1)?,
                &case.get("out.y_step")?,
                out,
            );
            compare_states(&case, &what, &state, "_step", out)?;
        }
    }
    Ok(())
}
