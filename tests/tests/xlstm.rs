//! The mLSTM against its equations, and at the ends of its gates.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{Context, Mixer, MixerConfig, ParameterGroup, Rng, Source, VarBuilder};
use semisep_tests::{assert_close, randn, values};
use semisep_xlstm::MlstmConfig;

const D: usize = 12;

/// Normal parameters, kept as they were given out; gates far wider than the rest.
#[derive(Default)]
struct Drawn {
    gates: f64,
    made: Mutex<BTreeMap<String, Tensor>>,
}

impl Source for Drawn {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut rng = Rng::named(5, &p.name);
        let scale = if p.name.contains("gate_preact") && !p.name.starts_with('o') { self.gates } else { 0.4 };
        let values: Vec<f64> = (0..p.elements()).map(|_| scale * rng.normal()).collect();
        let t = Tensor::from_vec(values, p.shape.as_slice(), device)?.to_dtype(dtype)?;
        self.made.lock().unwrap().insert(p.name.clone(), t.clone());
        Ok(t)
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}

fn build(config: &MlstmConfig, gates: f64, dtype: DType) -> Result<(Arc<Drawn>, Box<dyn Mixer>)> {
    assert!(config.check(D).is_empty(), "{:?}", config.check(D));
    let source = Arc::new(Drawn { gates, ..Drawn::default() });
    let mixer = config.build(D, VarBuilder::new(source.clone(), dtype, Device::Cpu))?;
    Ok((source, mixer))
}

/// The layer of one sequence (l, d), token by token with plain numbers, states as they are: no running maximum but in the
/// small number added to the normaliser, which the reference adds to a normaliser divided by `exp(m)`.
fn oracle(config: &MlstmConfig, source: &Drawn, x: &Tensor) -> Result<Tensor> {
    let made = source.made.lock().unwrap();
    let map = |name: &str| -> Result<Vec<Vec<f64>>> {
        let y = x.matmul(&made[&format!("{name}.weight")].t()?)?;
        match made.get(&format!("{name}.bias")) {
            Some(bias) => y.broadcast_add(bias)?.to_vec2(),
            None => y.to_vec2(),
        }
    };
    let ((n, p), h) = (config.head_dims(D), config.num_heads);
    let (q, k, v, o) = (map("q")?, map("k")?, map("v")?, map("ogate_preact")?);
    let (input, forget) = (map("igate_preact")?, map("fgate_preact")?);
    let cap = |z: f64| config.gate_soft_cap.map_or(z, |cap| cap * (z / cap).tanh());
    let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
    let weight = made["multihead_norm.weight"].to_vec1::<f64>()?;
    let bias = made.get("multihead_norm.bias").map(|b| b.to_vec1::<f64>()).transpose()?;
    let mut memory = vec![vec![vec![0.0; p + 1]; n]; h];
    let (mut max, mut gated) = (vec![0.0f64; h], Vec::new());
    for t in 0..q.len() {
        for j in 0..h {
            let (keep, gain) = (sigmoid(cap(forget[t][j])), cap(input[t][j]).exp());
            max[j] = (keep.ln() + max[j]).max(cap(input[t][j]));
            let mut y = vec![0.0; p + 1];
            for (c, row) in memory[j].iter_mut().enumerate() {
                for (e, cell) in row.iter_mut().enumerate() {
                    let value = if e < p { v[t][j * p + e] } else { 1.0 };
                    *cell = keep * *cell + gain * k[t][j * n + c] * value;
                    y[e] += q[t][j * n + c] / (n as f64).sqrt() * *cell;
                }
            }
            let denominator = y[p].abs().max(1.0) + config.eps * max[j].exp();
            let y: Vec<f64> = y[..p].iter().map(|y| y / denominator).collect();
            let mean = y.iter().sum::<f64>() / p as f64;
            let var = y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / p as f64;
            gated.extend(y.iter().enumerate().map(|(e, y)| {
                let at = j * p + e;
                let normed = (y - mean) / (var + config.norm_eps).sqrt() * weight[at];
                (normed + bias.as_ref().map_or(0.0, |b| b[at])) * sigmoid(o[t][at])
            }));
        }
    }
    let y = Tensor::from_vec(gated, (q.len(), h * p), &Device::Cpu)?;
    let y = y.matmul(&made["out_proj.weight"].t()?)?;
    made.get("out_proj.bias").map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
}

#[test]
fn the_stabilised_scan_is_the_recurrence() -> Result<()> {
    let plain = MlstmConfig { num_heads: 3, gate_soft_cap: Some(2.0), ..Default::default() };
    let wide = MlstmConfig {
        num_heads: 2,
        qk_dim_factor: 1.5,
        v_dim_factor: 0.5,
        gate_soft_cap: None,
        use_bias: true,
        norm_eps: 1e-3,
        eps: 1e-2,
        ..Default::default()
    };
    let x = randn(1, &[2, 70, D], DType::F64)?;
    for config in [plain, wide] {
        for gates in [0.4, 2.0] {
            let (source, mixer) = build(&config, gates, DType::F64)?;
            let got = mixer.forward(&x, &mut Context::default())?;
            for row in 0..2 {
                let want = oracle(&config, &source, &x.get(row)?)?;
                assert_close(&format!("{config:?} {gates}"), &got.get(row)?, &want, 1e-10);
            }
        }
    }
    Ok(())
}

/// Input gates of exp(±several hundred), which neither f32 nor f64 holds: finite, and the same in both.
#[test]
fn gates_without_bounds() -> Result<()> {
    let config = MlstmConfig { num_heads: 2, gate_soft_cap: None, ..Default::default() };
    let x = randn(1, &[1, 40, D], DType::F64)?;
    let run = |dtype| -> Result<Tensor> {
        let (_, mixer) = build(&config, 300.0, dtype)?;
        mixer.forward(&x.to_dtype(dtype)?, &mut Context::default())
    };
    let (wide, narrow) = (run(DType::F64)?, run(DType::F32)?);
    assert!(values(&wide)?.iter().chain(&values(&narrow)?).all(|y| y.is_finite()));
    assert_close("f32", &narrow, &wide, 1e-3);
    Ok(())
}

#[test]
fn configurations_say_what_is_wrong() {
    let config = MlstmConfig { num_heads: 5, gate_soft_cap: Some(-1.0), eps: f64::NAN, ..Default::default() };
    let keys: Vec<String> = config.check(D).into_iter().map(|issue| issue.key).collect();
    assert_eq!(keys, ["num_heads", "num_heads", "eps", "gate_soft_cap"]);
}
