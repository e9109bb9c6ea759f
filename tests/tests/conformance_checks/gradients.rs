//! Gradients against central differences of fourth order in f64, along one random direction a tensor.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use semisep_core::{Context, Mixer, MixerConfig, State, VarBuilder, Variables};
use semisep_tests::{randn, values};

const L: usize = 19;
const EPS: f64 = 3e-5;

/// A layer and its variables by name.
type Trainable = (Box<dyn Mixer>, Vec<(String, Var)>);

/// Variables of every parameter, moved off their symmetric initial values.
fn trainable(config: &dyn MixerConfig, d: usize) -> Result<Trainable> {
    let source = Arc::new(Variables::new(3));
    let mixer = super::build_from(config, d, VarBuilder::new(source.clone(), DType::F64, Device::Cpu))?;
    let vars: Vec<(String, Var)> = source.all().into_iter().collect();
    for (i, (_, var)) in vars.iter().enumerate() {
        let noise = randn(100 + i as u64, var.dims(), DType::F64)?;
        var.set(&(var.as_tensor() + (noise * 0.1)?)?)?;
    }
    Ok((mixer, vars))
}

/// Compares `grads` of `loss` with differences along a direction, for each variable.
fn compare(vars: &[(String, Var)], loss: &dyn Fn() -> Result<Tensor>) -> Result<()> {
    let grads = loss()?.backward()?;
    for (i, (name, var)) in vars.iter().enumerate() {
        let Some(grad) = grads.get(var) else { panic!("{name}: no gradient") };
        assert!(values(grad)?.iter().all(|g| g.is_finite()), "{name}: gradient not finite");
        assert!(values(grad)?.iter().any(|&g| g != 0.0), "{name}: gradient is zero");
        let direction = randn(200 + i as u64, var.dims(), DType::F64)?;
        let analytic = (grad * &direction)?.sum_all()?.to_scalar::<f64>()?;
        let start = var.as_tensor().copy()?;
        let at = |eps: f64| -> Result<f64> {
            var.set(&(&start + (&direction * eps)?)?)?;
            loss()?.to_scalar::<f64>()
        };
        let (near, far) = (at(EPS)? - at(-EPS)?, at(2.0 * EPS)? - at(-2.0 * EPS)?);
        let numeric = (8.0 * near - far) / (12.0 * EPS);
        var.set(&start)?;
        let scale = analytic.abs().max(numeric.abs()).max(1e-3);
        assert!(
            (analytic - numeric).abs() < 1e-6 * scale,
            "{name}: gradient {analytic}, difference {numeric}"
        );
    }
    Ok(())
}

pub(crate) fn gradients(config: &dyn MixerConfig, d: usize) -> Result<()> {
    let (mixer, mut vars) = trainable(config, d)?;
    let groups = mixer.parameter_groups();
    assert_eq!(groups.len(), vars.len(), "parameter_groups lists every parameter");
    let x = Var::from_tensor(&randn(1, &[2, L, d], DType::F64)?)?;
    vars.push(("input".into(), x.clone()));
    let cotangent = randn(2, &[2, L, d], DType::F64)?;
    compare(&vars, &|| (mixer.forward(x.as_tensor(), &mut Context::default())? * &cotangent)?.sum_all())?;
    // The same over packed sequences.
    let flat = Var::from_tensor(&randn(3, &[1, L, d], DType::F64)?)?;
    let cotangent = randn(4, &[1, L, d], DType::F64)?;
    compare(&[("packed input".into(), flat.clone())], &|| {
        let y = mixer.forward(flat.as_tensor(), &mut Context::packed(&[0, 5, 5, 6, L]))?;
        (y * &cotangent)?.sum_all()
    })
}

/// A loss on the final state and on what was read from the one before reaches the tokens behind both. (A state that is a
/// short window forgets the earlier ones: only the outputs then know of them.)
pub(crate) fn state_gradients(config: &dyn MixerConfig, d: usize) -> Result<()> {
    let (mixer, _) = trainable(config, d)?;
    let names: Vec<String> =
        mixer.new_state(1)?.tensors()?.into_keys().filter(|name| name != "seen").collect();
    if names.is_empty() || !mixer.causal() {
        return Ok(());
    }
    let early = Var::from_tensor(&randn(1, &[2, 3, d], DType::F64)?)?;
    let late = Var::from_tensor(&randn(2, &[2, 4, d], DType::F64)?)?;
    let vars = [("tokens before".to_string(), early.clone()), ("tokens after".to_string(), late.clone())];
    compare(&vars, &|| {
        let mut state: State = mixer.new_state(2)?;
        mixer.forward(early.as_tensor(), &mut Context::with_state(&mut state))?;
        let y = mixer.forward(late.as_tensor(), &mut Context::with_state(&mut state))?;
        let mut loss = (&y * randn(49, y.dims(), DType::F64)?)?.sum_all()?;
        for (i, name) in names.iter().enumerate() {
            let entry = state.get(name)?;
            loss = (loss + (entry * randn(50 + i as u64, entry.dims(), DType::F64)?)?.sum_all()?)?;
        }
        Ok(loss)
    })
}
