//! The gated attention unit against recorded values.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use semisep_core::{Context, Mixer, Norm, NormConfig, NormKind, RotaryConfig, VarBuilder};
use semisep_gau::{Gau, GauAttention, GauConfig, GauScale};
use semisep_tests::{Case, assert_close, cases};

fn config(case: &Case) -> GauConfig {
    let (c, text) = (&case.config, |key: &str| case.config[key].as_str());
    let relu = text("attention") == Some("relu2");
    GauConfig {
        d_qk: c["d_qk"].as_u64().unwrap() as usize,
        d_hidden: c["d_hidden"].as_u64().map(|e| e as usize),
        attention: if relu { GauAttention::Relu2 } else { GauAttention::Softmax },
        scale: match text("scale") {
            Some("seq_len") => GauScale::SeqLen,
            Some("constant") => GauScale::Constant,
            Some("position" | "d_qk") => GauScale::Position,
            other => panic!("{}: scale {other:?}", case.name),
        },
        scale_value: c["scale_value"].as_f64(),
        rope: c["rope"].as_bool().unwrap().then(RotaryConfig::default),
        causal: c["causal"].as_bool().unwrap(),
        bias: c["bias"].as_bool().unwrap(),
    }
}

#[test]
fn recorded_layers() -> Result<()> {
    for case in cases("layers", "gau__") {
        for (dtype, tolerance, grad) in [(DType::F64, 1e-11, 1e-10), (DType::F32, 1e-5, 1e-4)] {
            check(&case, dtype, tolerance, grad)?;
        }
    }
    Ok(())
}

fn check(case: &Case, dtype: DType, tolerance: f64, grad: f64) -> Result<()> {
    let what = format!("{} {dtype:?}", case.name);
    let d = case.config["d_model"].as_u64().unwrap() as usize;
    let parameters = case.parameters(str::to_owned);
    let vb = VarBuilder::new(parameters.clone(), dtype, Device::Cpu);
    let layer = Gau::new(d, &config(case), &vb)?;
    // Norm and residual are the stack's.
    let norm = NormConfig { kind: NormKind::Layer, eps: case.config["norm_eps"].as_f64().unwrap() };
    let norm = match case.config["norm"].as_str() {
        Some("layernorm") => Some(Norm::new(d, norm, &vb.pp("norm"))?),
        Some("none") => None,
        other => panic!("{}: norm {other:?}", case.name),
    };
    assert_eq!(parameters.unread(), Vec::<String>::new());
    let x = case.input("x", dtype)?;
    let normed = norm.as_ref().map_or(Ok(x.as_tensor().clone()), |n| n.forward(&x))?;
    let added = |y: Tensor, x: &Tensor| if case.config["residual"] == true { x + y } else { Ok(y) };
    let y = added(layer.forward(&normed, &mut Context::default())?, &x)?;
    assert_close(&what, &y, &case.get("out.y")?, tolerance);
    case.check_gradients(&[("y", &y)], &[("x", &x)], &parameters, grad)?;
    let matrix = layer.matrix(&normed)?.expect("a matrix").matrix;
    assert_close(&format!("{what} weights"), &matrix.squeeze(1)?, &case.get("extra.attention")?, tolerance);
    let (x, normed) = (x.as_tensor().detach(), normed.detach());
    let mut state = layer.new_state(x.dim(0)?)?;
    if !case.has("out.y_step") {
        let message = layer.step(&normed.i((.., 0))?.contiguous()?, &mut Context::with_state(&mut state));
        assert!(message.unwrap_err().to_string().contains("depends on the whole sequence"));
        return Ok(());
    }
    let steps = (0..x.dim(1)?).map(|t| {
        let y = layer.step(&normed.i((.., t))?.contiguous()?, &mut Context::with_state(&mut state))?;
        added(y, &x.i((.., t))?)
    });
    let steps = Tensor::stack(&steps.collect::<Result<Vec<_>>>()?, 1)?;
    assert_close(&format!("{what} steps"), &steps, &case.get("out.y_step")?, tolerance);
    Ok(())
}
