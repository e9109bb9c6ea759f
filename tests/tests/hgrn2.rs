//! HGRN2's lower bounds: one parameter of all layers.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use semisep_core::{Context, MixerConfig, VarBuilder, Variables};
use semisep_hgrn2::Hgrn2Config;
use semisep_tests::{assert_close, randn, values};

const D: usize = 12;
const LAYERS: usize = 4;

/// A stack's variables, off their initial values.
fn variables() -> Result<(Arc<Variables>, VarBuilder)> {
    let source = Arc::new(Variables::new(1));
    let vb = VarBuilder::new(source.clone(), DType::F64, Device::Cpu);
    Ok((source, vb))
}

fn config() -> Hgrn2Config {
    Hgrn2Config { expand_ratio: 4, ..Default::default() }
}

fn scatter(source: &Variables) -> Result<()> {
    for (i, (_, var)) in source.all().into_iter().enumerate() {
        var.set(&(var.as_tensor() + randn(60 + i as u64, var.dims(), DType::F64)?)?)?;
    }
    Ok(())
}

/// The layer by its equations, token by token, with plain numbers.
fn oracle(source: &Variables, layer: usize, x: &Tensor) -> Result<Tensor> {
    let vars = source.all();
    let get = |name: &str| vars[&format!("layers.{layer}.mixer.{name}.weight")].as_tensor().clone();
    let map = |name: &str| x.matmul(&get(name).t()?)?.to_vec2::<f64>();
    let (q, f, i) = (map("q_proj")?, map("f_proj")?, map("i_proj")?);
    let bounds = vars["lower_bounds"].to_vec2::<f64>()?;
    let share = |j: usize, c: usize| -> f64 {
        bounds[j][c].exp() / bounds.iter().map(|row| row[c].exp()).sum::<f64>()
    };
    let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
    let (n, weight) = (4, get("g_norm").to_vec1::<f64>()?);
    let mut state = [[0.0; 4]; D]; // row c: feature c of the keys against its head's values
    let mut out = Vec::new();
    for t in 0..q.len() {
        let mut y = [0.0; D];
        for c in 0..D {
            let bound: f64 = (1..=layer).map(|j| share(j, c)).sum();
            let keep = bound + (1.0 - bound) * sigmoid(f[t][c]);
            let head = c / n * n;
            for j in 0..n {
                state[c][j] = keep * state[c][j] + (1.0 - keep) * i[t][head + j];
                y[head + j] += q[t][c] * sigmoid(q[t][c]) / 2.0 * state[c][j];
            }
        }
        let root = (y.iter().map(|y| y * y).sum::<f64>() / D as f64 + 1e-5).sqrt();
        out.extend(y.iter().zip(&weight).map(|(y, w)| y / root * w));
    }
    Tensor::from_vec(out, (q.len(), D), &Device::Cpu)?.matmul(&get("o_proj").t()?)
}

#[test]
fn bounds_grow_from_layer_to_layer() -> Result<()> {
    let (source, vb) = variables()?;
    let layers: Vec<_> =
        (0..LAYERS).map(|i| config().build(D, vb.layer(i, LAYERS).pp("mixer"))).collect::<Result<_>>()?;
    scatter(&source)?;
    let common: Vec<String> =
        vb.groups().into_iter().map(|g| g.name).filter(|n| n == "lower_bounds").collect();
    assert_eq!(common.len(), 1, "counted once");
    let x = randn(2, &[1, 23, D], DType::F64)?;
    for (i, layer) in layers.iter().enumerate() {
        assert!(layer.parameter_groups().iter().all(|g| g.name != "lower_bounds"));
        let got = layer.forward(&x, &mut Context::default())?;
        assert_close(&format!("layer {i}"), &got.squeeze(0)?, &oracle(&source, i, &x.squeeze(0)?)?, 1e-12);
    }
    Ok(())
}

/// Bounds that are not trained are found once: the same values.
#[test]
fn loaded_bounds_are_those_of_training() -> Result<()> {
    let (source, vb) = variables()?;
    let x = randn(2, &[2, 9, D], DType::F64)?;
    let config = config();
    let trained = config.build(D, vb.layer(2, LAYERS).pp("mixer"))?.forward(&x, &mut Context::default())?;
    drop(source);
    let seeded = VarBuilder::seeded(1, DType::F64, Device::Cpu);
    let loaded = config.build(D, seeded.layer(2, LAYERS).pp("mixer"))?;
    for _ in 0..2 {
        assert_close("loaded", &loaded.forward(&x, &mut Context::default())?, &trained, 1e-15);
    }
    Ok(())
}

#[test]
fn bounds_learn() -> Result<()> {
    let (source, vb) = variables()?;
    let layer = config().build(D, vb.layer(2, LAYERS).pp("mixer"))?;
    scatter(&source)?;
    let bounds: Var = source.all()["lower_bounds"].clone();
    let x = randn(2, &[2, 9, D], DType::F64)?;
    let cotangent = randn(3, &[2, 9, D], DType::F64)?;
    let loss = || (layer.forward(&x, &mut Context::default())? * &cotangent)?.sum_all();
    let grad = loss()?.backward()?.get(&bounds).unwrap().clone();
    assert!(values(&grad)?.iter().all(|g| g.is_finite() && *g != 0.0));
    let direction = randn(4, bounds.dims(), DType::F64)?;
    let analytic = (&grad * &direction)?.sum_all()?.to_scalar::<f64>()?;
    let start = bounds.as_tensor().copy()?;
    let at = |eps: f64| -> Result<f64> {
        bounds.set(&(&start + (&direction * eps)?)?)?;
        loss()?.to_scalar::<f64>()
    };
    const EPS: f64 = 1e-4;
    let numeric = (8.0 * (at(EPS)? - at(-EPS)?) - (at(2.0 * EPS)? - at(-2.0 * EPS)?)) / (12.0 * EPS);
    assert!((analytic - numeric).abs() < 1e-7 * analytic.abs().max(1e-2), "{analytic} {numeric}");
    Ok(())
}
