//! A model as a folder of files: weights as safetensors beside the blueprint or configuration that explains them.

mod configs;
mod difference;
mod layout;
mod recast;
mod settled;
mod shards;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use semisep_core::{ParameterGroup, Shapes, Source, VarBuilder};
use semisep_models::LanguageModel;
use semisep_models::normal::Architecture;
use serde_json::Value;

pub use layout::{Layout, families};
use recast::Recast;
pub use shards::{MAX_SHARD_BYTES, parse_size};

use crate::checkpoint::{StoredType, TensorEntry};
use crate::import::Foreign;
use crate::load::{Asked, LoadOptions, Planned, plan};
use crate::tokenizer::{Tokenizer, special_tokens};
use crate::{Error, Result, files};

/// A model to write: its parameters are read one at a time.
pub struct Exporter {
    architecture: Architecture,
    parameters: Vec<(ParameterGroup, DType)>,
    source: Arc<dyn Source>,
    /// Files of tokenizer and generation that go along: name and content.
    beside: Vec<(String, Vec<u8>)>,
}

/// Files that go along with a model as they are.
const BESIDE: [&str; 10] = [
    "tokenizer.json",
    "20B_tokenizer.json",
    "rwkv_vocab_v20230424.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

/// Those of them that are a tokenizer by themselves.
const TOKENIZERS: &[&str] = BESIDE.split_at(3).0;

impl Exporter {
    /// The model of a checkpoint; each parameter in the type that it is stored in (in f64 where a constant is added to what
    /// is stored: nothing is rounded), or in `dtype` (norms, decays and the like at least in f32).
    ///
    /// # Errors
    /// If a file that goes along cannot be read.
    pub fn of_checkpoint(planned: &Planned, dtype: Option<DType>) -> Result<Self> {
        let loaded: BTreeMap<&str, StoredType> =
            planned.report.loaded.iter().map(|t| (&t.name[..], t.dtype)).collect();
        let stored = |p: &ParameterGroup| {
            if planned.names().adds_to(&p.name) {
                return DType::F64;
            }
            loaded.get(&p.name[..]).and_then(|dtype| dtype.float()).unwrap_or(DType::F32)
        };
        let parameters = planned.parameters.iter();
        let parameters = parameters.map(|p| (p.clone(), at_least(dtype.unwrap_or_else(|| stored(p)), p)));
        Ok(Self {
            architecture: planned.architecture.clone(),
            parameters: parameters.collect(),
            source: planned.weights(),
            beside: beside(planned.folder())?,
        })
    }

    /// A model with seeded random weights.
    ///
    /// # Errors
    /// If the architecture cannot be built.
    pub fn of_seed(architecture: Architecture, seed: u64, dtype: DType) -> Result<Self> {
        let parameters = parameters(&architecture, dtype)?;
        let parameters = parameters.into_iter().map(|p| (p.clone(), at_least(dtype, &p))).collect();
        Ok(Self {
            architecture,
            parameters,
            source: Arc::new(semisep_core::Seeded { seed }),
            beside: Vec::new(),
        })
    }

    /// The model.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Writes `blueprint.toml` and the weights under our own names; with a layout, its `config.json` and the weights under
    /// its names: `model.safetensors`, or several and an index where more than `max_shard_bytes`. The folder must not
    /// exist, or be empty; it appears whole or not at all.
    ///
    /// # Errors
    /// If the folder holds files or cannot be written to, or the model has parameters that the layout has no place for.
    pub fn write(&self, out: &Path, layout: Option<&Layout>, max_shard_bytes: u64) -> Result<()> {
        into_folder(out, |folder| {
            for (name, content) in &self.beside {
                files::write(&folder.join(name), content)?;
            }
            match layout {
                None => self.write_ours(folder, max_shard_bytes)?,
                Some(layout) => self.write_in(folder, layout, max_shard_bytes)?,
            }
            // What was written is the model: nothing is handed over that cannot be loaded.
            let written = plan(folder, &LoadOptions::default())?.architecture;
            let settled = settled::settled;
            match difference::difference(&settled(&self.architecture), &settled(&written)) {
                None => Ok(()),
                Some(how) => Err(Error::at(out, format!("the files would stand for another model: {how}"))),
            }
        })
    }

    fn write_ours(&self, folder: &Path, max_shard_bytes: u64) -> Result<()> {
        files::write(&folder.join("blueprint.toml"), self.architecture.to_toml().as_bytes())?;
        let entries: Vec<TensorEntry> = self
            .parameters
            .iter()
            .map(|(p, dtype)| TensorEntry { name: p.name.clone(), dtype: *dtype, shape: p.shape.clone() })
            .collect();
        shards::write(folder, &entries, &mut |i| self.read(i), max_shard_bytes)
    }

    fn write_in(&self, folder: &Path, layout: &Layout, max_shard_bytes: u64) -> Result<()> {
        if let Some(config) = &layout.config {
            files::write(&folder.join("config.json"), config.as_bytes())?;
        }
        let Some(means) = &layout.means else {
            let parameters: Vec<_> = self.parameters.iter().map(|(p, dtype)| (p, *dtype)).collect();
            return write_as(folder, layout, &parameters, &mut |i| self.read(i), max_shard_bytes);
        };
        let have: Vec<&ParameterGroup> = self.parameters.iter().map(|(p, _)| p).collect();
        let want = parameters(means, DType::F32)?;
        let recast = Recast::new((&self.architecture, &have), (means, &want))
            .map_err(|e| Error::new(format!("the {} layout: {e}", layout.family)))?;
        let dtype = |i| recast.rows(i).iter().map(|r| self.parameters[r.parameter].1).reduce(layout::wider);
        let parameters: Vec<_> =
            want.iter().enumerate().map(|(i, p)| (p, dtype(i).unwrap_or(DType::F32))).collect();
        let mut read = |i: usize| recast.tensor(i, &mut |parameter| self.read(parameter));
        write_as(folder, layout, &parameters, &mut read, max_shard_bytes)
    }

    fn read(&self, i: usize) -> Result<Tensor> {
        let (parameter, dtype) = &self.parameters[i];
        Ok(self.source.get(parameter, *dtype, &Device::Cpu)?)
    }
}

/// The parameters of a model, in the order in which it asks for them.
fn parameters(architecture: &Architecture, dtype: DType) -> Result<Vec<ParameterGroup>> {
    let asked = Arc::new(Asked::new(Arc::new(Shapes)));
    LanguageModel::new(architecture, &VarBuilder::new(asked.clone(), dtype, Device::Cpu))?;
    Ok(asked.all())
}

/// Writes parameters under the names of a layout; `read` gives one by its place.
fn write_as(
    folder: &Path,
    layout: &Layout,
    parameters: &[(&ParameterGroup, DType)],
    read: &mut dyn FnMut(usize) -> Result<Tensor>,
    max_shard_bytes: u64,
) -> Result<()> {
    let shapes: Vec<_> = parameters.iter().map(|(p, dtype)| (&p.name[..], &p.shape[..], *dtype)).collect();
    // Tensors made of the same parameter follow each other.
    let mut last: Option<(usize, Tensor)> = None;
    let mut read = |parameter: usize| -> Result<Tensor> {
        match &last {
            Some((of, tensor)) if *of == parameter => Ok(tensor.clone()),
            _ => Ok(last.insert((parameter, read(parameter)?)).1.clone()),
        }
    };
    let (entries, tensors): (Vec<TensorEntry>, Vec<Foreign>) =
        layout.tensors(&shapes, &mut read)?.into_iter().unzip();
    let mut get = |i: usize| layout::assemble(&entries[i], &tensors[i], &mut read);
    shards::write(folder, &entries, &mut get, max_shard_bytes)
}

fn at_least(dtype: DType, p: &ParameterGroup) -> DType {
    if p.full_precision { semisep_kernels::state_dtype(dtype) } else { dtype }
}

/// What goes along with the weights of a folder or GGUF file: the tokenizer's files, made of the metadata where there are
/// none; without `generation_config.json`, one that holds the start and end tokens of `config.json` or the metadata.
fn beside(source: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    // Beside a file may lie other models' files: of those only the tokenizer that would be taken.
    let (folder, names) = match source.is_dir() {
        true => (source, &BESIDE[..]),
        false => (source.parent().unwrap_or(Path::new("")), &BESIDE[..1]),
    };
    let mut all = Vec::new();
    for name in names.iter().filter(|name| folder.join(name).is_file()) {
        all.push((name.to_string(), files::read_text(&files::inside(folder, name)?)?.into_bytes()));
    }
    let has = |all: &[(String, Vec<u8>)], name: &str| all.iter().any(|(other, _)| other == name);
    if !TOKENIZERS.iter().any(|name| has(&all, name))
        && let Some(tokenizer) = Tokenizer::found(source)?
        && let Some((name, text)) = tokenizer.file()?
    {
        all.push((name.into(), text.into_bytes()));
    }
    if !has(&all, "generation_config.json") {
        let ids = special_tokens(source)?;
        if !ids.is_empty() {
            all.push(("generation_config.json".into(), format!("{:#}\n", Value::from(ids)).into_bytes()));
        }
    }
    Ok(all)
}

/// Lets `fill` write into a new folder, which takes the place of `out` once everything is there.
fn into_folder(out: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let fail = |e: std::io::Error| files::cannot_write(out, &e);
    if out.exists() && std::fs::read_dir(out).map_err(fail)?.next().is_some() {
        return Err(Error::at(
            out,
            "expected a folder that does not exist yet or is empty, found one with files",
        )
        .hint("choose another --out"));
    }
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(fail)?;
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    // As for any new folder: what the umask allows.
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let folder = builder.prefix(".export-").tempdir_in(parent).map_err(fail)?;
    fill(folder.path())?;
    std::fs::rename(folder.path(), out).map_err(fail)?;
    // It has another name now: there is nothing left to remove.
    let _ = folder.keep();
    Ok(())
}
