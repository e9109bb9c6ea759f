//! From a folder to a model: configuration, a plan that accounts for every tensor, then the weights, read once.

mod asked;
mod recipes;
mod report;
mod weights;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use asked::Asked;
use candle_core::{DType, Device};
use recipes::Tensors;
pub use report::{LoadedTensor, Mismatch, Report};
use semisep_core::{Activations, BlockFormat, ParameterGroup, Source, VarBuilder, WeightType};
use semisep_models::LanguageModel;
use semisep_models::normal::Architecture;
pub use weights::Progress;
use weights::{Plan, Weights};

use crate::checkpoint::{Checkpoint, StoredType};
use crate::import::{self, Names};
use crate::{Error, Result};

/// How to load.
#[derive(Clone)]
pub struct LoadOptions {
    /// The weights' dtype in memory: f64, f32, bf16 or f16. Norms, decays and the like stay in f32 (f64).
    pub dtype: DType,
    /// Matrices that layers multiply by stay where the files are mapped, if they lie there as whole rows in the dtype, or in a
    /// half precision that f32 holds exactly: nothing is copied or rounded, and the memory is the page cache's. The files must
    /// not be cut short while the model lives. CPU only.
    pub in_place: bool,
    /// Values of matrices that stay in place are looked at when the matrix is first used, which then fails if some are NaN or
    /// infinite, instead of while loading, which reads all of them once more.
    pub checked_at_first_use: bool,
    /// The format of the matrices that layers multiply by, where it fits; `None` leaves them in the dtype.
    pub quant: Option<BlockFormat>,
    /// How matrices of blocks, made here or stored as such, read their input. In f64 always as it is.
    pub activations: Activations,
    /// Where the model will be.
    pub device: Device,
    /// Fill parameters that the checkpoint lacks with seeded random values.
    pub allow_missing: bool,
    /// Pass over tensors that the model has no use for.
    pub allow_unexpected: bool,
    /// Told of the bytes read.
    pub progress: Option<Arc<Progress>>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: DType::F32,
            in_place: true,
            checked_at_first_use: false,
            quant: None,
            activations: Activations::default(),
            device: Device::Cpu,
            allow_missing: false,
            allow_unexpected: false,
            progress: None,
        }
    }
}

impl LoadOptions {
    fn builder(&self, source: Arc<dyn Source>, device: Device) -> VarBuilder {
        VarBuilder::new(source, self.dtype, device).quantised(self.quant).with_activations(self.activations)
    }
}

/// A model from a folder.
pub struct Loaded {
    /// The folder.
    pub folder: PathBuf,
    /// The family that its configuration belongs to.
    pub family: &'static str,
    /// The model's normal form.
    pub architecture: Architecture,
    /// The model.
    pub model: LanguageModel,
    /// What became of every tensor.
    pub report: Report,
}

/// A folder whose configuration and tensors fit together, before any weight is read.
pub struct Planned {
    folder: PathBuf,
    family: &'static str,
    /// The model's normal form.
    pub architecture: Architecture,
    /// What would be read.
    pub report: Report,
    /// Every parameter and stored constant of the model, in the order in which it asks for them.
    pub parameters: Vec<ParameterGroup>,
    tensors: Arc<Tensors>,
}

/// Loads the model of a folder.
///
/// # Errors
/// If a file is missing or damaged, the configuration is wrong, or a tensor is missing, unexpected, of another shape, of
/// a type that is no number, or not finite.
pub fn load(folder: &Path, options: &LoadOptions) -> Result<Loaded> {
    plan(folder, options)?.load(options)
}

/// Reads the configuration and accounts for every tensor, without reading the weights.
///
/// # Errors
/// As for [`load`], but for what only the values tell.
pub fn plan(folder: &Path, options: &LoadOptions) -> Result<Planned> {
    let checkpoint = Arc::new(Checkpoint::open(folder)?);
    let import = import::import(folder, &checkpoint)?;
    let tensors = Arc::new(Tensors::new(checkpoint, &import.names)?);
    let plan = Arc::new(Plan::new(tensors.clone()));
    let asked = Arc::new(Asked::new(plan.clone()));
    let vb = options.builder(asked.clone(), Device::Cpu);
    let built = LanguageModel::new(&import.architecture, &vb);
    let mut report = Report { notes: import.notes, ..plan.report() };
    report.notes.extend(unpacked(&report, options.quant));
    if let Some(refusal) = report.refusal(options.allow_missing, options.allow_unexpected) {
        return Err(Error::at(folder, refusal).hint(
            "the configuration and the weights belong to different models, or a file is incomplete; --allow-missing and \
             --allow-unexpected load regardless",
        ));
    }
    built.map_err(|e| Error::at(folder, e))?;
    Ok(Planned {
        parameters: asked.all(),
        folder: folder.into(),
        family: import.family,
        architecture: import.architecture,
        report,
        tensors,
    })
}

/// The architecture of a folder, and what its importer overruled. Weights, if there are any, must fit; a folder with a
/// configuration alone will do.
///
/// # Errors
/// As for [`plan`], but for weights that are not there.
pub fn describe(folder: &Path) -> Result<(Architecture, Vec<String>)> {
    match Checkpoint::find(folder)? {
        Some(_) => {
            let planned = plan(folder, &LoadOptions::default())?;
            Ok((planned.architecture, planned.report.notes))
        }
        None => {
            let import = import::import(folder, &Checkpoint::empty())?;
            Ok((import.architecture, import.notes))
        }
    }
}

impl Planned {
    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The checkpoint as a source of parameters under our names.
    pub fn weights(&self) -> Arc<dyn Source> {
        let copied = LoadOptions { in_place: false, ..LoadOptions::default() };
        Arc::new(Weights::new(self.tensors.clone(), &copied))
    }

    /// The family that the folder's configuration belongs to.
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// Its layout of tensors.
    pub fn names(&self) -> &Names {
        self.tensors.names()
    }

    /// The shape of a stored tensor and its type, if that is floating-point, by its name in the checkpoint.
    pub fn stored(&self, name: &str) -> Option<(Vec<usize>, Option<DType>)> {
        self.tensors.checkpoint.get(name).map(|stored| (stored.shape.clone(), stored.dtype.float()))
    }

    /// Bytes that will be read.
    pub fn bytes(&self) -> u64 {
        let bytes = |t: &LoadedTensor| t.dtype.bytes(t.shape.iter().product()).unwrap_or(0) as u64;
        self.report.loaded.iter().map(bytes).sum()
    }

    /// Reads the weights and builds the model.
    ///
    /// # Errors
    /// If memory cannot be had, or values are not finite.
    pub fn load(self, options: &LoadOptions) -> Result<Loaded> {
        let Self { folder, family, architecture, mut report, parameters: _, tensors } = self;
        if options.quant.is_some() && !options.device.is_cpu() {
            return Err(Error::new("quantised weights multiply on the CPU alone").hint("leave out --quant"));
        }
        let weights = Arc::new(Weights::new(tensors, options));
        let vb = options.builder(weights.clone(), options.device.clone());
        let model = LanguageModel::new(&architecture, &vb).map_err(|e| Error::at(&folder, e))?;
        report.non_finite = weights.non_finite();
        if !report.non_finite.is_empty() {
            let list = report.non_finite.iter().map(|(name, n)| format!("{name} ({n} values)"));
            let message = format!("NaN or infinite as {}: {}", options.dtype.as_str(), report::some(list));
            return Err(Error::at(&folder, message)
                .hint("the file is damaged, training diverged, or the values need a wider --dtype"));
        }
        report.notes.extend(fallbacks(&model, options.quant));
        Ok(Loaded { folder, family, architecture, model, report })
    }
}

/// Which formats of the checkpoint nothing multiplies by.
fn unpacked(report: &Report, quant: Option<BlockFormat>) -> Option<String> {
    let names = report.loaded.iter().filter_map(|t| match t.dtype {
        StoredType::Packed(format) => Some(format.name()),
        _ => None,
    });
    let names: BTreeSet<&str> = names.collect();
    let held = quant.unwrap_or(BlockFormat::Q8_0);
    let list = names.iter().copied().collect::<Vec<_>>().join(", ");
    (!names.is_empty())
        .then(|| format!("what is stored in {list} is held in {held} where that fits, else as numbers"))
}

/// Which matrices are not in the format that was asked for.
fn fallbacks(model: &LanguageModel, quant: Option<BlockFormat>) -> Option<String> {
    let quant = quant?;
    let other = |g: &&ParameterGroup| match g.held {
        Some(WeightType::Blocks(format)) => format != quant,
        Some(WeightType::Dense(dtype)) => {
            !g.full_precision && dtype == DType::F16 && model.dtype() == DType::F32
        }
        None => false,
    };
    let others: Vec<&ParameterGroup> = model.parameter_groups().iter().filter(other).collect();
    let list = others.iter().map(|g| format!("{} in {}", g.name, g.held.map_or("", WeightType::name)));
    (!others.is_empty())
        .then(|| format!("rows that are no whole number of {quant} blocks: {}", report::some(list)))
}
