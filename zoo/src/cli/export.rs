//! `semisep export`

use std::path::{Path, PathBuf};

use candle_core::DType;

use super::model::Dtype;
use super::{Outcome, architecture, model, say};
use crate::export::{Exporter, Layout, MAX_SHARD_BYTES, families, parse_size};
use crate::load::{LoadOptions, Planned, plan};
use crate::{Error, Result};

/// Write a model as safetensors beside its blueprint, or in the layout of a public family
///
/// A checkpoint's weights are written in the types they are stored in, with its tokenizer; a blueprint gets random
/// weights. The folder that is written loads like any other, bit for bit the same.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint folder, shipped blueprint, blueprint file, or model of the Hugging Face Hub
    #[arg(value_name = "DIR|NAME|FILE|OWNER/NAME")]
    model: String,
    /// Folder to write; it must not exist, or be empty
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// `semisep` for our own names and blueprint.toml, `same` for the checkpoint's own layout, or a family that can
    /// express the model
    #[arg(long, value_name = "LAYOUT", default_value = "semisep", long_help = layouts())]
    layout: String,
    /// Type of the weights; norms, decays and the like are kept in f32 at least [default: as stored; f32]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Seed of a blueprint's weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Most bytes a file: 5GB, 500MB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value_t = MAX_SHARD_BYTES, hide_default_value = true)]
    max_shard_size: u64,
}

fn layouts() -> String {
    let families: Vec<&str> = families().collect();
    format!(
        "`semisep` for our own names and blueprint.toml, `same` for the checkpoint's own layout, or a family that can \
         express the model: {}",
        families.join(", ")
    )
}

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        let dtype = self.dtype.map(DType::from);
        let folder = model::folder(Path::new(&self.model))?;
        let planned = folder.map(|folder| plan(&folder, &LoadOptions::default())).transpose()?;
        let exporter = match &planned {
            Some(planned) => Exporter::of_checkpoint(planned, dtype)?,
            None => {
                Exporter::of_seed(architecture::open(&self.model)?, self.seed, dtype.unwrap_or(DType::F32))?
            }
        };
        let layout = self.layout(&exporter, planned.as_ref())?;
        exporter.write(&self.out, layout.as_ref(), self.max_shard_size)?;
        say(&format!("{}: written", self.out.display()));
        Ok(Outcome::Good)
    }

    fn layout(&self, exporter: &Exporter, planned: Option<&Planned>) -> Result<Option<Layout>> {
        match (self.layout.as_str(), planned) {
            ("semisep", _) => Ok(None),
            ("same", None) => Err(Error::new("--layout same: a blueprint has no layout of its own")),
            ("same", Some(planned)) => Layout::of_checkpoint(planned).map(Some),
            (family, Some(planned)) if planned.family() == family => Layout::of_checkpoint(planned).map(Some),
            (family, _) => Layout::named(family, exporter.architecture()).map(Some),
        }
    }
}
