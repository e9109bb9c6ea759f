//! The checks: each takes any mixer's configuration and a width.

mod fed;
mod forms;
mod gradients;
mod states;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
pub(crate) use forms::{causal, chunks, empty, matrix, packed, precisions, rows, steps};
pub(crate) use gradients::{gradients, state_gradients};
use semisep_core::{Context, Mixer, MixerConfig, ParameterGroup, Rng, Source, State, VarBuilder};
pub(crate) use states::{cost, foreign_states, states};

/// Parameters drawn wide enough that every path matters: matrices as initialised unless that is zero, norms and biases
/// away from 0 and 1.
/// Matrices are rounded to `rounded`, if any, whatever dtype is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) rounded: Option<DType>,
}

impl Source for Spread {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut rng = Rng::named(11, &p.name);
        let mut values = p.init.values(&p.shape, &mut rng);
        if !p.buffer && (p.full_precision || values.iter().all(|v| *v == 0.0)) {
            values.iter_mut().for_each(|v| *v += 0.2 * rng.normal() as f32);
        }
        let t = Tensor::from_vec(values, p.shape.as_slice(), device)?;
        match self.rounded.filter(|_| !p.full_precision) {
            Some(rounded) => t.to_dtype(rounded)?.to_dtype(dtype),
            None => t.to_dtype(dtype),
        }
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}

fn build(config: &dyn MixerConfig, d: usize, dtype: DType) -> Result<Box<dyn Mixer>> {
    build_from(config, d, VarBuilder::new(Arc::new(Spread { rounded: None }), dtype, Device::Cpu))
}

fn forward(mixer: &dyn Mixer, x: &Tensor) -> Result<Tensor> {
    mixer.forward(x, &mut Context::default())
}

/// The layer, fed with whatever it needs from earlier layers.
fn build_from(config: &dyn MixerConfig, d: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
    Ok(Box::new(fed::Fed(config.build(d, vb)?)))
}

/// One token a row.
fn stepped(mixer: &dyn Mixer, x: &Tensor, state: &mut State) -> Result<Tensor> {
    mixer.step(x, &mut Context::with_state(state))
}

/// Forward from `state` on.
fn continued(mixer: &dyn Mixer, x: &Tensor, state: &mut State) -> Result<Tensor> {
    mixer.forward(x, &mut Context::with_state(state))
}

/// Fails unless two states hold the same, up to `tolerance`; slots past a row's end do not count.
#[track_caller]
fn assert_same_state(what: &str, got: &State, want: &State, tolerance: f64) -> Result<()> {
    assert_eq!(got.seen(), want.seen(), "{what}: tokens seen");
    let (got, want) = (got.tensors()?, want.tensors()?);
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, want) in &want {
        let got = &got[name];
        if want.elem_count() > 0 && want.dtype().is_float() {
            semisep_tests::assert_close(&format!("{what}: state {name}"), got, want, tolerance);
        }
    }
    Ok(())
}
