//! `semisep import`

use std::path::PathBuf;

use candle_core::DType;
use semisep_models::describe;

use super::{Outcome, architecture, print, say};
use crate::units::grouped;
use crate::{Result, files};

/// Write the blueprint of a checkpoint: the same architecture in TOML, whatever its configuration's dialect
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint folder, model of the Hugging Face Hub, or anything else that names an architecture
    #[arg(value_name = "DIR|OWNER/NAME")]
    model: String,
    /// Where to write it [default: standard output]
    #[arg(long, short, value_name = "FILE.toml")]
    out: Option<PathBuf>,
}

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        let architecture = architecture::open(&self.model)?;
        let toml = architecture.to_toml();
        let Some(path) = &self.out else {
            print(&toml)?;
            return Ok(Outcome::Good);
        };
        files::write(path, toml.as_bytes())?;
        let described = describe(&architecture, 1, 1, DType::F32)?;
        say(&format!(
            "{}: {}, {} layers, {} parameters",
            path.display(),
            described.name,
            described.layers.len(),
            grouped(described.total.parameters)
        ));
        Ok(Outcome::Good)
    }
}
