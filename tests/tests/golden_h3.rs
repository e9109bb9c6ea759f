//! H3 against recorded layers: outputs, steps, states and every gradient.

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{Context, Mixer, MixerConfig, VarBuilder};
use semisep_h3::{H3, H3Config};
use semisep_tests::{Case, assert_close, cases};
use serde_json::json;

fn config(case: &Case) -> Result<(usize, H3Config)> {
    let mut options = case.config.as_object().cloned().unwrap_or_default();
    let d = options.remove("d_model").and_then(|v| v.as_u64()).unwrap_or_default() as usize;
    for key in ["layer", "length", "batch", "shift_B"] {
        options.remove(key);
    }
    let config: H3Config = serde_json::from_value(json!(options)).map_err(candle_core::Error::wrap)?;
    assert_eq!(config.check(d), []);
    Ok((d, config))
}

/// The shift state as the equations have it, `s[m] = Σ_{j≤m} B[m-j] k_{t-j}`, but for its last entry, which is shifted
/// out before anything reads it; from the last keys (b, d, N - 1), oldest first.
fn shift_state(keys: &Tensor, b: &Tensor) -> Result<Tensor> {
    let n = keys.dim(2)?;
    let entries = (0..n).map(|m| {
        let mut sum = keys.narrow(2, 0, 1)?.zeros_like()?;
        for j in 0..=m {
            let weight = b.narrow(1, m - j, 1)?;
            sum = (sum + keys.narrow(2, n - 1 - j, 1)?.broadcast_mul(&weight)?)?;
        }
        Ok(sum)
    });
    Tensor::cat(&entries.collect::<Result<Vec<_>>>()?, 2)
}

#[test]
fn outputs_steps_states_and_gradients() -> Result<()> {
    for case in cases("layers", "h3__") {
        let (d, config) = config(&case)?;
        for (dtype, tolerance, gradients) in [(DType::F64, 1e-11, 1e-10), (DType::F32, 1e-5, 1e-4)] {
            let parameters = case.parameters(str::to_owned);
            let layer = H3::new(d, &config, &VarBuilder::new(parameters.clone(), dtype, Device::Cpu))?;
            assert_eq!(parameters.unread(), Vec::<String>::new(), "{}", case.name);
            let what = |part: &str| format!("{} {part} {dtype:?}", case.name);
            let u = case.input("u", dtype)?;
            let y = layer.forward(u.as_tensor(), &mut Context::default())?;
            assert_close(&what("y"), &y, &case.get("out.y")?, tolerance);
            case.check_gradients(&[("y", &y)], &[("u", &u)], &parameters, gradients)?;

            let u = u.as_tensor().detach();
            let (batch, length, _) = u.dims3()?;
            let mut whole = layer.new_state(batch)?;
            layer.forward(&u, &mut Context::with_state(&mut whole))?;
            let mut single = layer.new_state(batch)?;
            let steps = (0..length).map(|t| {
                layer.step(
                    &u.narrow(1, t, 1)?.squeeze(1)?.contiguous()?,
                    &mut Context::with_state(&mut single),
                )
            });
            let steps = Tensor::stack(&steps.collect::<Result<Vec<_>>>()?, 1)?;
            assert_close(&what("steps"), &steps, &case.get("out.y_step")?, tolerance);
            let shift = case.get("extra.final_shift_state")?;
            let shift = shift.narrow(2, 0, shift.dim(2)? - 1)?;
            let ssm = case.get("extra.final_ssm_state")?;
            let b = case.get("param.ssm_k_kernel.kernel.B")?;
            for (form, state) in [("parallel", &whole), ("steps", &single)] {
                let keys = state.get("shift")?.to_dtype(DType::F64)?;
                assert_close(
                    &what(&format!("{form}: shift state")),
                    &shift_state(&keys, &b)?,
                    &shift,
                    tolerance,
                );
                let ours = state.get("ssm")?.reshape(ssm.dims())?;
                assert_close(&what(&format!("{form}: state")), &ours, &ssm, tolerance);
            }
        }
    }
    Ok(())
}
