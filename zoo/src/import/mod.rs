//! Importers: the configuration of a checkpoint as an [`Architecture`], and its tensor names as ours.
//!
//! An importer is data about a family, not model code. A new one is a function of this shape and a line in [`IMPORTERS`].

pub(crate) mod activation;
mod backward;
mod bamba;
mod blueprint;
mod decoder;
mod deltanet_fla;
mod falcon_h1;
mod fields;
mod fla;
mod gguf;
mod gla_fla;
mod gpt_neox;
mod granite_hybrid;
mod hgrn2_fla;
mod hybrid;
mod hyenadna;
mod jamba;
mod json;
mod layout;
mod lfm2;
mod llama;
mod mamba_hf;
mod names;
mod nemotron_h;
mod olmo;
mod qwen_moe;
mod recurrent_gemma;
mod retnet_fla;
mod retnet_torchscale;
mod rope;
mod rwkv;
mod state_spaces;
mod stripedhyena;
mod xlstm;
mod zamba;

use std::path::Path;
use std::sync::Arc;

pub use backward::{Foreign, Part};
pub use fields::Fields;
pub use json::{number, read as read_json};
pub use names::{Destination, Join, Names, Piece};
use semisep_core::MixerConfig;
use semisep_models::normal::{Architecture, Branch, Layer, Merge, Stage};
use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Most layers of a model.
pub const MAX_LAYERS: usize = 10_000;

/// A configuration understood.
#[derive(Debug, Clone)]
pub struct Import {
    /// The family's name.
    pub family: &'static str,
    /// The model.
    pub architecture: Architecture,
    /// Where its tensors are.
    pub names: Names,
    /// What the user should know: values that were overruled by the tensors.
    pub notes: Vec<String>,
}

/// What an importer works from.
pub struct Folder<'a> {
    /// The folder, for the model's name.
    pub path: &'a Path,
    /// `config.json`.
    pub config: Fields,
    /// The weights.
    pub checkpoint: &'a Checkpoint,
}

/// A family of checkpoints.
pub struct Importer {
    /// Its name.
    pub family: &'static str,
    /// Whether a configuration is one of this family.
    pub detects: fn(&Fields) -> bool,
    /// The configuration as architecture and names; problems are collected in `config` and reported by the caller.
    pub import: fn(&Folder<'_>) -> Result<Import>,
}

/// A family whose checkpoints have no configuration: everything is in names and shapes of tensors.
pub struct Bare {
    /// Its name.
    pub family: &'static str,
    /// Whether a checkpoint is one of this family.
    pub detects: fn(&Checkpoint) -> bool,
    /// As of an [`Importer`]; the configuration is empty and takes the problems.
    pub import: fn(&Folder<'_>) -> Result<Import>,
    /// Its names of a model's tensors, if that is one of the family.
    pub names: fn(&Architecture) -> Option<Names>,
}

/// Every family, most specific first.
pub static IMPORTERS: &[Importer] = &[
    bamba::BAMBA,
    deltanet_fla::DELTANET,
    deltanet_fla::GATED,
    falcon_h1::FALCON_H1,
    gla_fla::GLA,
    gpt_neox::GPT_NEOX,
    granite_hybrid::GRANITE,
    hgrn2_fla::HGRN2,
    hyenadna::HF,
    hyenadna::ORIGINAL,
    jamba::JAMBA,
    lfm2::LFM2,
    lfm2::LFM2_MOE,
    llama::LLAMA,
    llama::MISTRAL,
    llama::QWEN2,
    llama::QWEN3,
    mamba_hf::FALCON_MAMBA,
    mamba_hf::MAMBA,
    mamba_hf::MAMBA2,
    nemotron_h::NEMOTRON_H,
    olmo::OLMO2,
    olmo::OLMO_HYBRID,
    qwen_moe::QWEN3_MOE,
    qwen_moe::QWEN3_NEXT,
    recurrent_gemma::RECURRENT_GEMMA,
    retnet_fla::RETNET,
    retnet_torchscale::RETNET,
    rwkv::RWKV4_HF,
    rwkv::RWKV5_HF,
    rwkv::RWKV6_HF,
    rwkv::RWKV6_FLA,
    rwkv::RWKV7_FLA,
    stripedhyena::STRIPED_HYENA,
    xlstm::XLSTM,
    zamba::ZAMBA,
    zamba::ZAMBA2,
    state_spaces::STATE_SPACES,
];

/// Families without a configuration.
pub static BARE: &[Bare] = &[rwkv::RWKV_PTH];

/// Understands the `blueprint.toml` of a folder, else its `config.json`, else its tensors.
///
/// # Errors
/// If there is neither, the family is unknown, or keys are missing or wrong: all of them in one error.
pub fn import(folder: &Path, checkpoint: &Checkpoint) -> Result<Import> {
    let (own, path) = (folder.join("blueprint.toml"), folder.join("config.json"));
    if own.exists() {
        return blueprint::import(&own);
    }
    if let Some(metadata) = checkpoint.gguf() {
        return gguf::import(folder, checkpoint, metadata);
    }
    if !path.exists() {
        if let Some(bare) = BARE.iter().find(|b| (b.detects)(checkpoint)) {
            let folder = Folder { path: folder, config: Fields::new(folder, Default::default()), checkpoint };
            let import = (bare.import)(&folder);
            folder.config.finish()?;
            return import;
        }
        return Err(Error::at(&path, "expected the model's configuration, found none")
            .hint("copy config.json from where the weights come from"));
    }
    understand((folder, &path), checkpoint, Fields::open(&path)?)
}

/// A model's configuration alone: what an export writes.
///
/// # Errors
/// As of [`import`].
pub(crate) fn of_config(config: Map<String, Value>) -> Result<Import> {
    let path = Path::new("config.json");
    understand((path, path), &Checkpoint::empty(), Fields::new(path, config))
}

/// By the family whose configuration this is; `path` is where it comes from.
fn understand((folder, path): (&Path, &Path), checkpoint: &Checkpoint, config: Fields) -> Result<Import> {
    let importer = IMPORTERS.iter().find(|i| (i.detects)(&config)).ok_or_else(|| unknown(path, &config))?;
    let folder = Folder { path: folder, config, checkpoint };
    let import = (importer.import)(&folder);
    // A value that is wrong in itself explains whatever failed because of it.
    folder.config.finish()?;
    import.map_err(|e| e.in_file(path))
}

fn unknown(path: &Path, config: &Fields) -> Error {
    let known: Vec<&str> = IMPORTERS.iter().map(|i| i.family).collect();
    let found = match config.text("model_type") {
        Some(model_type) => format!("model_type {model_type:?}"),
        None => "no model_type and no ssm_cfg".into(),
    };
    Error::at(path, format!("expected a family of the zoo, found {found}"))
        .hint(format!("known families: {}", known.join(", ")))
}

/// Whether `model_type` is this, or one of `architectures` is (for configurations without it).
fn is_type(config: &Fields, model_type: &str, architecture: &str) -> bool {
    match config.get("model_type") {
        Some(value) => value.as_str() == Some(model_type),
        None => config
            .get("architectures")
            .and_then(|list| list.as_array())
            .is_some_and(|list| list.iter().any(|a| a.as_str() == Some(architecture))),
    }
}

/// `name` of a snapshot in the Hugging Face cache, `models--owner--name/snapshots/commit`.
fn snapshot_of(folder: &Path) -> Option<String> {
    let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let repository = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    Some(repository.rsplit_once("--").map_or(repository, |(_, name)| name).to_string())
}

impl Folder<'_> {
    /// The model's name: that of the folder, or of the repository whose snapshot it is.
    fn name(&self) -> String {
        let real = self.path.canonicalize().unwrap_or_else(|_| self.path.into());
        if let Some(name) = snapshot_of(&real) {
            return name;
        }
        real.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
    }

    /// Compares the embedding with what the configuration says: vocabulary and width.
    fn check_embedding(&self, embedding: &str, rows: usize, (width_key, d_model): (&str, usize)) {
        let Some(stored) = self.checkpoint.get(embedding).filter(|_| self.config.ok()) else { return };
        let found = stored.shape.as_slice();
        if found.first() != Some(&rows) {
            let message =
                format!("expects {rows} rows of {embedding} (padding included), found shape {found:?}");
            self.config.problem("vocab_size", message);
        } else if found != [rows, d_model] {
            let message = format!("expects {embedding} of shape {:?}, found {found:?}", [rows, d_model]);
            self.config.problem(width_key, message);
        }
    }

    /// Whether the head is the embedding, given what the configuration says (`None`: nothing) and the family's default,
    /// and a note if the tensors say otherwise.
    fn tied(&self, said: Option<bool>, default: bool, embedding: &str) -> (bool, Option<String>) {
        self.tied_to(said, default, "lm_head.weight", embedding)
    }

    /// As [`Folder::tied`], with the head stored under this name.
    fn tied_to(
        &self,
        said: Option<bool>,
        default: bool,
        head: &str,
        embedding: &str,
    ) -> (bool, Option<String>) {
        match (self.checkpoint.get(head), self.checkpoint.get(embedding)) {
            // Without any weights the configuration's word counts.
            (None, _) => (said.unwrap_or(default || !self.checkpoint.is_empty()), None),
            (Some(stored), Some(embedding))
                if said.unwrap_or(default) && !self.checkpoint.same(stored, embedding) =>
            {
                let note = format!(
                    "{head} differs from the embedding: loaded as a head of its own, though the configuration ties them"
                );
                (false, Some(note))
            }
            _ => (said.unwrap_or(default), None),
        }
    }
}

/// One mixer after its norm.
fn residual(mixer: Arc<dyn MixerConfig>, path: &str, norm: &str) -> Stage {
    Stage {
        branches: vec![Branch { pre_norm: Some(norm.into()), ..Branch::new(mixer, path) }],
        merge: Merge::Sum,
    }
}

/// A layer of these stages.
fn layer(block: &str, stages: Vec<Stage>) -> Layer {
    Layer { block: block.into(), stages, share: None }
}
