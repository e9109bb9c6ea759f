//! `semisep export`

use std::path::{Path, PathBuf};

use candle_core::DType;

use super::model::Dtype;
use super::{Outcome, architecture, say};
use crate::Result;
use crate::export::{Exporter, MAX_SHARD_BYTES, parse_size};
use crate::load::{LoadOptions, plan};

/// Write a model as safetensors beside its blueprint
///
/// A checkpoint's weights are written under our own names, in the types they are stored in, with its tokenizer; a
/// blueprint gets random weights. The folder that is written loads like any other, bit for bit the same.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint folder, shipped blueprint or blueprint file
    #[arg(value_name = "DIR|NAME|FILE")]
    model: String,
    /// Folder to write; it must not exist, or be empty
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
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

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        let dtype = self.dtype.map(DType::from);
        let folder = Path::new(&self.model);
        let exporter = if folder.is_dir() {
            let planned = plan(folder, &LoadOptions::default())?;
            Exporter::of_checkpoint(&planned, dtype)?
        } else {
            Exporter::of_seed(architecture::open(&self.model)?, self.seed, dtype.unwrap_or(DType::F32))?
        };
        exporter.write(&self.out, self.max_shard_size)?;
        say(&format!("{}: written", self.out.display()));
        Ok(Outcome::Good)
    }
}
