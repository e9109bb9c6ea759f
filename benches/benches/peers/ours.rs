//! semisep's side.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use semisep_core::{ParameterGroup, Seeded, Source, VarBuilder};
use semisep_models::normal::Architecture;
use semisep_models::{Blueprint, LanguageModel, Registry, blueprints};

use crate::figures::{Figures, Limits, beside_bandwidth, median};

const PREFILL: usize = 512;

/// Named f32 tensors, shared by all implementations.
#[derive(Clone)]
pub(crate) struct Weights(pub(crate) Arc<HashMap<String, Tensor>>);

impl Source for Weights {
    fn get(&self, p: &ParameterGroup, dtype: DType, _: &Device) -> Result<Tensor> {
        match self.0.get(&p.name) {
            Some(tensor) => tensor.to_dtype(dtype),
            None => bail!("no weight named {}", p.name),
        }
    }

    fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

fn architecture(name: &str) -> Result<Architecture> {
    let Some(source) = blueprints::source(name) else { bail!("no blueprint named {name}") };
    match Blueprint::parse(source, name, &Registry::builtin()) {
        Ok(blueprint) => Ok(blueprint.architecture()),
        Err(errors) => bail!("{errors}"),
    }
}

/// Random weights of the named blueprint.
pub(crate) fn weights(name: &str) -> Result<Weights> {
    let shapes = VarBuilder::shapes(DType::F32);
    let model = LanguageModel::new(&architecture(name)?, &shapes)?;
    let tensors = model
        .parameter_groups()
        .iter()
        .map(|p| Ok((p.name.clone(), Seeded { seed: 5 }.get(p, DType::F32, &Device::Cpu)?)))
        .collect::<Result<_>>()?;
    Ok(Weights(Arc::new(tensors)))
}

pub(crate) fn build(name: &str, weights: &Weights, dtype: DType) -> Result<LanguageModel> {
    LanguageModel::new(&architecture(name)?, &VarBuilder::new(Arc::new(weights.clone()), dtype, Device::Cpu))
}

pub(crate) fn measure(name: &'static str, model: &LanguageModel, limits: &Limits) -> Result<Figures> {
    let mut state = model.new_state(1)?;
    let ids: Vec<u32> = (0..PREFILL as u32).map(|i| i * 97 % 50_000).collect();
    let prompt = Tensor::from_vec(ids, (1, PREFILL), &Device::Cpu)?;
    let prefill = median(5, || {
        state = model.new_state(1)?;
        model.prefill(&prompt, Some(&mut state)).map(drop)
    })?;
    let mut token = 1;
    let (decode, bandwidth) = beside_bandwidth(48, || {
        token = token * 31 % 50_000;
        model.step(&[token], &mut state).map(drop)
    })?;
    let size =
        |p: &ParameterGroup| p.elements() * if p.full_precision { 4 } else { model.dtype().size_in_bytes() };
    let bytes: usize = model.parameter_groups().iter().map(size).sum();
    Ok(Figures {
        model: name,
        who: format!("semisep {:?}", model.dtype()).to_lowercase(),
        decode: 1.0 / decode,
        decode_of_bandwidth: bytes as f64 / decode / bandwidth,
        prefill: Some((PREFILL, PREFILL as f64 / prefill)),
        prefill_of_gemm: matrix_flops(model, PREFILL) / prefill / limits.gemm_rate,
    })
}

/// Operations of the matrices for `length` tokens, the head once.
pub(crate) fn matrix_flops(model: &LanguageModel, length: usize) -> f64 {
    let per_token: usize = model
        .parameter_groups()
        .iter()
        .filter(|p| p.weight_decay && !p.name.ends_with("embedding.weight") && !p.name.starts_with("lm_head"))
        .map(ParameterGroup::elements)
        .sum();
    let head = model.config().padded_vocab() * model.config().d_model;
    2.0 * (per_token * length + head) as f64
}
