//! Facts of the RWKV layers that implementations get wrong, one a test.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use semisep_core::{Context, Mixer, MixerConfig, ParameterGroup, Rng, Shared, Source, State, VarBuilder};
use semisep_rwkv::{Layout, Rwkv4Config, Rwkv5Config, Rwkv6Config, Rwkv7Config, RwkvChannelMixConfig};
use semisep_tests::{assert_close, randn, values};

/// Seeded parameters, but for those given: by name, one value everywhere. Keeps what it gave.
#[derive(Default)]
struct Given {
    values: BTreeMap<&'static str, f64>,
    made: Mutex<BTreeMap<String, Tensor>>,
}

impl Given {
    fn new(values: &[(&'static str, f64)]) -> Arc<Self> {
        Arc::new(Self { values: values.iter().copied().collect(), ..Self::default() })
    }
}

impl Source for Given {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut rng = Rng::named(5, &p.name);
        let values: Vec<f64> = (0..p.elements())
            .map(|_| self.values.get(p.name.as_str()).copied().unwrap_or_else(|| 0.4 * rng.normal()))
            .collect();
        let t = Tensor::from_vec(values, p.shape.as_slice(), device)?.to_dtype(dtype)?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(p.name.clone(), t.clone());
        Ok(t)
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}

/// Parameters by name, handed out as they are.
struct Named(BTreeMap<String, Tensor>);

impl Source for Named {
    fn get(&self, p: &ParameterGroup, dtype: DType, _: &Device) -> Result<Tensor> {
        match self.0.get(&p.name) {
            Some(t) => t.to_dtype(dtype),
            None => candle_core::bail!("no parameter {}", p.name),
        }
    }

    fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

fn build(config: &dyn MixerConfig, d: usize, source: Arc<dyn Source>) -> Result<Box<dyn Mixer>> {
    assert!(config.check(d).is_empty(), "{:?}", config.check(d));
    config.build(d, VarBuilder::new(source, DType::F64, Device::Cpu))
}

fn forward(mixer: &dyn Mixer, x: &Tensor) -> Result<Tensor> {
    mixer.forward(x, &mut Context::default())
}

/// `M[t,s] / M[t,s+1]` of the first head over a constant input: the decay of a token.
fn decay(mixer: &dyn Mixer, d: usize) -> Result<f64> {
    let x = randn(1, &[1, 1, d], DType::F64)?.broadcast_as((1, 8, d))?.contiguous()?;
    let Some(mixing) = mixer.matrix(&x)? else { candle_core::bail!("no matrix") };
    let at = |t: usize, s: usize| mixing.matrix.i((0, 0, t, s))?.to_scalar::<f64>();
    // Token 0 has nothing before it: from token 1 on all are alike.
    Ok(at(7, 3)? / at(7, 4)?)
}

#[test]
fn the_decay_of_rwkv4_is_minus_exp_in_the_exponent() -> Result<()> {
    let mixer = build(&Rwkv4Config::default(), 4, Given::new(&[("time_decay", 0.3)]))?;
    assert!((decay(&*mixer, 4)?.ln() + 0.3f64.exp()).abs() < 1e-12);
    Ok(())
}

#[test]
fn the_decay_of_rwkv5_and_6_is_exp_minus_exp() -> Result<()> {
    let rwkv5 = Rwkv5Config { head_size: 1, ..Default::default() };
    let mixer = build(&rwkv5, 4, Given::new(&[("time_decay", 0.3)]))?;
    assert!((decay(&*mixer, 4)?.ln() + 0.3f64.exp()).abs() < 1e-12);
    let rwkv6 = Rwkv6Config { head_size: 1, d_mix_lora: 2, d_decay_lora: 2, ..Default::default() };
    let mixer = build(&rwkv6, 4, Given::new(&[("time_decay", 0.3), ("time_decay_w2", 0.0)]))?;
    assert!((decay(&*mixer, 4)?.ln() + 0.3f64.exp()).abs() < 1e-12);
    Ok(())
}

#[test]
fn the_decay_of_rwkv7_is_bounded_by_exp_of_minus_root_e() -> Result<()> {
    let config = Rwkv7Config {
        head_size: 1,
        d_decay_lora: Some(2),
        d_aaa_lora: Some(2),
        d_gate_lora: Some(2),
        value_residual: false,
        ..Default::default()
    };
    // Without a learning rate nothing is removed from the state but by the decay.
    for (w0, share) in [(0.3, 1.0 / (1.0 + (-0.3f64).exp())), (80.0, 1.0), (-80.0, 0.0)] {
        let mixer = build(&config, 4, Given::new(&[("w0", w0), ("w2", 0.0), ("a0", -800.0), ("a2", 0.0)]))?;
        let want = -(-0.5f64).exp() * share;
        assert!((decay(&*mixer, 4)?.ln() - want).abs() < 1e-12, "w0 = {w0}");
    }
    Ok(())
}

/// RWKV-4 and 5 store the share of the token itself, 6 and 7 that of the one before.
#[test]
fn a_mix_of_one_is_the_token_before_version_6_and_the_past_from_it_on() -> Result<()> {
    let x = randn(1, &[1, 5, 4], DType::F64)?;
    let past = Tensor::cat(&[&x.narrow(1, 0, 1)?.zeros_like()?, &x.narrow(1, 0, 4)?], 1)?;
    for version in 4..=7 {
        let config = RwkvChannelMixConfig { dim_ffn: Some(6), ..RwkvChannelMixConfig::new(version) };
        let names = ["time_mix_k", "time_mix_r", "time_maa_k", "time_maa_r", "x_k"];
        let source = Given::new(&names.map(|name| (name, 1.0)));
        let y = forward(&*build(&config, 4, source.clone())?, &x)?;
        let read = if version < 6 { &x } else { &past };
        let made = source.made.lock().unwrap();
        let map = |name: &str, x: &Tensor| x.broadcast_matmul(&made[&format!("{name}.weight")].t()?);
        let mut want = map("value", &map("key", read)?.relu()?.sqr()?)?;
        if version < 7 {
            want = (want / (map("receptance", read)?.neg()?.exp()? + 1.0)?)?;
        }
        assert_close(&format!("version {version}"), &y, &want, 1e-13);
    }
    Ok(())
}

/// fla's file of the same layer: factors turned, mixes in another order.
#[test]
fn rwkv6_mixes_are_in_the_order_of_their_layout() -> Result<()> {
    let (d, rank) = (8, 3);
    let pth = Rwkv6Config { head_size: 4, d_mix_lora: rank, d_decay_lora: 5, ..Default::default() };
    let source = Given::new(&[]);
    let x = randn(1, &[2, 9, d], DType::F64)?;
    let want = forward(&*build(&pth, d, source.clone())?, &x)?;
    let mut t = source.made.lock().unwrap().clone();
    // From w, k, v, r, g to r, w, k, v, g.
    let order = [3, 0, 1, 2, 4];
    let mixes = ["time_maa_w", "time_maa_k", "time_maa_v", "time_maa_r", "time_maa_g"];
    let x_bias = order.map(|j| t[mixes[j]].clone());
    let down = order.map(|j| t["time_maa_w1"].narrow(1, j * rank, rank).unwrap());
    let up = order.map(|j| t["time_maa_w2"].get(j).unwrap().t().unwrap());
    t.insert("x_bias".into(), Tensor::stack(&x_bias, 0)?);
    t.insert("x_proj.0.linear.weight".into(), Tensor::cat(&down, 1)?.t()?.contiguous()?);
    t.insert("x_proj.2.weight".into(), Tensor::cat(&up, 1)?);
    t.insert("w_proj.linear.lora.0.weight".into(), t["time_decay_w1"].t()?.contiguous()?);
    t.insert("w_proj.linear.lora.2.weight".into(), t["time_decay_w2"].t()?.contiguous()?);
    let fla = Rwkv6Config { layout: Layout::Fla, ..pth };
    assert_close("fla", &forward(&*build(&fla, d, Arc::new(Named(t)))?, &x)?, &want, 1e-13);
    Ok(())
}

/// What a first layer leaves is its values before anything is mixed into them, and a later one asks for it.
#[test]
fn rwkv7_values_of_the_first_layer_reach_the_others() -> Result<()> {
    let later = Rwkv7Config {
        head_size: 4,
        d_decay_lora: Some(2),
        d_aaa_lora: Some(2),
        d_mv_lora: Some(2),
        d_gate_lora: Some(2),
        ..Default::default()
    };
    let first = Rwkv7Config { value_residual: false, ..later.clone() };
    let x = randn(1, &[2, 6, 8], DType::F64)?;
    let mut shared = Shared::default();
    let mut ctx = Context { shared: Some(&mut shared), ..Context::default() };
    let y = build(&first, 8, Given::new(&[]))?.forward(&x, &mut ctx)?;
    let values = shared.get("v_first").cloned().unwrap();
    assert_eq!(values.dims(), [2, 6, 8]);
    // The same weights, the gate open or shut: with the layer's own values, that changes nothing.
    for v0 in [-40.0, 0.0, 40.0] {
        let mixer = build(&later, 8, Given::new(&[("v0", v0), ("v2", 0.0)]))?;
        assert_eq!(mixer.receives(), [("v_first", 8)]);
        let same = mixer.forward(&x, &mut Context { shared: Some(&mut shared), ..Context::default() })?;
        assert_close(&format!("own values, v0 = {v0}"), &same, &y, 1e-13);
    }
    // Shut, it does not matter what came before; open, it does.
    let other = (values * 2.0)?;
    for (v0, matters) in [(-80.0, false), (0.0, true)] {
        let mixer = build(&later, 8, Given::new(&[("v0", v0), ("v2", 0.0)]))?;
        let mut shared = Shared::default();
        shared.set("v_first", other.clone());
        let got = mixer.forward(&x, &mut Context { shared: Some(&mut shared), ..Context::default() })?;
        let moved = semisep_tests::relative_rms(&got, &y)?;
        assert_eq!(moved > 1e-3, matters, "v0 = {v0}: {moved}");
    }
    let error = forward(&*build(&later, 8, Given::new(&[]))?, &x).unwrap_err().to_string();
    assert!(error.contains("no earlier layer leaves `v_first`"), "{error}");
    assert!(error.contains("value_residual = false"), "{error}");
    Ok(())
}

/// Files of tuned states have values before keys, for 5 and 6 as for 7.
#[test]
fn a_learnt_state_is_where_all_sequences_start() -> Result<()> {
    let rwkv6 = Rwkv6Config {
        head_size: 4,
        dim_value: Some(24),
        d_mix_lora: 2,
        d_decay_lora: 2,
        ..Default::default()
    };
    let rwkv7 =
        Rwkv7Config { head_size: 4, dim_value: Some(24), value_residual: false, ..Default::default() };
    let configs: [(Box<dyn MixerConfig>, Box<dyn MixerConfig>); 2] = [
        (Box::new(Rwkv6Config { time_state: true, ..rwkv6.clone() }), Box::new(rwkv6)),
        (Box::new(Rwkv7Config { time_state: true, ..rwkv7.clone() }), Box::new(rwkv7)),
    ];
    let x = randn(1, &[3, 5, 8], DType::F64)?;
    for (learnt, plain) in configs {
        let source = Given::new(&[]);
        let learnt = build(&*learnt, 8, source.clone())?;
        let time_state = source.made.lock().unwrap()["time_state"].clone();
        assert_eq!(time_state.dims(), [2, 12, 4]);
        let plain = build(&*plain, 8, source)?;
        let mut state: State = plain.new_state(3)?;
        state.set("wkv", time_state.t()?.broadcast_as((3, 2, 4, 12))?.contiguous()?)?;
        let want = plain.forward(&x, &mut Context::with_state(&mut state))?;
        assert_close("without a state", &forward(&*learnt, &x)?, &want, 1e-14);
        let mut state = learnt.new_state(3)?;
        assert_close(
            "its own state",
            &learnt.forward(&x, &mut Context::with_state(&mut state))?,
            &want,
            1e-14,
        );
        // Packed: each sequence starts there.
        let (flat, cu) = (x.reshape((1, 15, 8))?, [0, 5, 10, 15]);
        let packed = learnt.forward(&flat, &mut Context::packed(&cu))?;
        assert_close("packed", &packed.reshape((3, 5, 8))?, &want, 1e-13);
    }
    Ok(())
}

/// A decode step with several rows must not mix them.
#[test]
fn rows_of_a_step_do_not_mix() -> Result<()> {
    let configs: [Box<dyn MixerConfig>; 4] = [
        Box::new(Rwkv4Config::default()),
        Box::new(Rwkv5Config { head_size: 4, ..Default::default() }),
        Box::new(Rwkv6Config { head_size: 4, ..Default::default() }),
        Box::new(Rwkv7Config { head_size: 4, value_residual: false, ..Default::default() }),
    ];
    let x = randn(1, &[3, 4, 8], DType::F64)?;
    for config in configs {
        let mixer = build(&*config, 8, Given::new(&[]))?;
        let run = |rows: &Tensor| -> Result<Tensor> {
            let mut state = mixer.new_state(rows.dim(0)?)?;
            let steps = (0..4)
                .map(|t| mixer.step(&rows.i((.., t))?.contiguous()?, &mut Context::with_state(&mut state)));
            Tensor::stack(&steps.collect::<Result<Vec<_>>>()?, 1)
        };
        let all = run(&x)?;
        for i in 0..3 {
            assert_close(config.kind(), &all.narrow(0, i, 1)?, &run(&x.narrow(0, i, 1)?)?, 1e-14);
        }
    }
    Ok(())
}

/// A removal key of zeros stays one: it has no direction to be brought to unit length.
#[test]
fn rwkv7_keys_of_zeros_give_no_nan() -> Result<()> {
    let config = Rwkv7Config { head_size: 4, value_residual: false, ..Default::default() };
    let mixer = build(&config, 8, Given::new(&[("key.weight", 0.0)]))?;
    for dtype in [DType::F64, DType::F32] {
        let mixer = match dtype {
            DType::F64 => &mixer,
            _ => &config.build(8, VarBuilder::new(Given::new(&[("key.weight", 0.0)]), dtype, Device::Cpu))?,
        };
        let y = forward(&**mixer, &randn(1, &[1, 5, 8], dtype)?)?;
        assert!(values(&y)?.iter().all(|v| v.is_finite()));
    }
    Ok(())
}

#[test]
fn wrong_configurations_name_their_key() {
    let issue = |config: &dyn MixerConfig| config.check(16).into_iter().map(|i| i.key).collect::<Vec<_>>();
    assert_eq!(issue(&Rwkv5Config { head_size: 5, ..Default::default() }), ["head_size"]);
    assert_eq!(
        issue(&Rwkv6Config { head_size: 8, dim_value: Some(15), ..Default::default() }),
        ["dim_value"]
    );
    assert_eq!(issue(&Rwkv7Config { head_size: 8, d_mv_lora: Some(0), ..Default::default() }), ["d_mv_lora"]);
    let wrong = Rwkv7Config { head_size: 8, norm_eps: -1.0, init_depth: 2.0, ..Default::default() };
    assert_eq!(issue(&wrong), ["norm_eps", "init_depth"]);
    assert_eq!(issue(&RwkvChannelMixConfig::new(3)), ["version"]);
    assert_eq!(RwkvChannelMixConfig::new(6).dim_ffn(2048), 7168);
    assert_eq!(RwkvChannelMixConfig::new(7).dim_ffn(2048), 8192);
}
