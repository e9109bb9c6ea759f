//! Models with quantised matrices: the parallel form, single steps and double precision all see the same numbers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{Activations, BlockFormat, VarBuilder, WeightType};
use semisep_models::{Blueprint, LanguageModel, Registry, Weights, blueprints, describe, weights_by_type};

fn model(name: &str, dtype: DType, quant: Option<BlockFormat>) -> Result<LanguageModel> {
    let source = blueprints::source(name).unwrap();
    let architecture = Blueprint::parse(source, name, &Registry::builtin()).unwrap().architecture();
    LanguageModel::new(&architecture, &builder(dtype, quant).with_activations(Activations::Exact))
}

fn builder(dtype: DType, quant: Option<BlockFormat>) -> VarBuilder {
    VarBuilder::seeded(3, dtype, Device::Cpu).quantised(quant)
}

fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let rms = |t: Tensor| t.sqr()?.mean_all()?.to_scalar::<f64>().map(f64::sqrt);
    Ok(rms((a - &b)?)? / rms(b)?)
}

/// Every shipped blueprint: f32 over blocks gives what f64 gives over the numbers of the same blocks, and steps give what
/// the parallel form gives. Widths are whole blocks of 32, so nothing else is rounded on the way.
#[test]
fn every_way_sees_the_same_numbers() -> Result<()> {
    let ids: Vec<u32> = (0..19).map(|i| (i * 37 + 11) % 256).collect();
    let all = Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu)?;
    for name in blueprints::SUITE {
        for format in [BlockFormat::Q8_0, BlockFormat::Q4K] {
            let single = model(name, DType::F32, Some(format))?;
            let held = |g: &&semisep_core::ParameterGroup| matches!(g.held, Some(WeightType::Blocks(_)));
            assert!(single.parameter_groups().iter().any(|g| held(&g)), "{name}: no matrix in blocks");
            let logits = single.forward(&all, None)?;
            let double = model(name, DType::F64, Some(format))?.forward(&all, None)?;
            let found = difference(&logits, &double)?;
            // What rows leave over is f16 in the one and f64 in the other.
            assert!(found < 2e-3, "{name} in {format}: f32 and f64 differ by {found}");
            let mut state = single.new_state(1)?;
            let mut steps = vec![];
            for &id in &ids {
                steps.push(single.step(&[id], &mut state)?);
            }
            let found = difference(&Tensor::stack(&steps, 1)?, &logits)?;
            assert!(found < 1e-4, "{name} in {format}: steps differ by {found}");
        }
    }
    Ok(())
}

/// Rounded activations lose about as much as weights in eight bits do, and in steps the same as all at once: but that a
/// difference in the last bit may round to the other neighbour.
#[test]
fn rounded_activations_stay_near() -> Result<()> {
    let ids: Vec<u32> = (0..19).map(|i| (i * 37 + 11) % 256).collect();
    let all = Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu)?;
    for name in blueprints::SUITE {
        let source = blueprints::source(name).unwrap();
        let architecture = Blueprint::parse(source, name, &Registry::builtin()).unwrap().architecture();
        let format = Some(BlockFormat::Q8_0);
        let rounded = LanguageModel::new(&architecture, &builder(DType::F32, format))?;
        let logits = rounded.forward(&all, None)?;
        let exact = model(name, DType::F32, format)?.forward(&all, None)?;
        let dense = model(name, DType::F32, None)?.forward(&all, None)?;
        let (found, weights) = (difference(&logits, &exact)?, difference(&exact, &dense)?);
        assert!(found > 1e-4 && found < 3.0 * weights, "{name}: {found}, weights lose {weights}");
        let mut state = rounded.new_state(1)?;
        let mut steps = vec![];
        for &id in &ids {
            steps.push(rounded.step(&[id], &mut state)?);
        }
        let steps = difference(&Tensor::stack(&steps, 1)?, &logits)?;
        assert!(steps < found, "{name}: steps differ by {steps}, rounding by {found}");
    }
    Ok(())
}

/// What is told before any weight exists is what a model then holds.
#[test]
fn descriptions_are_what_models_hold() -> Result<()> {
    for name in blueprints::SUITE {
        let source = blueprints::source(name).unwrap();
        let architecture = Blueprint::parse(source, name, &Registry::builtin()).unwrap().architecture();
        for quant in [None, Some(BlockFormat::Q4K), Some(BlockFormat::Q8_0)] {
            let described = describe(&architecture, 1, 8, Weights { dtype: DType::F32, quant })?;
            let held = weights_by_type(model(name, DType::F32, quant)?.parameter_groups());
            assert_eq!(described.weights, held, "{name} {quant:?}");
            assert_eq!(described.total.weight_bytes, held.iter().map(|row| row.bytes).sum::<u64>());
            assert_eq!(described.total.parameters, held.iter().map(|row| row.parameters).sum::<u64>());
        }
    }
    Ok(())
}
