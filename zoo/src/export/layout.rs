//! A model's tensors in a public layout.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use semisep_models::normal::Architecture;

use crate::checkpoint::{Checkpoint, TensorEntry, View};
use crate::files;
use crate::import::{self, Foreign, Names, Part};
use crate::load::Planned;
use crate::{Error, Result};

use super::configs::CONFIGS;

/// How a family of checkpoints calls and shapes its tensors, and its configuration of one model.
pub struct Layout {
    /// The family.
    pub family: &'static str,
    names: Names,
    /// The text of `config.json`; a few families have none.
    pub(super) config: Option<String>,
    /// Shapes and types in the checkpoint that the model comes from.
    stored: BTreeMap<String, (Vec<usize>, Option<DType>)>,
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
        })
    }

    /// The layout of this family for any model that it can express.
    ///
    /// # Errors
    /// If there is no such family, none whose configuration can be written, or the model is beyond it.
    pub fn named(family: &str, architecture: &Architecture) -> Result<Self> {
        let Some((family, config)) = CONFIGS.iter().find(|(name, _)| *name == family) else {
            let known: Vec<&str> = CONFIGS.iter().map(|(name, _)| *name).collect();
            return Err(Error::new(format!(
                "--layout: no configuration of {family} can be written for this model"
            ))
            .hint(format!(
                "layouts of any model: semisep, {}; a checkpoint's own as well",
                known.join(", ")
            )));
        };
        let beyond = |why: &str| {
            Error::new(format!("the {family} layout cannot express {}: {why}", architecture.name))
                .hint("--layout semisep can express every model")
        };
        let config = config(architecture).map_err(|why| beyond(&why))?;
        let text = format!("{config:#}\n");
        // The configuration's own reader says what it means.
        let folder = tempfile::tempdir().map_err(|e| Error::new(format!("temporary folder: {e}")))?;
        files::write(&folder.path().join("config.json"), text.as_bytes())?;
        let import =
            import::import(folder.path(), &Checkpoint::empty()).map_err(|e| beyond(&e.to_string()))?;
        if padded(&import.architecture).hash() != padded(architecture).hash() {
            return Err(beyond("its configuration would stand for another model"));
        }
        Ok(Self { family, names: import.names, config: Some(text), stored: BTreeMap::new() })
    }

    /// The tensors to write, for parameters of these names, shapes and types.
    ///
    /// # Errors
    /// If a parameter has no place in the layout.
    pub(super) fn tensors(
        &self,
        parameters: &[(&str, &[usize], DType)],
    ) -> Result<Vec<(TensorEntry, Foreign)>> {
        let shapes: Vec<(&str, &[usize])> =
            parameters.iter().map(|(name, shape, _)| (*name, *shape)).collect();
        let stored = |name: &str| self.stored.get(name).map(|(shape, _)| shape.clone());
        let tensors = self.names.backward(&shapes, &stored);
        let tensors = tensors.map_err(|e| Error::new(format!("the {} layout: {e}", self.family)))?;
        let entry = |tensor: &Foreign| {
            let dtypes = tensor.parts.iter().map(|part| parameters[part.parameter].2);
            let dtype = match tensor.parts.iter().any(|part| part.plus != 0.0) {
                // Less the constant, the values are what they were.
                true => self.stored.get(&tensor.name).and_then(|(_, dtype)| *dtype),
                false => dtypes.reduce(wider),
            };
            let dtype = dtype.unwrap_or(DType::F32);
            TensorEntry { name: tensor.name.clone(), dtype, shape: tensor.shape.clone() }
        };
        Ok(tensors.into_iter().map(|tensor| (entry(&tensor), tensor)).collect())
    }
}

/// The same model with its padding counted as vocabulary, as layouts without padding have it.
pub(super) fn padded(architecture: &Architecture) -> Architecture {
    let mut padded = architecture.clone();
    padded.model.vocab_size = architecture.model.padded_vocab();
    padded.model.pad_vocab_size_multiple = 1;
    padded
}

/// The type that holds the values of both.
fn wider(a: DType, b: DType) -> DType {
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
        let parameter = read(part.parameter)?.to_dtype(T::DTYPE)?.flatten_all()?;
        let source = parameter.narrow(0, part.start, part.view.elements())?.to_vec1::<T>()?;
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
        values[at] = if part.plus == 0.0 { value } else { T::from_f64(value.to_f64() - part.plus) };
        for (i, &d) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
}
