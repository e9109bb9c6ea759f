//! `semisep check`

use std::path::PathBuf;

use candle_core::DType;
use semisep_models::blueprint::Diagnostics;
use semisep_models::{Blueprint, Registry, describe};
use serde::Serialize;

use super::describe::grouped;
use super::{Outcome, architecture, print};
use crate::{Error, Result};

/// Find all errors of blueprints, without building anything
///
/// Prints every error with its place, what was expected and what was found, and exits with 1 if there is any.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Blueprints
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Print one JSON array, an object a file
    #[arg(long)]
    json: bool,
}

/// What was found in one file.
#[derive(Serialize)]
struct Checked {
    valid: bool,
    #[serde(flatten)]
    found: Diagnostics,
    #[serde(skip)]
    summary: String,
}

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        let registry = Registry::builtin();
        let checked: Vec<Checked> =
            self.files.iter().map(|file| check(file, &registry)).collect::<Result<_>>()?;
        let text = if self.json {
            format!("{:#}\n", serde_json::to_value(&checked).map_err(Error::new)?)
        } else {
            checked.iter().map(as_text).collect()
        };
        print(&text)?;
        Ok(if checked.iter().all(|c| c.valid) { Outcome::Good } else { Outcome::Bad })
    }
}

fn check(file: &std::path::Path, registry: &Registry) -> Result<Checked> {
    let source = architecture::source(file)?;
    match Blueprint::parse(&source, &file.display().to_string(), registry) {
        Err(found) => Ok(Checked { valid: false, found, summary: String::new() }),
        Ok(blueprint) => {
            let described = describe(&blueprint.architecture(), 1, 1, DType::F32)?;
            let (layers, parameters) = (described.layers.len(), grouped(described.total.parameters));
            let summary = format!("{}, {layers} layers, {parameters} parameters", described.name);
            Ok(Checked { valid: true, found: blueprint.warnings().clone(), summary })
        }
    }
}

fn as_text(checked: &Checked) -> String {
    let found = if checked.found.is_empty() { String::new() } else { format!("{}\n", checked.found) };
    if checked.valid { format!("{found}{}: good ({})\n", checked.found.file, checked.summary) } else { found }
}
