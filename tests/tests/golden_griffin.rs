//! Griffin's recurrent block against recorded values.

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{Context, Mixer, MixerConfig, VarBuilder};
use semisep_griffin::{RgLruBlock, RgLruConfig};
use semisep_tests::{Case, assert_close, cases};
use serde_json::json;

/// Outputs and states; gradients.
const LADDER: [(DType, f64, f64); 2] = [(DType::F64, 1e-11, 1e-10), (DType::F32, 1e-5, 1e-4)];

fn config(case: &Case) -> RgLruConfig {
    let c = &case.config;
    let table = json!({
        "lru_width": c["lru_width"], "num_blocks": c["num_blocks"], "conv1d_width": c["conv1d_width"],
        "c": c["c"], "activation": c["activation"],
    });
    serde_json::from_value(table).unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

/// A sequence starts at position 0, and only there: the block goes by the tokens that its state has seen.
fn check(case: &Case, dtype: DType, tolerance: f64, gradient: f64) -> Result<()> {
    let config = config(case);
    let source = case.parameters(str::to_owned);
    let x = case.input("x", dtype)?;
    let (b, l, d) = x.dims3()?;
    assert!(config.check(d).is_empty(), "{}: {:?}", case.name, config.check(d));
    let layer = RgLruBlock::new(d, &config, &VarBuilder::new(source.clone(), dtype, Device::Cpu))?;
    assert!(source.unread().is_empty(), "{}: {:?} not read", case.name, source.unread());
    let what = |name: &str| format!("{} {name} {dtype:?}", case.name);

    let offset = case.config["position_offset"].as_u64().unwrap_or(0) as usize;
    let fresh = || -> Result<_> {
        let mut state = layer.new_state(b)?;
        state.advance(&vec![offset; b]);
        Ok(state)
    };
    let mut inputs = vec![("x", x.clone())];
    let mut state = fresh()?;
    let mut stepped = fresh()?;
    for (name, entry) in [("h0", "h"), ("conv_state", "conv")] {
        if case.has(&format!("in.{name}")) {
            let var = case.input(name, dtype)?;
            state.set(entry, var.as_tensor().clone())?;
            stepped.set(entry, var.as_tensor().detach().copy()?)?;
            inputs.push((name, var));
        }
    }
    let y = layer.forward(x.as_tensor(), &mut Context::with_state(&mut state))?;
    let h_n = state.get("h")?.clone();
    assert_close(&what("y"), &y, &case.get("out.y")?, tolerance);
    assert_close(&what("h_n"), &h_n, &case.get("out.h_n")?, tolerance);
    assert_close(&what("conv"), state.get("conv")?, &case.get("extra.final_conv_state")?, tolerance);
    let inputs: Vec<(&str, &candle_core::Var)> = inputs.iter().map(|(n, v)| (*n, v)).collect();
    case.check_gradients(&[("y", &y), ("h_n", &h_n)], &inputs, &source, gradient)?;

    let tokens = x.detach();
    let steps: Vec<Tensor> = (0..l)
        .map(|t| layer.step(&tokens.narrow(1, t, 1)?.squeeze(1)?, &mut Context::with_state(&mut stepped)))
        .collect::<Result<_>>()?;
    assert_close(&what("y_step"), &Tensor::stack(&steps, 1)?, &case.get("out.y_step")?, tolerance);
    assert_close(&what("h_n_step"), stepped.get("h")?, &case.get("out.h_n_step")?, tolerance);
    let conv = case.get("extra.final_conv_state_step")?;
    assert_close(&what("conv_step"), stepped.get("conv")?, &conv, tolerance);
    Ok(())
}

#[test]
fn recorded_cases() -> Result<()> {
    for case in cases("layers", "rg_lru_block__") {
        for (dtype, tolerance, gradient) in LADDER {
            check(&case, dtype, tolerance, gradient)?;
        }
    }
    Ok(())
}
