//! Our own layout: `blueprint.toml` beside weights that already have our names.

use std::path::Path;

use semisep_models::{Blueprint, Registry};

use super::{Import, Names};
use crate::files::read_text;
use crate::{Error, Result};

/// The architecture that a blueprint describes.
///
/// # Errors
/// If the blueprint has errors: all of them, drawn with their lines.
pub(super) fn import(path: &Path) -> Result<Import> {
    let source = read_text(path)?;
    let blueprint = Blueprint::parse(&source, &path.display().to_string(), &Registry::builtin())
        .map_err(|diagnostics| Error::new(format!("the blueprint cannot be used\n{diagnostics}")))?;
    let warnings = blueprint.warnings();
    Ok(Import {
        family: "blueprint",
        architecture: blueprint.architecture(),
        names: Names::new(),
        notes: (!warnings.is_empty()).then(|| warnings.to_string()).into_iter().collect(),
    })
}
