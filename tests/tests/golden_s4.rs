//! S4 and S4D against state-spaces/s4: outputs, filters, steps, states, gradients and initial values.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{Context, Mixer, MixerConfig, ParameterGroup, Source, VarBuilder};
use semisep_s4::{S4, S4Config, S4dConfig, Transform};
use semisep_tests::{Case, CaseParameters, assert_close, cases};
use serde_json::{Map, Value, json};

/// Tolerances of outputs and gradients.
const LADDER: [(DType, f64, f64); 2] = [(DType::F64, 1e-11, 1e-9), (DType::F32, 1e-5, 1e-4)];

/// What a record's options say of it.
struct Recorded {
    low_rank: bool,
    minimal: bool,
    /// Whether it is a whole block, with an output map, or the convolution alone.
    block: bool,
    /// Whether tokens come last, (b, d, l).
    transposed: bool,
    d: usize,
    length: usize,
    options: Map<String, Value>,
}

impl Recorded {
    fn new(case: &Case) -> Result<Self> {
        let mut options = case.config.as_object().cloned().unwrap_or_default();
        let mode = options.remove("mode");
        let flag = |options: &mut Map<String, Value>, key: &str, default: bool| {
            options.remove(key).and_then(|v| v.as_bool()).unwrap_or(default)
        };
        let number = |options: &mut Map<String, Value>, key: &str| {
            options.remove(key).and_then(|v| v.as_u64()).unwrap_or_default() as usize
        };
        let (d, length) = (number(&mut options, "d_model"), number(&mut options, "length"));
        let block = flag(&mut options, "block", true);
        let transposed = flag(&mut options, "transposed", true);
        options.remove("l_max");
        let minimal = mode.is_none();
        let low_rank = mode == Some(json!("dplr"));
        // A null stands for no activation, and for no output map.
        for value in options.values_mut().filter(|v| v.is_null()) {
            *value = json!("none");
        }
        if !block {
            options.insert("final_act".into(), json!("none"));
        }
        if minimal {
            options.insert("format".into(), json!("minimal"));
        }
        if low_rank {
            let prefix = if block { "param.layer." } else { "param." };
            let l_kernel = case.get(&format!("{prefix}kernel.l_kernel"))?.to_dtype(DType::I64)?;
            options.insert("l_kernel".into(), json!(l_kernel.to_scalar::<i64>()?));
        }
        Ok(Self { low_rank, minimal, block, transposed, d, length, options })
    }

    fn prefix(&self) -> &'static str {
        if self.block && !self.minimal { "layer." } else { "" }
    }

    fn build(&self, case: &Case, dtype: DType) -> Result<(S4, Arc<CaseParameters>)> {
        let strip = !self.block;
        let parameters = case.parameters(move |path| match path.strip_prefix("layer.") {
            Some(rest) if strip => rest.into(),
            _ => path.into(),
        });
        let vb = VarBuilder::new(parameters.clone(), dtype, Device::Cpu);
        let options = Value::Object(self.options.clone());
        let layer = if self.low_rank {
            let config: S4Config = serde_json::from_value(options).map_err(candle_core::Error::wrap)?;
            assert_eq!(config.check(self.d), []);
            S4::new(self.d, &config, &vb)
        } else {
            let config: S4dConfig = serde_json::from_value(options).map_err(candle_core::Error::wrap)?;
            assert_eq!(config.check(self.d), []);
            S4::diagonal(self.d, &config, &vb)
        }?;
        let unread = parameters.unread();
        assert!(unread.iter().all(|name| name.ends_with("l_kernel")), "{}: unread {unread:?}", case.name);
        Ok((layer, parameters))
    }

    /// Between the record's layout and (b, l, d), both ways.
    fn turned(&self, t: &Tensor) -> Result<Tensor> {
        if self.transposed { t.transpose(1, 2) } else { Ok(t.clone()) }
    }
}

fn outputs(case: &Case) -> Result<()> {
    let recorded = Recorded::new(case)?;
    for (dtype, tolerance, _) in LADDER {
        let (layer, _) = recorded.build(case, dtype)?;
        let x = recorded.turned(&case.get("in.x")?.to_dtype(dtype)?)?;
        let what = |part: &str| format!("{} {part} {dtype:?}", case.name);
        let y = layer.forward(&x, &mut Context::default())?;
        assert_close(&what("y"), &recorded.turned(&y)?, &case.get("out.y")?, tolerance);
        let kernel = layer.kernel(recorded.length)?;
        let want = case.get("out.kernel")?;
        assert_close(&what("kernel"), &kernel.reshape(want.dims())?, &want, tolerance);
        if !layer.causal() {
            continue;
        }
        let mut state = layer.new_state(x.dim(0)?)?;
        let y = layer.forward(&x, &mut Context::with_state(&mut state))?;
        assert_close(&what("y with a state"), &recorded.turned(&y)?, &case.get("out.y")?, tolerance);
        let ours = state.get("ssm")?;
        // The dense steps of the reference carry both modes of each pair.
        let last = case.get("out.final_state")?.narrow(2, 0, ours.dim(2)?)?;
        assert_close(&what("final state"), ours, &last, tolerance);
        let mut state = layer.new_state(x.dim(0)?)?;
        let steps = (0..x.dim(1)?).map(|t| {
            let token = x.narrow(1, t, 1)?.squeeze(1)?.contiguous()?;
            layer.step(&token, &mut Context::with_state(&mut state))
        });
        let y = Tensor::stack(&steps.collect::<Result<Vec<_>>>()?, 1)?;
        assert_close(&what("steps"), &recorded.turned(&y)?, &case.get("out.y_step")?, tolerance);
        assert_close(&what("state after steps"), state.get("ssm")?, &last, tolerance);
    }
    Ok(())
}

#[test]
fn outputs_filters_steps_and_states() -> Result<()> {
    cases("s4", "").iter().try_for_each(outputs)
}

/// The record as the reference differentiated it: a fresh C has been transformed by the first forward pass.
fn transformed(case: Case) -> Result<(Case, Recorded)> {
    let mut recorded = Recorded::new(&case)?;
    if recorded.options.get("l_kernel") != Some(&json!(0)) {
        return Ok((case, recorded));
    }
    let (layer, _) = recorded.build(&case, DType::F64)?;
    let c = layer.transformed_readout(recorded.length)?;
    recorded.options.insert("l_kernel".into(), json!(recorded.length));
    Ok((case.replaced(&format!("param.{}kernel.C", recorded.prefix()), c), recorded))
}

#[test]
fn gradients_of_everything() -> Result<()> {
    for case in cases("s4", "") {
        let (case, recorded) = transformed(case)?;
        for (dtype, tolerance, gradients) in LADDER {
            // Fourier's constant is a pair of modes 2e-4 apart. In 60 digits the recorded gradient of its A_imag turns
            // out to be off by 3e-9 (ours by half of that): double precision has no more of it.
            let gradients =
                gradients.max(if recorded.options.get("init") == Some(&json!("fout")) { 1e-8 } else { 0.0 });
            let (layer, parameters) = recorded.build(&case, dtype)?;
            let x = case.input("x", dtype)?;
            let y = layer.forward(&recorded.turned(x.as_tensor())?, &mut Context::default())?;
            let y = recorded.turned(&y)?;
            assert_close(&format!("{} y {dtype:?}", case.name), &y, &case.get("out.y")?, tolerance);
            case.check_gradients(&[("y", &y)], &[("x", &x)], &parameters, gradients)?;
        }
    }
    Ok(())
}

/// The recorded layers start as ours do: spectra exactly, B and P up to the phase of an eigenvector.
#[test]
fn initial_values_are_those_of_the_reference() -> Result<()> {
    for case in cases("s4", "") {
        let recorded = Recorded::new(&case)?;
        let vb = VarBuilder::seeded(1, DType::F64, Device::Cpu);
        let options = Value::Object(recorded.options.clone());
        let groups = if recorded.low_rank {
            let config: S4Config = serde_json::from_value(options).map_err(candle_core::Error::wrap)?;
            S4::new(recorded.d, &config, &vb)?.parameter_groups()
        } else {
            let config: S4dConfig = serde_json::from_value(options).map_err(candle_core::Error::wrap)?;
            S4::diagonal(recorded.d, &config, &vb)?.parameter_groups()
        };
        let start = |name: &str| -> Result<Option<Tensor>> {
            let Some(g) = groups.iter().find(|g| g.name.ends_with(name)) else { return Ok(None) };
            let values = g.init.values(&g.shape, &mut semisep_core::Rng::new(1));
            Ok(Some(Tensor::from_vec(values, g.shape.as_slice(), &Device::Cpu)?.to_dtype(DType::F64)?))
        };
        let size = |t: &Tensor| t.sqr()?.sum(candle_core::D::Minus1)?.sqrt();
        for name in ["kernel.A_real", "kernel.A_imag", "kernel.log_A_real", "kernel.P"] {
            let full = format!("param.{}{name}", recorded.prefix());
            if !case.has(&full) {
                continue;
            }
            let (Some(ours), want) = (start(name)?, case.get(&full)?) else { panic!("{name} was not built") };
            // The reference's spectra went through float32, and through its eigenvectors.
            let (ours, want) = if name.ends_with('P') { (size(&ours)?, size(&want)?) } else { (ours, want) };
            assert_close(&format!("{} start of {name}", case.name), &ours, &want, 2e-5);
        }
    }
    Ok(())
}

/// With a zero-order hold, a step twice as long sees both of the short steps' taps: the parameters hold at any rate.
#[test]
fn twice_the_rate_is_two_taps_in_one() -> Result<()> {
    let kernel = |rate: f64, length: usize| {
        let config = S4dConfig { rate, ..Default::default() };
        S4::diagonal(4, &config, &VarBuilder::seeded(3, DType::F64, Device::Cpu))?.kernel(length)
    };
    let fine = kernel(1.0, 40)?.reshape((1, 4, 20, 2))?.sum(3)?;
    assert_close("taps", &kernel(2.0, 20)?, &fine, 1e-12);
    Ok(())
}

/// Every parameter with its sign turned.
struct Negative;

impl Source for Negative {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor> {
        let values = p.init.values(&p.shape, &mut semisep_core::Rng::named(1, &p.name));
        Tensor::from_vec(values, p.shape.as_slice(), device)?.neg()?.to_dtype(dtype)
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}

#[test]
fn a_growing_state_is_refused_and_named() -> Result<()> {
    let config = S4dConfig { real_transform: Transform::None, ..Default::default() };
    let vb = VarBuilder::new(Arc::new(Negative), DType::F64, Device::Cpu);
    let layer = S4::diagonal(4, &config, &vb)?;
    let x = Tensor::zeros((1, 3, 4), DType::F64, &Device::Cpu)?;
    let Err(error) = layer.forward(&x, &mut Context::default()) else { panic!("an unstable layer ran") };
    assert!(error.to_string().contains("-Re A is -0.5"), "{error}");
    Ok(())
}
