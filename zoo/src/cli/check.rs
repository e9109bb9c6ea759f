//! `semisep check`

use std::path::{Path, PathBuf};

use candle_core::DType;
use semisep_models::blueprint::Diagnostics;
use semisep_models::normal::Architecture;
use semisep_models::{Blueprint, Registry, describe};
use serde::Serialize;

use super::{Outcome, architecture, model, print};
use crate::units::grouped;
use crate::{Error, Result, load};

/// Find all errors of blueprints and checkpoints' configurations, without building anything
///
/// Prints every error with its place, what was expected and what was found, and exits with 1 if there is any. Of a folder
/// or a model of the Hub, its configuration is checked, and its weights, if they are there, against it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Blueprints, checkpoint folders, models of the Hugging Face Hub
    #[arg(value_name = "FILE|DIR|OWNER/NAME", required = true)]
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
    /// What is wrong with a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
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

fn check(file: &Path, registry: &Registry) -> Result<Checked> {
    // What cannot be downloaded is not wrong in itself.
    if let Some(path) = model::configuration(file)? {
        return folder(file, &path);
    }
    let source = architecture::source(file)?;
    match Blueprint::parse(&source, &file.display().to_string(), registry) {
        Err(found) => Ok(Checked { valid: false, found, error: None, summary: String::new() }),
        Ok(blueprint) => Ok(Checked {
            valid: true,
            found: blueprint.warnings().clone(),
            error: None,
            summary: summary(&blueprint.architecture())?,
        }),
    }
}

/// A checkpoint's folder: what is wrong with it is one error.
fn folder(word: &Path, path: &Path) -> Result<Checked> {
    let found = Diagnostics::none(&word.display().to_string());
    Ok(match load::describe(path) {
        Ok((architecture, _)) => {
            Checked { valid: true, found, error: None, summary: summary(&architecture)? }
        }
        Err(e) => Checked { valid: false, found, error: Some(e.to_string()), summary: String::new() },
    })
}

fn summary(architecture: &Architecture) -> Result<String> {
    let described = describe(architecture, 1, 1, DType::F32)?;
    let (layers, parameters) = (described.layers.len(), grouped(described.total.parameters));
    Ok(format!("{}, {layers} layers, {parameters} parameters", described.name))
}

fn as_text(checked: &Checked) -> String {
    let found = if checked.found.is_empty() { String::new() } else { format!("{}\n", checked.found) };
    if let Some(error) = &checked.error {
        return format!("error: {error}\n");
    }
    if checked.valid { format!("{found}{}: good ({})\n", checked.found.file, checked.summary) } else { found }
}
