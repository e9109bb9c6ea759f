//! The arguments that name a model and say how to load it.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use semisep_core::{Activations, BlockFormat};
use semisep_models::DistilledLayer;
use semisep_models::normal::ModelConfig;

use super::pull::Progress;
use super::say;
use crate::checkpoint::is_model;
use crate::hub::Parts;
use crate::load::{LoadOptions, Loaded, plan};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, hub};

/// Progress is drawn for models at least this large: smaller ones are there at once.
const LARGE: u64 = 256 << 20;

/// A model and how to load it.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// Folder with config.json and the weights (model.safetensors, its shards, or pytorch_model.bin), a GGUF file, or a model
    /// of the Hugging Face Hub, OWNER/NAME@REVISION for another revision than main
    #[arg(value_name = "DIR|FILE.gguf|OWNER/NAME")]
    model: PathBuf,
    /// Dtype of the weights in memory; matrices stored in half precision stay so under f32, which rounds nothing
    #[arg(long, value_enum, default_value = "f32")]
    pub(super) dtype: Dtype,
    #[command(flatten)]
    quant: QuantArg,
    #[command(flatten)]
    activations: ActivationsArg,
    /// Copy all weights into memory in --dtype instead of leaving those in the mapped files that can be used there
    #[arg(long)]
    no_mmap: bool,
    /// `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: Where,
    /// Fill parameters that the checkpoint lacks with random values
    #[arg(long)]
    allow_missing: bool,
    /// Pass over tensors that the model has no use for
    #[arg(long)]
    allow_unexpected: bool,
    /// Replace Hyena's filters by N modes a channel: constant work and memory a token, an approximation whose error is told
    #[arg(long, value_name = "N")]
    distill: Option<usize>,
}

/// The argument for quantised weights.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct QuantArg {
    /// Hold the matrices in quantised blocks: q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1 or q4_0
    ///
    /// Where rows are no whole number of blocks a smaller format takes their place, or f16; all else stays in the dtype.
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub(super) quant: Option<BlockFormat>,
}

/// The argument for what quantised weights meet.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct ActivationsArg {
    /// Multiply quantised matrices by activations as they are, not rounded to eight bits as ggml does: slower, nearer to the
    /// weights' own result
    #[arg(long)]
    exact_activations: bool,
}

impl From<ActivationsArg> for Activations {
    fn from(arg: ActivationsArg) -> Self {
        if arg.exact_activations { Self::Exact } else { Self::Rounded }
    }
}

fn format(name: &str) -> Result<BlockFormat, String> {
    let named = |f: &BlockFormat| f.name().eq_ignore_ascii_case(name);
    BlockFormat::ALL.into_iter().find(named).ok_or_else(|| {
        let names: Vec<&str> = BlockFormat::ALL.iter().map(|f| f.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Dtypes of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Dtype {
    F64,
    F32,
    Bf16,
    F16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
            Dtype::F16 => Self::F16,
        }
    }
}

/// A device by name; it is opened when it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Cpu,
    Cuda(usize),
}

fn device(name: &str) -> Result<Where, String> {
    let index = match name {
        "cpu" => return Ok(Where::Cpu),
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    index.map(Where::Cuda).ok_or_else(|| "expected cpu, cuda or cuda:N".into())
}

/// The folder or GGUF file that a word means, that of a model of the Hub after it has been downloaded; `None` for other words.
pub(super) fn folder(word: &Path) -> Result<Option<PathBuf>> {
    found(word, Parts::Whole)
}

/// As [`folder`], but of a model of the Hub the configuration is enough.
pub(super) fn configuration(word: &Path) -> Result<Option<PathBuf>> {
    found(word, Parts::Configuration)
}

/// The tokenizer of a model; that a large vocabulary has none is told.
pub(super) fn tokenizer(folder: &Path, model: &ModelConfig) -> Result<Tokenizer> {
    /// Vocabularies of bytes and some special tokens are no larger.
    const BYTES: usize = 512;
    let tokenizer = Tokenizer::open(folder, model)?;
    if matches!(tokenizer, Tokenizer::Bytes) && model.vocab_size > BYTES {
        say("[there is no tokenizer: tokens are bytes; copy the model's tokenizer.json into its folder]");
    }
    Ok(tokenizer)
}

fn found(word: &Path, parts: Parts) -> Result<Option<PathBuf>> {
    if is_model(word) {
        return Ok(Some(word.into()));
    }
    let Some(word) = word.to_str() else { return Ok(None) };
    let mut progress = Progress::default();
    hub::folder(word, parts, &mut |event| progress.tell(event))
}

impl ModelArgs {
    /// The model's folder; a model of the Hub is downloaded.
    pub(super) fn folder(&self) -> Result<PathBuf> {
        folder(&self.model)?.ok_or_else(|| {
            Error::at(&self.model, "expected a folder with a checkpoint, found none").hint(
                "name the folder that holds config.json and the weights, or OWNER/NAME of a model on the Hugging Face Hub",
            )
        })
    }

    /// Loads the model of a folder, with a progress bar on a terminal if it is large, and distills it where that is asked for.
    pub(super) fn load(&self, folder: &Path) -> Result<Loaded> {
        self.load_and_check(folder, false)
    }

    /// As [`ModelArgs::load`], but that weights left in the files are finite is found out when they are first used.
    pub(super) fn load_for_use(&self, folder: &Path) -> Result<Loaded> {
        self.load_and_check(folder, true)
    }

    fn load_and_check(&self, folder: &Path, checked_at_first_use: bool) -> Result<Loaded> {
        let loaded = self.read(folder, checked_at_first_use)?;
        let Some(modes) = self.distill else { return Ok(loaded) };
        let distilled = loaded.model.distilled(modes).map_err(|e| Error::new(format!("--distill: {e}")));
        let (model, layers) = distilled?;
        for DistilledLayer { layer, error, worst } in layers {
            say(&format!(
                "[{layer}: {modes} modes a channel; filters off by {error:.1e}, the worst by {worst:.1e}]"
            ));
        }
        Ok(Loaded { model, ..loaded })
    }

    fn read(&self, folder: &Path, checked_at_first_use: bool) -> Result<Loaded> {
        let device = match self.device {
            Where::Cpu => Device::Cpu,
            Where::Cuda(n) => Device::new_cuda(n).map_err(|e| {
                Error::new(format!("--device cuda:{n}: {e}"))
                    .hint("build with --features cuda on a machine with a GPU")
            })?,
        };
        let mut options = LoadOptions {
            dtype: self.dtype.into(),
            quant: self.quant.quant,
            activations: self.activations.into(),
            in_place: !self.no_mmap,
            checked_at_first_use,
            device,
            allow_missing: self.allow_missing,
            allow_unexpected: self.allow_unexpected,
            progress: None,
        };
        let planned = plan(folder, &options)?;
        if planned.bytes() < LARGE || !std::io::stderr().is_terminal() {
            return planned.load(&options);
        }
        let bar = ProgressBar::new(planned.bytes());
        if let Ok(style) =
            ProgressStyle::with_template("loading {bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
        {
            bar.set_style(style);
        }
        let counter = bar.clone();
        options.progress = Some(Arc::new(move |bytes| counter.inc(bytes)));
        let loaded = planned.load(&options);
        bar.finish_and_clear();
        loaded
    }
}
