//! The Block-State Transformer against recorded values: over this project's S4D and S5, and over the records'
//! state-space layers as plain loops over tokens.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod reference_ssm;

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use reference_ssm::ReferenceSsm;
use semisep_block_state::{BlockState, BlockStateConfig, Variant};
use semisep_core::{Context, Mixer, Nested, RelBiasConfig, State, VarBuilder, WindowMode};
use semisep_s4::{Format, S4dConfig};
use semisep_s5::S5Config;
use semisep_tests::{Case, assert_close, cases};

fn config(case: &Case, ssm: Nested) -> BlockStateConfig {
    let c = &case.config;
    let size = |key: &str| c[key].as_u64().unwrap_or_else(|| panic!("{}: {key}", case.name)) as usize;
    let flag = |key: &str| c[key].as_bool().unwrap_or_else(|| panic!("{}: {key}", case.name));
    let number = |key: &str| c[key].as_f64().unwrap_or_else(|| panic!("{}: {key}", case.name));
    let variant = match c["variant"].as_str() {
        Some("SH") => Variant::Sh,
        Some("MH") => Variant::Mh,
        Some("MF") => Variant::Mf,
        other => panic!("{}: variant {other:?}", case.name),
    };
    let bias = RelBiasConfig { buckets: size("rel_buckets"), max_distance: size("rel_max_distance") };
    BlockStateConfig {
        head_dim: Some(size("head_dim")),
        window_mode: match c["window_mode"].as_str() {
            Some("block") => WindowMode::Block,
            Some("sliding") => WindowMode::Sliding,
            other => panic!("{}: window_mode {other:?}", case.name),
        },
        include_self: flag("include_self"),
        contexts: c["contexts"].as_u64().map_or(1, |s| s as usize),
        rel_bias: flag("rel_bias").then_some(bias),
        d_intermediate: Some(size("d_ff")),
        norm_eps: number("norm_eps"),
        qk_eps: number("qk_eps"),
        lift_bias: flag("lift_bias"),
        out_bias: flag("out_bias"),
        ffn_bias: flag("ffn_bias"),
        ..BlockStateConfig::new(variant, ssm, size("heads"), size("window"))
    }
}

#[test]
fn recorded_layers() -> Result<()> {
    for case in cases("layers", "block_state__") {
        for (dtype, tolerance, grad) in [(DType::F64, 1e-11, 1e-10), (DType::F32, 1e-5, 1e-4)] {
            let plain = Ssm { config: Nested::new(ReferenceSsm::new(&case.config)), state: plain_state };
            check(&case, &plain, dtype, tolerance, grad)?;
            if let Some(ours) = ours(&case) {
                check(&case, &ours, dtype, tolerance, grad)?;
            }
        }
    }
    Ok(())
}

/// A state-space layer to run a record over, and its state in the record's shape.
struct Ssm {
    config: Nested,
    state: fn(&State) -> Result<Tensor>,
}

fn plain_state(state: &State) -> Result<Tensor> {
    state.get("ssm.h").cloned()
}

/// This project's layer of the kind that was recorded.
fn ours(case: &Case) -> Option<Ssm> {
    let modes = case.config["d_state"].as_u64().unwrap() as usize;
    match case.config["ssm"].as_str() {
        // Modes come in conjugate pairs, of which one is held.
        Some("s5") => Some(Ssm {
            config: Nested::new(S5Config { d_state: 2 * modes, ..Default::default() }),
            state: |state| state.get("ssm.ssm")?.transpose(1, 2)?.contiguous(),
        }),
        Some("s4d") => Some(Ssm {
            config: Nested::new(S4dConfig {
                d_state: 2 * modes,
                format: Format::MinimalB,
                ..Default::default()
            }),
            state: |state| state.get("ssm.ssm").cloned(),
        }),
        _ => None,
    }
}

fn check(case: &Case, ssm: &Ssm, dtype: DType, tolerance: f64, grad: f64) -> Result<()> {
    let what = format!("{} {dtype:?}", case.name);
    let d = case.config["d_model"].as_u64().unwrap() as usize;
    // S4D keeps its dynamics one level down.
    let parameters = case.parameters(|path| path.replace("ssm.kernel.", "ssm."));
    let vb = VarBuilder::new(parameters.clone(), dtype, Device::Cpu);
    let config = config(case, ssm.config.clone());
    let layer = BlockState::new(d, &config, &vb)?;
    assert_eq!(parameters.unread(), Vec::<String>::new());
    let u = case.input("u", dtype)?;
    let mut state = layer.new_state(u.dim(0)?)?;
    // In a stack, the residual is added outside.
    let y = (layer.forward(&u, &mut Context::with_state(&mut state))? + u.as_tensor())?;
    assert_close(&what, &y, &case.get("out.y")?, tolerance);
    let last = case.get("extra.final_ssm_state")?;
    assert_close(&format!("{what} state"), &(ssm.state)(&state)?, &last, tolerance);
    case.check_gradients(&[("y", &y)], &[("u", &u)], &parameters, grad)?;
    heads(case, &what, &layer, &u.as_tensor().detach(), tolerance)?;
    let stepped = steps(case, &what, &layer, &u.as_tensor().detach(), tolerance)?;
    assert_close(&format!("{what} step state"), &(ssm.state)(&stepped)?, &last, tolerance);
    Ok(())
}

/// What the heads give, before the output map.
fn heads(case: &Case, what: &str, layer: &BlockState, u: &Tensor, tolerance: f64) -> Result<()> {
    let output = layer.matrix(u)?.expect("a matrix").output.transpose(1, 2)?; // (b, l, h or 2 h, e)
    let h = case.config["heads"].as_u64().unwrap() as usize;
    for (i, name) in ["extra.self_attention", "extra.cross_attention"].iter().enumerate() {
        let want = case.get(name)?;
        let nothing = want.abs()?.sum_all()?.to_scalar::<f64>()? == 0.0;
        if output.dim(2)? > i * h && !nothing {
            assert_close(&format!("{what} {name}"), &output.narrow(2, i * h, h)?, &want, tolerance);
        }
    }
    Ok(())
}

/// Token by token: the state at the end.
fn steps(case: &Case, what: &str, layer: &BlockState, u: &Tensor, tolerance: f64) -> Result<State> {
    let mut state = layer.new_state(u.dim(0)?)?;
    let steps = (0..u.dim(1)?).map(|t| {
        let u = u.i((.., t))?.contiguous()?;
        layer.step(&u, &mut Context::with_state(&mut state))? + u
    });
    let steps = Tensor::stack(&steps.collect::<Result<Vec<_>>>()?, 1)?;
    assert_close(&format!("{what} steps"), &steps, &case.get("out.y_step")?, tolerance);
    Ok(state)
}
