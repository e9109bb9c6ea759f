//! The argument that names an architecture: a shipped blueprint, a file, a checkpoint folder or a model of the Hub.

use std::path::Path;

use semisep_models::normal::Architecture;
use semisep_models::{Blueprint, Registry, blueprints};

use super::{model, say};
use crate::load;
use crate::{Error, Result, files};

/// The architecture of a shipped blueprint's name, a blueprint's file, a checkpoint's folder with or without its weights, or
/// a model of the Hub, of which the configuration is downloaded. Warnings go to standard error; no weight is read.
pub(super) fn open(name: &str) -> Result<Architecture> {
    let path = Path::new(name);
    if let Some(source) = blueprints::source(name) {
        return parse(name, source);
    }
    if let Some(folder) = model::configuration(path)? {
        let (architecture, notes) = load::describe(&folder)?;
        notes.iter().for_each(|note| say(&format!("note: {note}")));
        return Ok(architecture);
    }
    if !path.exists() && !name.contains(['/', '.']) {
        let names: Vec<&str> = blueprints::names().collect();
        return Err(Error::new(format!(
            "no blueprint is called {name}, and there is no such file or folder"
        ))
        .hint(format!("shipped blueprints: {}", names.join(", "))));
    }
    parse(name, &source(path)?)
}

/// The text of a blueprint's file.
pub(super) fn source(path: &Path) -> Result<String> {
    files::read_text(path)
}

fn parse(name: &str, source: &str) -> Result<Architecture> {
    let blueprint = Blueprint::parse(source, name, &Registry::builtin())
        .map_err(|found| Error::new(format!("the blueprint has errors\n\n{found}")))?;
    if !blueprint.warnings().is_empty() {
        say(&blueprint.warnings().to_string());
    }
    Ok(blueprint.architecture())
}
