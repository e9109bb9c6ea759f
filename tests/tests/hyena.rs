//! Hyena: facts that implementations get wrong, and its distillation.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use semisep_core::{Context, Mixer, MixerConfig, Norm, NormConfig, NormKind, Source, VarBuilder};
use semisep_hyena::{Hyena, HyenaConfig, StripedHyena, StripedHyenaConfig};
use semisep_models::{Blueprint, LanguageModel, Registry, blueprints};
use semisep_tests::{assert_close, golden, randn, relative_rms, values};

const D: usize = 8;

fn hyena(config: &HyenaConfig, dtype: DType) -> Result<Hyena> {
    Hyena::new(D, config, &VarBuilder::seeded(5, dtype, Device::Cpu))
}

fn forward(layer: &dyn Mixer, x: &Tensor) -> Result<Tensor> {
    layer.forward(x, &mut Context::default())
}

/// The stored positions, features and decays of a HyenaDNA checkpoint are those that a new layer starts with.
#[test]
fn positional_features_are_the_references() -> Result<()> {
    let stored: HashMap<String, Tensor> =
        candle_core::safetensors::load(golden("hyenadna").join("model.safetensors"), &Device::Cpu)?;
    let groups = {
        let vb = VarBuilder::shapes(DType::F32);
        Hyena::new(32, &HyenaConfig { emb_dim: 5, filter_order: 16, ..HyenaConfig::new(66) }, &vb)?;
        vb.groups()
    };
    for name in ["filter_fn.pos_emb.z", "filter_fn.pos_emb.t", "filter_fn.modulation.deltas"] {
        let group = groups.iter().find(|g| g.name == name).unwrap();
        let own = semisep_core::Seeded { seed: 1 }.get(group, DType::F32, &Device::Cpu)?;
        assert_close(name, &own, &stored[&format!("backbone.layers.0.mixer.{name}")], 1e-6);
    }
    Ok(())
}

/// The features learn at a rate of their own, positions and decays not at all, nothing of the filter decays, and all
/// sines share one frequency.
#[test]
fn the_filter_is_trained_as_in_the_reference() -> Result<()> {
    let groups = hyena(&HyenaConfig::new(16), DType::F32)?.parameter_groups();
    let scale = |name: &str| groups.iter().find(|g| g.name.ends_with(name)).unwrap().lr_scale;
    assert!(scale("pos_emb.z") > 0.0 && scale("pos_emb.z") < 0.1);
    assert_eq!((scale("pos_emb.t"), scale("modulation.deltas")), (0.0, 0.0));
    assert!(
        groups
            .iter()
            .filter(|g| g.name.starts_with("filter_fn"))
            .all(|g| !g.weight_decay && g.full_precision)
    );
    assert_eq!(groups.iter().filter(|g| g.name.ends_with("freq")).count(), 1);
    Ok(())
}

/// The filter of a short input is the beginning of that of l_max, and another l_max gives another filter.
#[test]
fn the_filter_follows_l_max_and_not_the_input() -> Result<()> {
    let layer = hyena(&HyenaConfig::new(40), DType::F64)?;
    let whole = layer.taps(40)?;
    for len in [1, 7, 39] {
        assert_close("beginning", &layer.taps(len)?, &whole.narrow(0, 0, len)?, 0.0);
    }
    let other = hyena(&HyenaConfig::new(80), DType::F64)?.taps(40)?;
    assert!(relative_rms(&other, &whole)? > 1e-2);
    Ok(())
}

#[test]
fn longer_than_l_max_is_an_error_that_changes_nothing() -> Result<()> {
    let layer = hyena(&HyenaConfig::new(10), DType::F32)?;
    let message = forward(&layer, &randn(1, &[1, 11, D], DType::F32)?).unwrap_err().to_string();
    assert!(message.contains("11 tokens") && message.contains("l_max = 10"), "{message}");
    let mut state = layer.new_state(1)?;
    layer.forward(&randn(2, &[1, 9, D], DType::F32)?, &mut Context::with_state(&mut state))?;
    let token = randn(3, &[1, D], DType::F32)?;
    layer.step(&token, &mut Context::with_state(&mut state))?;
    let before = state.fork()?;
    assert!(layer.step(&token, &mut Context::with_state(&mut state)).is_err());
    assert!(layer.forward(&token.unsqueeze(1)?, &mut Context::with_state(&mut state)).is_err());
    for (name, tensor) in before.tensors()? {
        assert_eq!(values(&state.tensors()?[&name])?, values(&tensor)?, "{name}");
    }
    Ok(())
}

/// An order of 3 applies the last gate first: written out from the definition.
#[test]
fn gates_are_applied_from_the_last_to_the_first() -> Result<()> {
    let config = HyenaConfig { order: 3, ..HyenaConfig::new(12) };
    let vb = VarBuilder::seeded(5, DType::F64, Device::Cpu);
    let layer = Hyena::new(D, &config, &vb)?;
    let (l, x) = (12, randn(1, &[1, 12, D], DType::F64)?);
    let get = |shape: &[usize], name: &str| {
        let group = vb.groups().into_iter().find(|g| g.name == name).unwrap();
        semisep_core::Seeded { seed: 5 }.get(&group, DType::F64, &Device::Cpu)?.reshape(shape)
    };
    let linear = |x: &Tensor, rows: usize, name: &str| -> Result<Tensor> {
        let (w, b) = (get(&[rows, D], &format!("{name}.weight"))?, get(&[rows], &format!("{name}.bias"))?);
        x.matmul(&w.t()?)?.broadcast_add(&b)
    };
    let (z, taps) = (linear(&x.i(0)?, 4 * D, "in_proj")?, get(&[4 * D, 3], "short_filter.weight")?);
    let mut short = get(&[4 * D], "short_filter.bias")?.broadcast_as((l, 4 * D))?.contiguous()?;
    for j in 0..3 {
        let shifted = z.pad_with_zeros(0, j, 0)?.narrow(0, 0, l)?;
        short = (short + shifted.broadcast_mul(&taps.i((.., 2 - j))?)?)?;
    }
    let part = |i: usize| short.narrow(1, i * D, D);
    let (h, bias) = (layer.taps(l)?, layer.bias().clone());
    let mut v = part(3)?;
    for o in 0..2 {
        v = (v * part(2 - o)?)?;
        let mut y = v.broadcast_mul(&bias.narrow(0, o * D, D)?)?;
        for lag in 0..l {
            let shifted = v.pad_with_zeros(0, lag, 0)?.narrow(0, 0, l)?;
            y = (y + shifted.broadcast_mul(&h.i(lag)?.narrow(0, o * D, D)?)?)?;
        }
        v = y;
    }
    let want = linear(&(v * part(0)?)?, D, "out_proj")?;
    assert_close("order 3", &forward(&layer, &x)?.i(0)?, &want, 1e-12);
    Ok(())
}

/// The error that distilling reports is the measured one, falls with the modes, and the distilled layer has one function
/// in all its forms.
#[test]
fn distilling_reports_the_error_that_it_makes() -> Result<()> {
    let l = 60;
    let layer = hyena(&HyenaConfig { order: 3, w: 3.0, ..HyenaConfig::new(l) }, DType::F64)?;
    let taps = layer.taps(l)?;
    let x = randn(4, &[2, l, D], DType::F64)?;
    let want = forward(&layer, &x)?;
    let mut last = (f64::INFINITY, f64::INFINITY);
    for modes in [1, 4, 12] {
        let (distilled, report) = layer.distill(modes)?;
        let measured = relative_rms(&distilled.taps(l)?, &taps)?;
        assert!(
            (measured - report.error).abs() < 1e-9 * report.error.max(1e-3),
            "{measured} {}",
            report.error
        );
        for c in 0..2 * D {
            let channel = relative_rms(&distilled.taps(l)?.i((.., c))?, &taps.i((.., c))?)?;
            assert!((channel - report.errors[c]).abs() < 1e-9 + 1e-6 * channel, "channel {c}");
        }
        let y = forward(&distilled, &x)?;
        let error = relative_rms(&y, &want)?;
        assert!(report.error < last.0 && error < last.1, "{modes} modes: {} {error}", report.error);
        last = (report.error, error);

        let mut state = distilled.new_state(2)?;
        let head = distilled.forward(&x.narrow(1, 0, 37)?, &mut Context::with_state(&mut state))?;
        assert_close("head", &head, &y.narrow(1, 0, 37)?, 1e-11);
        for t in 37..l {
            let token = x.i((.., t))?.contiguous()?;
            let step = distilled.step(&token, &mut Context::with_state(&mut state))?;
            assert_close("step", &step, &y.i((.., t))?, 1e-10);
        }
        let mixing = distilled.matrix(&x)?.unwrap();
        let product = mixing.matrix.matmul(&mixing.values.contiguous()?)?;
        assert_close("matrix", &product, &mixing.output, 1e-10);
        let cost = distilled.cost(2, l);
        assert_eq!(cost.state_bytes + cost.kv_bytes, distilled.new_state(2)?.size_bytes(l));
    }
    assert!(last.0 < 1e-2, "12 modes: {}", last.0);
    assert!(layer.distill(0).is_err());
    Ok(())
}

/// The shipped small model, smaller still and with shorter filters: distilled, it steps as it prefills, with a state that does not grow, and
/// knows its parameters.
#[test]
fn a_distilled_model_decodes_at_constant_cost() -> Result<()> {
    let mut source = blueprints::source("hyena").unwrap().to_owned();
    for (from, to) in
        [("l_max = 10240", "l_max = 128"), ("d_model = 192", "d_model = 24"), ("n_layer = 4", "n_layer = 2")]
    {
        assert!(source.contains(from), "{from}");
        source = source.replace(from, to);
    }
    let architecture = Blueprint::parse(&source, "hyena.toml", &Registry::builtin()).unwrap().architecture();
    let build = || LanguageModel::new(&architecture, &VarBuilder::seeded(3, DType::F64, Device::Cpu));
    let plain = build()?;
    let (model, layers) = build()?.distilled(32)?;
    assert_eq!(layers.len(), 2);
    assert_eq!(layers[1].layer, "layer 1 (hyena)");
    let (coarse, few) = build()?.distilled(4)?;
    for (few, many) in few.iter().zip(&layers) {
        assert!(
            many.error > 0.0 && many.error <= many.worst && many.error < 0.7 * few.error,
            "{few:?} {many:?}"
        );
    }
    let ids: Vec<u32> = (0..80).map(|i| (i * i * 7 + 3) % 256).collect();
    let ids = Tensor::from_vec(ids, (2, 40), &Device::Cpu)?;
    let (want, near) = (model.forward(&ids, None)?, plain.forward(&ids, None)?);
    let off = |y: &Tensor| relative_rms(y, &near);
    assert!(off(&want)? < 0.7 * off(&coarse.forward(&ids, None)?)?);
    let mut state = model.new_state(2)?;
    let head = model.forward(&ids.narrow(1, 0, 17)?, Some(&mut state))?;
    assert_close("head", &head, &want.narrow(1, 0, 17)?, 1e-10);
    for t in 17..40 {
        let tokens = ids.i((.., t))?.to_vec1::<u32>()?;
        assert_close("step", &model.step(&tokens, &mut state)?, &want.i((.., t))?, 1e-10);
    }
    assert_eq!(state.size_bytes(40), model.new_state(2)?.size_bytes(1 << 20));
    assert!(plain.new_state(2)?.size_bytes(1 << 20) > 100 * state.size_bytes(40));
    // The networks of the filters are gone, poles and residues there.
    let names: Vec<&str> = model.parameter_groups().iter().map(|g| g.name.as_str()).collect();
    assert!(names.contains(&"backbone.layers.1.mixer.filter_fn.poles"));
    assert!(!names.iter().any(|name| name.contains("implicit_filter")));
    assert!(names.contains(&"backbone.embedding.weight"));
    assert!(build()?.distilled(0).is_err());
    Ok(())
}

/// A state of constant size, however long the input, and powers that stay right far beyond one table.
#[test]
fn striped_states_do_not_grow() -> Result<()> {
    let vb = VarBuilder::seeded(5, DType::F64, Device::Cpu);
    let layer = StripedHyena::new(D, &StripedHyenaConfig::default(), &vb)?;
    let x = randn(1, &[1, 700, D], DType::F64)?;
    let want = forward(&layer, &x)?;
    let mut state = layer.new_state(1)?;
    let mut parts = Vec::new();
    for (start, len) in [(0, 500), (500, 1), (501, 199)] {
        parts.push(layer.forward(&x.narrow(1, start, len)?, &mut Context::with_state(&mut state))?);
    }
    assert_close("pieces", &Tensor::cat(&parts, 1)?, &want, 1e-11);
    assert_eq!(state.size_bytes(700), layer.new_state(1)?.size_bytes(0));
    Ok(())
}

#[test]
fn eps_outside_of_the_root() -> Result<()> {
    let vb = VarBuilder::seeded(1, DType::F64, Device::Cpu);
    let eps = 0.1;
    let norm = Norm::new(4, NormConfig { kind: NormKind::RmsOutside, eps }, &vb)?;
    let x = Tensor::new(&[[1f64, -2.0, 3.0, 0.5], [0.0, 0.0, 0.0, 0.0]], &Device::Cpu)?;
    let rms = (14.25f64 / 4.0).sqrt();
    let want = (x.i(0)? / (rms + eps))?;
    assert_close("norm", &norm.forward(&x)?.i(0)?, &want, 1e-14);
    let var = candle_core::Var::from_tensor(&x)?;
    let grads = norm.forward(var.as_tensor())?.sum_all()?.backward()?;
    assert!(values(grads.get(&var).unwrap())?.iter().all(|g| g.is_finite()));
    Ok(())
}

#[test]
fn bad_configurations_are_located() {
    let keys = |config: &dyn MixerConfig| config.check(12).into_iter().map(|i| i.key).collect::<Vec<_>>();
    let good = HyenaConfig::new(64);
    assert!(keys(&good).is_empty());
    for (config, key) in [
        (HyenaConfig { l_max: 0, ..good.clone() }, "l_max"),
        (HyenaConfig { order: 1, ..good.clone() }, "order"),
        (HyenaConfig { emb_dim: 4, ..good.clone() }, "emb_dim"),
        (HyenaConfig { w: -1.0, ..good.clone() }, "w"),
        (HyenaConfig { num_inner_mlps: 1000, ..good.clone() }, "num_inner_mlps"),
        (HyenaConfig { shift: f64::NAN, ..good }, "shift"),
    ] {
        assert!(keys(&config).contains(&key.to_string()), "{key}: {:?}", keys(&config));
    }
    let striped = StripedHyenaConfig { hyena_filter_groups: 5, ..Default::default() };
    assert_eq!(keys(&striped), ["hyena_filter_groups"]);
}
