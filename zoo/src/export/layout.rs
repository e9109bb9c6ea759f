//! A model's tensors in a public layout.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use semisep_models::blueprint::nearest;
use semisep_models::normal::Architecture;
use serde_json::Value;

use super::configs::{self, DIALECTS};
use super::difference::difference;
use super::settled::settled;
use crate::checkpoint::{TensorEntry, View};
use crate::import::{self, Foreign, Names, Part};
use crate::load::Planned;
use crate::{Error, Result, files};

/// How a family of checkpoints calls and shapes its tensors, and its configuration of one model.
pub struct Layout {
    /// The family.
    pub family: &'static str,
    names: Names,
    /// The text of `config.json`; a few families have none.
    pub(super) config: Option<String>,
    /// Shapes and types in the checkpoint that the model comes from.
    stored: BTreeMap<String, (Vec<usize>, Option<DType>)>,
    /// The model as the configuration spells it, where that may be another spelling than the model's own.
    pub(super) means: Option<Architecture>,
}

/// The families whose layout a model may be written in, if it is one that they can express.
pub fn families() -> impl Iterator<Item = &'static str> {
    let written = DIALECTS.iter().map(|dialect| dialect.family);
    written.chain(import::BARE.iter().map(|bare| bare.family))
}

fn unknown(family: &str) -> Error {
    let known: Vec<&str> = ["semisep", "same"].into_iter().chain(families()).collect();
    let meant = nearest(family, known.iter().copied());
    let meant = meant.map(|name| format!("did you mean {name}? ")).unwrap_or_default();
    Error::new(format!("--layout: expected a layout, found {family:?}"))
        .hint(format!("{meant}layouts are {}", known.join(", ")))
}

impl Layout {
    /// The layout that a checkpoint is in, with its own configuration.
    ///
    /// # Errors
    /// If its configuration cannot be read, or it is in our own layout.
    pub fn of_checkpoint(planned: &Planned) -> Result<Self> {
        let path = planned.folder().join("config.json");
        let config = path.exists().then(|| files::read_text(&path)).transpose()?;
        let tensors = planned.report.loaded.iter().flat_map(|t| t.stored_as.split(" + "));
        let stored = tensors.filter_map(|name| Some((name.to_owned(), planned.stored(name)?)));
        Ok(Self {
            family: planned.family(),
            names: planned.names().clone(),
            config,
            stored: stored.collect(),
            means: None,
        })
    }

    /// The layout of this family for any model that it can express.
    ///
    /// # Errors
    /// If there is no such family, or the model is beyond it.
    pub fn named(family: &str, architecture: &Architecture) -> Result<Self> {
        let beyond = |why: String| {
            Error::new(format!("the {family} layout cannot express {}: {why}", architecture.name))
                .hint("--layout semisep can express every model")
        };
        if let Some(bare) = import::BARE.iter().find(|bare| bare.family == family) {
            configs::check_bare(family, architecture).map_err(beyond)?;
            let names = (bare.names)(architecture).unwrap_or_default();
            return Ok(Self {
                family: bare.family,
                names,
                config: None,
                stored: BTreeMap::new(),
                means: None,
            });
        }
        let dialect = DIALECTS.iter().find(|dialect| dialect.family == family);
        let dialect = dialect.ok_or_else(|| unknown(family))?;
        let config = dialect.write(architecture).map_err(beyond)?;
        let text = format!("{:#}\n", Value::from(config.clone()));
        // The configuration's own reader says what it means.
        let import = import::of_config(config).map_err(|e| beyond(e.to_string()))?;
        if import.family != dialect.family {
            return Err(beyond(format!("what it would be in it is called {}", import.family)));
        }
        if let Some(difference) = difference(&settled(architecture), &settled(&import.architecture)) {
            return Err(beyond(difference));
        }
        Ok(Self {
            family: dialect.family,
            names: import.names,
            config: Some(text),
            stored: BTreeMap::new(),
            means: Some(import.architecture),
        })
    }

    /// The tensors to write, for parameters of these names, shapes and types; `read` gives a parameter by its place.
    ///
    /// # Errors
    /// If a parameter has no place in the layout, or cannot be read.
    pub(super) fn tensors(
        &self,
        parameters: &[(&str, &[usize], DType)],
        read: &mut dyn FnMut(usize) -> Result<Tensor>,
    ) -> Result<Vec<(TensorEntry, Foreign)>> {
        let shapes: Vec<(&str, &[usize])> =
            parameters.iter().map(|(name, shape, _)| (*name, *shape)).collect();
        let stored = |name: &str| self.stored.get(name).map(|(shape, _)| shape.clone());
        let tensors = self.names.backward(&shapes, &stored);
        let tensors = tensors.map_err(|e| Error::new(format!("the {} layout: {e}", self.family)))?;
        let mut entry = |tensor: &Foreign| {
            let dtypes = tensor.parts.iter().map(|part| parameters[part.parameter].2);
            let dtype = match tensor.parts.iter().find(|part| part.plus != 0.0) {
                // Less the constant, the values are what they were.
                Some(part) => match self.stored.get(&tensor.name).and_then(|(_, dtype)| *dtype) {
                    Some(dtype) => dtype,
                    None => less(&read(part.parameter)?, part.plus)?,
                },
                None => dtypes.reduce(wider).unwrap_or(DType::F32),
            };
            Ok(TensorEntry { name: tensor.name.clone(), dtype, shape: tensor.shape.clone() })
        };
        let entries = tensors.iter().map(&mut entry).collect::<Result<Vec<_>>>()?;
        Ok(entries.into_iter().zip(tensors).collect())
    }
}

/// The narrowest type from which a parameter stored less a constant comes back as it is.
fn less(parameter: &Tensor, plus: f64) -> Result<DType> {
    let own = parameter.dtype();
    let less = parameter.to_dtype(DType::F64)?.affine(1.0, -plus)?;
    for dtype in [own, DType::F32].into_iter().filter(|dtype| *dtype != DType::F64) {
        let back = less.to_dtype(dtype)?.to_dtype(DType::F64)?.affine(1.0, plus)?.to_dtype(own)?;
        if back.ne(parameter)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? == 0 {
            return Ok(dtype);
        }
    }
    Ok(DType::F64)
}

/// The type that holds the values of both.
pub(super) fn wider(a: DType, b: DType) -> DType {
    match (a, b) {
        _ if a == b => a,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        _ => DType::F32,
    }
}

/// Puts a tensor together; `read` gives a parameter by its place.
pub(super) fn assemble(
    entry: &TensorEntry,
    tensor: &Foreign,
    read: &mut dyn FnMut(usize) -> Result<Tensor>,
) -> Result<Tensor> {
    if let [part] = &tensor.parts[..]
        && part.plus == 0.0
        && part.view == View::whole(&tensor.shape)
    {
        let whole = read(part.parameter)?;
        if whole.elem_count() == part.view.elements() {
            return Ok(whole.to_dtype(entry.dtype)?.reshape(&entry.shape[..])?);
        }
    }
    match entry.dtype {
        DType::F64 => gathered::<f64>(entry, tensor, read),
        DType::F32 => gathered::<f32>(entry, tensor, read),
        DType::F16 => gathered::<f16>(entry, tensor, read),
        DType::BF16 => gathered::<bf16>(entry, tensor, read),
        other => Err(Error::new(format!("{}: weights are not of type {other:?}", entry.name))),
    }
}

fn gathered<T: WithDType>(
    entry: &TensorEntry,
    tensor: &Foreign,
    read: &mut dyn FnMut(usize) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut values = vec![T::zero(); entry.shape.iter().product()];
    for part in &tensor.parts {
        let mut parameter = read(part.parameter)?.flatten_all()?;
        if part.plus != 0.0 {
            parameter = parameter.to_dtype(DType::F64)?.affine(1.0, -part.plus)?;
        }
        let source =
            parameter.narrow(0, part.start, part.view.elements())?.to_dtype(T::DTYPE)?.to_vec1::<T>()?;
        scatter(part, &source, &mut values);
    }
    Ok(Tensor::from_vec(values, &entry.shape[..], &Device::Cpu)?)
}

/// Puts the elements of a parameter, in row-major order, where the view says.
fn scatter<T: WithDType>(part: &Part, source: &[T], values: &mut [T]) {
    let View { start, shape, strides } = &part.view;
    let mut index = vec![0usize; shape.len()];
    for &value in source {
        let at = start + index.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>();
        values[at] = value;
        for (i, &d) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
}
