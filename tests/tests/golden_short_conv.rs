//! The gated short convolution against recorded values.

use std::sync::Arc;

use candle_core::{DType, Device, IndexOp, Result, Tensor, Var};
use semisep_core::{Context, Mixer, State, VarBuilder};
use semisep_short_conv::{ShortConv, ShortConvConfig};
use semisep_tests::{Case, CaseParameters, assert_close, cases};

fn build(case: &Case, dtype: DType) -> Result<(ShortConv, Arc<CaseParameters>)> {
    let config = ShortConvConfig {
        d_conv: case.config["kernel"].as_u64().unwrap_or(0) as usize,
        bias: case.config["bias"] == true,
    };
    let d_model = case.config["d_model"].as_u64().unwrap_or(0) as usize;
    let parameters = case.parameters(str::to_owned);
    let layer = ShortConv::new(d_model, &config, &VarBuilder::new(parameters.clone(), dtype, Device::Cpu))?;
    assert_eq!(parameters.unread(), Vec::<String>::new());
    Ok((layer, parameters))
}

fn initial(case: &Case, layer: &ShortConv, batch: usize, dtype: DType) -> Result<(State, Option<Var>)> {
    let mut state = layer.new_state(batch)?;
    let var = case.has("in.conv_state").then(|| case.input("conv_state", dtype)).transpose()?;
    if let Some(var) = &var {
        state.set("conv", var.as_tensor().clone())?;
    }
    Ok((state, var))
}

#[test]
fn recorded_cases() -> Result<()> {
    for case in cases("layers", "short_conv__") {
        for (dtype, out, grad) in [(DType::F64, 1e-12, 1e-12), (DType::F32, 1e-5, 1e-4)] {
            let (layer, parameters) = build(&case, dtype)?;
            let x = case.input("x", dtype)?;
            let (b, l, _) = x.dims3()?;
            let (mut state, conv_state) = initial(&case, &layer, b, dtype)?;
            let y = layer.forward(&x, &mut Context::with_state(&mut state))?;
            let what = |name: &str| format!("{} {dtype:?} {name}", case.name);
            assert_close(&what("y"), &y, &case.get("out.y")?, out);
            assert_close(&what("state"), state.get("conv")?, &case.get("extra.final_conv_state")?, out);
            let mut inputs = vec![("x", &x)];
            inputs.extend(conv_state.iter().map(|v| ("conv_state", v)));
            case.check_gradients(&[("y", &y)], &inputs, &parameters, grad)?;

            let mut state = initial(&case, &layer, b, dtype)?.0.fork()?.detach();
            let steps: Vec<Tensor> = (0..l)
                .map(|t| layer.step(&x.i((.., t))?.contiguous()?, &mut Context::with_state(&mut state)))
                .collect::<Result<_>>()?;
            assert_close(&what("y_step"), &Tensor::stack(&steps, 1)?, &case.get("out.y_step")?, out);
            let want = case.get("extra.final_conv_state_step")?;
            assert_close(&what("state of steps"), state.get("conv")?, &want, out);
        }
    }
    Ok(())
}
