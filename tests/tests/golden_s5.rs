//! S5 against the values of lindermanlab/S5, and identities of the model.

use candle_core::{DType, Device, Result, Tensor, Var};
use semisep_core::{Context, Mixer, MixerConfig, Shared, State, VarBuilder};
use semisep_s5::{Activation, Intervals, S5, S5Config};
use semisep_tests::{Case, assert_close, cases, randn};
use serde_json::{Value, json};

/// Outputs and states; gradients.
const LADDER: [(DType, f64, f64); 2] = [(DType::F64, 1e-11, 1e-10), (DType::F32, 1e-5, 1e-4)];

/// The record's options in our words, which are those of the reference but for its sizes.
fn config(case: &Case) -> S5Config {
    let c = &case.config;
    let layer = &c["layer"];
    assert!(!layer["batchnorm"].as_bool().unwrap_or(false), "{}: batch norm", case.name);
    let mut table = json!({
        "d_state": c["P"], "blocks": c["blocks"], "C_init": c["C_init"], "discretization": c["discretization"],
        "conj_sym": c["conj_sym"], "clip_eigs": c["clip_eigs"], "bidirectional": c["bidirectional"],
        "step_rescale": c["step_rescale"], "activation": "none",
    });
    if let Value::Object(layer) = layer {
        table["activation"] = layer["activation"].clone();
        table["prenorm"] = layer["prenorm"].clone();
    }
    serde_json::from_value(table).unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

/// (1, 2, P) as (P, 2).
fn pairs(state: &Tensor) -> Result<Tensor> {
    state.squeeze(0)?.t()
}

/// The last state (P, 2) of `x ← Λ̄ x + B̄ u` over the tokens of u (l, d), one number after the other.
fn recurrence(lambda: &Tensor, b: &Tensor, u: &Tensor) -> Result<Tensor> {
    let (lambda, b) =
        (lambda.to_dtype(DType::F64)?.to_vec2::<f64>()?, b.to_dtype(DType::F64)?.to_vec3::<f64>()?);
    let mut x = vec![vec![0.0; 2]; lambda.len()];
    for u in u.to_dtype(DType::F64)?.to_vec2::<f64>()? {
        for ((x, a), b) in x.iter_mut().zip(&lambda).zip(&b) {
            let input = |k: usize| -> f64 { b.iter().zip(&u).map(|(b, u)| b[k] * u).sum() };
            (x[0], x[1]) = (a[0] * x[0] - a[1] * x[1] + input(0), a[0] * x[1] + a[1] * x[0] + input(1));
        }
    }
    Tensor::new(x, &Device::Cpu)
}

fn check(case: &Case, dtype: DType, tolerance: f64, gradient: f64) -> Result<()> {
    let config = config(case);
    let source = case.parameters(str::to_owned);
    let u = case.input("u", dtype)?;
    let (l, d) = u.dims2()?;
    assert!(config.check(d).is_empty(), "{}: {:?}", case.name, config.check(d));
    let layer = S5::new(d, &config, &VarBuilder::new(source.clone(), dtype, Device::Cpu))?;
    assert!(source.unread().is_empty(), "{}: {:?} not read", case.name, source.unread());
    let what = |name: &str| format!("{} {name} {dtype:?}", case.name);

    let x = u.unsqueeze(0)?;
    let y = layer.forward(&x, &mut Context::default())?.squeeze(0)?;
    assert_close(&what("y"), &y, &case.get("out.y")?, tolerance);
    case.check_gradients(&[("y", &y)], &[("u", &u)], &source, gradient)?;
    if case.has("out.Lambda_bar") {
        let (lambda, b) = layer.discretized()?;
        assert_close(&what("Lambda_bar"), &lambda, &case.get("out.Lambda_bar")?, tolerance);
        assert_close(&what("B_bar"), &b, &case.get("out.B_bar")?, tolerance);
        if config.bidirectional {
            let last = recurrence(&lambda, &b, &u)?;
            assert_close(&what("final_state"), &last, &case.get("out.final_state")?, tolerance);
            return Ok(());
        }
    }
    let mut state = layer.new_state(1)?;
    let x = x.detach();
    layer.forward(&x, &mut Context::with_state(&mut state))?;
    let mut stepped = layer.new_state(1)?;
    for t in 0..l {
        let y_t = layer.step(&x.narrow(1, t, 1)?.squeeze(1)?, &mut Context::with_state(&mut stepped))?;
        assert_close(&what("step"), &y_t, &case.get("out.y")?.narrow(0, t, 1)?, 10.0 * tolerance);
    }
    if case.has("out.final_state") {
        for state in [&state, &stepped] {
            let got = pairs(state.get("ssm")?)?;
            assert_close(&what("final_state"), &got, &case.get("out.final_state")?, tolerance);
        }
    }
    Ok(())
}

#[test]
fn recorded_cases() -> Result<()> {
    for case in cases("s5", "") {
        for (dtype, tolerance, gradient) in LADDER {
            check(&case, dtype, tolerance, gradient)?;
        }
    }
    Ok(())
}

fn seeded(config: &S5Config, d: usize, dtype: DType) -> Result<S5> {
    assert!(config.check(d).is_empty());
    S5::new(d, config, &VarBuilder::seeded(5, dtype, Device::Cpu))
}

/// `clip_eigs` holds an eigenvalue that has drifted to the right of the axis; without it the layer says which one grows.
#[test]
fn unstable_eigenvalues_are_named_or_clipped() -> Result<()> {
    let config = S5Config { d_state: 4, ..Default::default() };
    for clip_eigs in [true, false] {
        let source = std::sync::Arc::new(semisep_core::Variables::new(1));
        let vb = VarBuilder::new(source.clone(), DType::F32, Device::Cpu);
        let layer = S5::new(8, &S5Config { clip_eigs, ..config.clone() }, &vb)?;
        let vars = source.all();
        vars["seq.Lambda_re"].set(&Tensor::new(&[-0.5f32, 40.0], &Device::Cpu)?)?;
        vars["seq.log_step"].set(&Tensor::zeros((2, 1), DType::F32, &Device::Cpu)?)?;
        let x = randn(1, &[1, 50, 8], DType::F32)?;
        match layer.forward(&x, &mut Context::default()) {
            Ok(y) => assert!(clip_eigs && y.sum_all()?.to_scalar::<f32>()?.is_finite()),
            Err(e) => {
                let text = e.to_string();
                assert!(
                    !clip_eigs && text.contains("Lambda_re[1] is 40") && text.contains("clip_eigs"),
                    "{text}"
                );
            }
        }
    }
    Ok(())
}

/// Equal intervals of one unit are the fixed step; an interval of two units is `step_rescale = 2`.
#[test]
fn given_intervals() -> Result<()> {
    let fixed = S5Config { d_state: 8, ..Default::default() };
    let given = S5Config { dt: Intervals::Given, ..fixed.clone() };
    let x = randn(1, &[2, 20, 6], DType::F64)?;
    let layer = seeded(&given, 6, DType::F64)?;
    assert_eq!(layer.receives(), [("intervals", 1)]);
    for unit in [1.0, 2.0] {
        let want = seeded(&S5Config { step_rescale: unit, ..fixed.clone() }, 6, DType::F64)?
            .forward(&x, &mut Context::default())?;
        let mut shared = Shared::default();
        shared.set("intervals", Tensor::full(unit, (2, 20, 1), &Device::Cpu)?);
        let y = layer.forward(&x, &mut Context { shared: Some(&mut shared), ..Default::default() })?;
        assert_close("intervals", &y, &want, 1e-12);
    }
    let error = layer.forward(&x, &mut Context::default()).map(drop);
    assert!(error.is_err_and(|e| e.to_string().contains("intervals")));
    Ok(())
}

/// Long inputs are taken in pieces where nothing is trained; the result is the same.
#[test]
fn long_inference_equals_training() -> Result<()> {
    let layer = seeded(&S5Config { d_state: 8, ..Default::default() }, 4, DType::F64)?;
    let x = Var::from_tensor(&randn(2, &[2, 9000, 4], DType::F64)?)?;
    let want = layer.forward(x.as_tensor(), &mut Context::default())?;
    let mut state = layer.new_state(2)?;
    let y = layer.forward(&x.detach(), &mut Context::with_state(&mut state))?;
    assert_close("long", &y, &want, 1e-12);
    assert_eq!(state.seen(), [9000, 9000]);
    Ok(())
}

/// Several banks read one state: each equals a layer of its own output map.
#[test]
fn banks_share_one_state() -> Result<()> {
    let config = S5Config { d_state: 8, activation: Activation::None, ..Default::default() };
    let banks = config.build_banks(6, 3, VarBuilder::seeded(5, DType::F64, Device::Cpu))?;
    let x = randn(3, &[2, 11, 6], DType::F64)?;
    let mut state: State = banks.new_state(2)?;
    let y = banks.forward(&x, &mut Context::with_state(&mut state))?;
    assert_eq!(y.dims(), [2, 11, 3, 6]);
    let groups = banks.parameter_groups();
    let shape = |name: &str| groups.iter().find(|g| g.name == name).map(|g| g.shape.clone());
    assert_eq!((shape("C"), shape("D")), (Some(vec![3, 6, 4, 2]), Some(vec![3, 6])));
    let mut stepped = banks.new_state(2)?;
    for t in 0..11 {
        let token = x.narrow(1, t, 1)?.squeeze(1)?;
        let y_t = banks.step(&token, &mut Context::with_state(&mut stepped))?;
        assert_close("step", &y_t, &y.narrow(1, t, 1)?.squeeze(1)?, 1e-11);
    }
    assert_close("state", stepped.get("ssm")?, state.get("ssm")?, 1e-12);
    Ok(())
}

/// Steps learn at their own rate, and dynamics are not decayed.
#[test]
fn dynamics_have_a_learning_rate_of_their_own() -> Result<()> {
    let layer = seeded(&S5Config::default(), 8, DType::BF16)?;
    for group in layer.parameter_groups() {
        let dynamics =
            ["Lambda_re", "Lambda_im", "log_step", "B"].iter().any(|n| group.name == format!("seq.{n}"));
        assert_eq!(group.lr_scale != 1.0, dynamics, "{}", group.name);
        if dynamics {
            assert!(!group.weight_decay && group.full_precision, "{}", group.name);
        }
    }
    Ok(())
}

/// Packed sequences with times of their own between tokens, longer than the pieces they are scanned in, equal separate ones.
#[test]
fn long_packed_sequences_with_intervals_are_separate() -> Result<()> {
    let config = S5Config { d_state: 4, dt: Intervals::Projected, ..Default::default() };
    let layer = seeded(&config, 3, DType::F64)?;
    let (lengths, cu) = ([4000, 0, 300, 5000], [0, 4000, 4000, 4300, 9300]);
    let x = randn(7, &[1, 9300, 3], DType::F64)?;
    let mut packed = layer.new_state(4)?;
    // A state to begin with.
    let first = randn(8, &[4, 5, 3], DType::F64)?;
    layer.forward(&first, &mut Context::with_state(&mut packed))?;
    let start = packed.fork()?;
    let y =
        layer.forward(&x, &mut Context { state: Some(&mut packed), cu_seqlens: Some(&cu), shared: None })?;
    for (i, &len) in lengths.iter().enumerate() {
        let mut own = layer.new_state(1)?;
        layer.forward(&first.narrow(0, i, 1)?, &mut Context::with_state(&mut own))?;
        assert_close("start", own.get("ssm")?, &start.get("ssm")?.narrow(0, i, 1)?, 1e-12);
        if len > 0 {
            let want = layer.forward(&x.narrow(1, cu[i], len)?, &mut Context::with_state(&mut own))?;
            assert_close("sequence", &y.narrow(1, cu[i], len)?, &want, 1e-11);
        }
        assert_close("state", &packed.get("ssm")?.narrow(0, i, 1)?, own.get("ssm")?, 1e-11);
    }
    let plain = layer.forward(&x, &mut Context::packed(&cu))?;
    let alone = layer.forward(&x.narrow(1, 4300, 5000)?, &mut Context::default())?;
    assert_close("without a state", &plain.narrow(1, 4300, 5000)?, &alone, 1e-11);
    Ok(())
}
