//! LSTM and GRU against torch.nn's values; minimal networks against their definition.

use candle_core::{DType, Device, Result, Tensor, Var};
use semisep_core::{Context, Mixer, State, VarBuilder};
use semisep_rnn::{MinGruConfig, MinLstmConfig, MinimalRnn, RnnStack};
use semisep_tests::{Case, assert_close, cases, randn, values};
use serde_json::json;

/// Outputs and states; gradients.
const LADDER: [(DType, f64, f64); 2] = [(DType::F64, 1e-11, 1e-10), (DType::F32, 1e-5, 1e-4)];

fn build(case: &Case, vb: &VarBuilder) -> Result<RnnStack> {
    let c = &case.config;
    let inputs = c["input_size"].as_u64().unwrap_or(0) as usize;
    let table = json!({ "hidden_size": c["hidden_size"], "num_layers": c["num_layers"], "bias": c["bias"] });
    let wrong = |e: serde_json::Error| -> ! { panic!("{}: {e}", case.name) };
    match c["layer"].as_str() {
        Some("lstm") => {
            RnnStack::lstm(inputs, &serde_json::from_value(table).unwrap_or_else(|e| wrong(e)), vb)
        }
        Some("gru") => RnnStack::gru(inputs, &serde_json::from_value(table).unwrap_or_else(|e| wrong(e)), vb),
        other => panic!("{}: layer {other:?}", case.name),
    }
}

/// torch's (layers, b, h) and ours.
fn turned(t: &Tensor) -> Result<Tensor> {
    t.transpose(0, 1)?.contiguous()
}

fn check(case: &Case, dtype: DType, tolerance: f64, gradient: f64) -> Result<()> {
    let source = case.parameters(str::to_owned);
    let cells = build(case, &VarBuilder::new(source.clone(), dtype, Device::Cpu))?;
    assert!(source.unread().is_empty(), "{}: {:?} not read", case.name, source.unread());
    let x = case.input("x", dtype)?;
    let (b, l, _) = x.dims3()?;
    let (mut state, mut stepped): (State, State) = (cells.new_state(b)?, cells.new_state(b)?);
    let mut inputs: Vec<(&str, Var)> = vec![("x", x.clone())];
    for (name, entry) in [("h0", "h"), ("c0", "c")] {
        if case.has(&format!("in.{name}")) {
            let var = case.input(name, dtype)?;
            state.set(entry, turned(var.as_tensor())?)?;
            stepped.set(entry, turned(&var.detach())?)?;
            inputs.push((name, var));
        }
    }
    let what = |name: &str| format!("{} {name} {dtype:?}", case.name);
    let names = [("h_n", "h"), ("c_n", "c")];
    let names = || names.iter().filter(|(n, _)| case.has(&format!("out.{n}")));

    let y = cells.forward(x.as_tensor(), &mut Context::with_state(&mut state))?;
    let mut outputs = vec![("y", y)];
    for (name, entry) in names() {
        outputs.push((*name, turned(state.get(entry)?)?));
    }
    for (name, output) in &outputs {
        assert_close(&what(name), output, &case.get(&format!("out.{name}"))?, tolerance);
    }
    let outputs: Vec<(&str, &Tensor)> = outputs.iter().map(|(n, t)| (*n, t)).collect();
    let inputs: Vec<(&str, &Var)> = inputs.iter().map(|(n, v)| (*n, v)).collect();
    case.check_gradients(&outputs, &inputs, &source, gradient)?;

    let tokens = x.detach();
    let steps: Vec<Tensor> = (0..l)
        .map(|t| cells.step(&tokens.narrow(1, t, 1)?.squeeze(1)?, &mut Context::with_state(&mut stepped)))
        .collect::<Result<_>>()?;
    assert_close(&what("y_step"), &Tensor::stack(&steps, 1)?, &case.get("out.y_step")?, tolerance);
    for (name, entry) in names() {
        let want = case.get(&format!("out.{name}_step"))?;
        assert_close(&what(name), &turned(stepped.get(entry)?)?, &want, tolerance);
    }
    Ok(())
}

#[test]
fn recorded_cases() -> Result<()> {
    for case in cases("layers", "lstm__").into_iter().chain(cases("layers", "gru__")) {
        for (dtype, tolerance, gradient) in LADDER {
            check(&case, dtype, tolerance, gradient)?;
        }
    }
    Ok(())
}

/// `h ← (1 - z) h + z h̃` and `h ← (f h + i h̃) / (f + i)`, number by number.
#[test]
fn minimal_networks_are_their_recurrences() -> Result<()> {
    let (d, l) = (5, 9);
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    let u = randn(1, &[1, l, d], DType::F64)?;
    for lstm in [false, true] {
        let vb = VarBuilder::seeded(3, DType::F64, Device::Cpu);
        let layer = if lstm {
            MinimalRnn::lstm(d, &MinLstmConfig::default(), &vb)?
        } else {
            MinimalRnn::gru(d, &MinGruConfig::default(), &vb)?
        };
        let y = layer.forward(&u, &mut Context::default())?;
        let again = VarBuilder::seeded(3, DType::F64, Device::Cpu);
        let map = |name: &str| -> Result<Vec<f64>> {
            let vb = again.pp(name);
            values(&semisep_core::Linear::new(d, d, true, &vb)?.forward(&u)?)
        };
        let candidate = map("linear_h")?;
        let gates = if lstm { (map("linear_f")?, map("linear_i")?) } else { (map("linear_z")?, Vec::new()) };
        let mut h = vec![0.0; d];
        let mut want = Vec::new();
        for t in 0..l {
            for k in 0..d {
                let n = t * d + k;
                let first = sigmoid(gates.0[n]);
                h[k] = if lstm {
                    let i = sigmoid(gates.1[n]);
                    (first * h[k] + i * candidate[n]) / (first + i)
                } else {
                    (1.0 - first) * h[k] + first * candidate[n]
                };
                want.push(h[k]);
            }
        }
        assert_close("minimal", &y, &Tensor::from_vec(want, (1, l, d), &Device::Cpu)?, 1e-12);
    }
    Ok(())
}

/// Gates far out on either side stay finite, where a quotient of sigmoids would be 0 / 0.
#[test]
fn minimal_gates_do_not_overflow() -> Result<()> {
    let layer =
        MinimalRnn::lstm(4, &MinLstmConfig::default(), &VarBuilder::seeded(1, DType::F32, Device::Cpu))?;
    let u = (randn(2, &[1, 7, 4], DType::F32)? * 1e4)?;
    let y = layer.forward(&u, &mut Context::default())?;
    assert!(values(&y)?.iter().all(|v| v.is_finite()));
    Ok(())
}
