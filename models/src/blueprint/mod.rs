//! Blueprints: a hybrid architecture as a TOML file.
//!
//! ```toml
//! name = "mamba2attn-2.7b"
//!
//! [model]
//! d_model = 2560
//! vocab_size = 50277
//!
//! [blocks.ssd]
//! mixer = "mamba2"
//! d_state = 128
//!
//! [blocks.attn]
//! mixer = "attention"
//! n_heads = 30
//! head_dim = 128
//!
//! [stack]
//! n_layer = 64
//! default = "ssd"
//! at = { attn = [9, 18, 27, 36, 45, 56] }
//! ```
//! A block is one mixer (`mixer = "KIND"` and the mixer's own keys), optionally with an `mlp` after it, or is made of
//! other blocks (`series`, `parallel`). The stack says which block each layer is, in one of four ways: `at`, `pattern`,
//! `every`, `layers`. [`json_schema`] describes every key. [`Blueprint::parse`] finds all errors of a file at once;
//! [`Architecture::to_toml`](crate::normal::Architecture::to_toml) goes back.

mod block;
mod compose;
mod diagnostic;
mod document;
mod hash;
mod keys;
mod layout;
mod read;
mod schema;
mod suggest;
mod syntax;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use semisep_core::{AbacusConfig, AbacusEmbedding, MAX_WIDTH, NormConfig};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use self::diagnostic::{Diagnostic, Diagnostics, Severity};
pub(crate) use self::hash::layer_json;
pub use self::schema::json_schema;
pub use self::suggest::nearest;

use self::block::{Block, Blocks};
use self::document::{Document, Table};
use self::keys::{Share, StackKeys};
use self::read::{Expected, Section, read};
use self::schema::own_schema;
use self::suggest::advice;
use self::syntax::syntax_error;
use crate::Registry;
use crate::describe::{Part, sizes};
use crate::links::Row;
use crate::normal::{Architecture, Layer, ModelConfig, Stage};

/// Largest file that is read, in bytes.
const MAX_SOURCE: usize = 1 << 20;

/// Most parameters that a model may have.
const MAX_PARAMETERS: u128 = 1 << 42;

/// A blueprint without errors.
#[derive(Debug, Clone)]
pub struct Blueprint {
    architecture: Architecture,
    warnings: Diagnostics,
}

impl Blueprint {
    /// Reads the text of a blueprint. `file_name` stands in messages; nothing is opened.
    ///
    /// # Errors
    /// All problems of the file: syntax, unknown and missing keys, wrong types, sizes that do not fit each other, names
    /// that do not exist, layouts that do not work out.
    pub fn parse(source: &str, file_name: &str, registry: &Registry) -> Result<Self, Diagnostics> {
        if source.len() > MAX_SOURCE {
            let message = format!("expected at most {MAX_SOURCE} bytes, found {}", source.len());
            return Err(Diagnostics::new(file_name, source, vec![syntax_error(source, 0..0, &message)]));
        }
        let (text, broken, how) = syntax::repair(source);
        let (root, _) = DeTable::parse_recoverable(&text);
        let mut document = Document::new(source, &root, how);
        let architecture = architecture(&mut document, &root, registry);
        let failed = document.failed() || !broken.is_empty();
        let found = [document.found(), broken].concat();
        let found = Diagnostics::new(file_name, source, found);
        match architecture {
            Some(architecture) if !failed => Ok(Self { architecture, warnings: found }),
            _ => Err(found),
        }
    }

    /// The architecture's name.
    pub fn name(&self) -> &str {
        &self.architecture.name
    }

    /// The normal form.
    pub fn architecture(&self) -> Architecture {
        self.architecture.clone()
    }

    /// What is probably not meant, such as a block that no layer is made of.
    pub fn warnings(&self) -> &Diagnostics {
        &self.warnings
    }
}

/// The sections of the file.
const SECTIONS: [&str; 4] = ["name", "model", "blocks", "stack"];

fn architecture<'d>(
    document: &mut Document<'d>,
    root: &Table<'d>,
    registry: &Registry,
) -> Option<Architecture> {
    for key in root.get_ref().keys().filter(|key| !SECTIONS.contains(&key.get_ref().as_ref())) {
        let name = key.get_ref();
        document.span(key.span(), name, format!("unknown key `{name}`"), advice(name, SECTIONS));
    }
    let name = name(document, root);
    let model = model(document, root);
    let d_model = d_model(root);
    let table = section(document, root, "blocks");
    if table.as_ref().is_some_and(|table| table.get_ref().is_empty()) {
        document.absent("blocks", "expected at least one [blocks.NAME]", None);
    }
    let blocks = match table {
        Some(table) => Blocks { registry, d_model }.read(document, table),
        None => BTreeMap::new(),
    };
    let composed = compose::compose(document, &blocks);
    shares(document, &blocks, &composed);
    let layers = stack(document, root, &blocks);
    let layers = layers.map(|layers| layers.iter().map(|name| layer(name, &blocks, &composed)).collect());
    let (name, model, layers): (_, _, Option<Vec<Layer>>) = (name, model?, layers?);
    if document.failed() {
        return None;
    }
    let architecture = Architecture { name: name?, model, layers: layers? };
    shared_places(document, &architecture);
    bound(document, &architecture);
    Some(architecture)
}

/// A table of the root.
fn section<'d>(document: &mut Document<'d>, root: &Table<'d>, key: &str) -> Option<Table<'d>> {
    match root.get_ref().get(key).map(|value| (value.span(), value.get_ref())) {
        Some((span, DeValue::Table(table))) => Some(Spanned::new(span, table.clone())),
        Some((span, other)) => {
            document.span(span, key, format!("expected a table, found {}", block::a(other)), None);
            None
        }
        None => {
            document.absent(key, format!("a blueprint needs [{key}]"), None);
            None
        }
    }
}

fn name(document: &mut Document<'_>, root: &Table<'_>) -> Option<String> {
    let value = root.get_ref().get("name");
    match value.map(Spanned::get_ref) {
        Some(DeValue::String(name)) if !name.trim().is_empty() && !name.contains(char::is_control) => {
            return Some(name.to_string());
        }
        Some(DeValue::String(name)) => {
            document.value("name", format!("expected a name, found {name:?}"), None);
        }
        Some(other) => document.value("name", format!("expected a string, found {}", block::a(other)), None),
        None => {
            let help = "for example `name = \"my-hybrid\"`, above the first table".to_owned();
            document.absent("name", "a blueprint needs `name`", Some(help));
        }
    }
    None
}

fn model<'d>(document: &mut Document<'d>, root: &Table<'d>) -> Option<ModelConfig> {
    let table = section(document, root, "model")?;
    let schema = own_schema::<ModelConfig>();
    let expected = Expected { key: "model", what: "[model]", schema: &schema, others: &[] };
    let model = read(document, &expected, table, ModelConfig::deserialize).value?;
    let sizes = [
        ("d_model", model.d_model),
        ("vocab_size", model.vocab_size),
        ("pad_vocab_size_multiple", model.pad_vocab_size_multiple),
    ];
    for (key, size) in sizes.into_iter().filter(|(_, size)| !(1..=MAX_WIDTH).contains(size)) {
        document.value(&format!("model.{key}"), format!("expected 1 to {MAX_WIDTH}, found {size}"), None);
    }
    let NormConfig { eps, .. } = model.norm;
    if !(eps.is_finite() && eps >= 0.0) {
        document.value("model.norm.eps", format!("expected a finite number from 0, found {eps}"), None);
    }
    let factors = [
        ("embedding_multiplier", model.embedding_multiplier),
        ("logits_multiplier", model.logits_multiplier),
    ];
    for (key, factor) in factors {
        if !factor.is_finite() {
            document.value(
                &format!("model.{key}"),
                format!("expected a finite number, found {factor}"),
                None,
            );
        }
    }
    if let Some(cap) = model.logits_soft_cap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
        let message = format!("expected a finite number above 0, found {cap}");
        document.value("model.logits_soft_cap", message, None);
    }
    if let Some(eps) = model.final_norm_eps.filter(|eps| !(eps.is_finite() && *eps >= 0.0)) {
        let message = format!("expected a finite number from 0 on, found {eps}");
        document.value("model.final_norm_eps", message, None);
    }
    if let Some(abacus) = &model.abacus {
        check_abacus(document, abacus, model.vocab_size);
    }
    Some(model)
}

fn check_abacus(document: &mut Document<'_>, abacus: &AbacusConfig, vocab_size: usize) {
    if let Some(issue) = abacus.check("model.abacus") {
        document.value(&issue.key, issue.message, issue.help);
    }
    for (i, token) in abacus.digit_tokens.iter().enumerate().filter(|(_, t)| **t as usize >= vocab_size) {
        let message = format!("token {token} is outside the vocabulary of {vocab_size}");
        document.value(&format!("model.abacus.digit_tokens[{i}]"), message, None);
    }
}

/// The model width, whatever is wrong beside it: mixers are checked against it. None if it is wrong itself.
fn d_model(root: &Table<'_>) -> Option<usize> {
    let width = root.get_ref().get("model")?.get_ref().as_table()?.get("d_model")?.get_ref().as_integer()?;
    let width = usize::from_str_radix(width.as_str(), width.radix()).ok()?;
    (1..=MAX_WIDTH).contains(&width).then_some(width)
}

/// The block of each layer; warns of blocks that no layer is made of.
fn stack<'d>(
    document: &mut Document<'d>,
    root: &Table<'d>,
    blocks: &BTreeMap<String, Option<Block>>,
) -> Option<Vec<String>> {
    let table = section(document, root, "stack")?;
    let schema = own_schema::<StackKeys>();
    let expected = Expected { key: "stack", what: "[stack]", schema: &schema, others: &[] };
    let Section { value, doubtful } = read(document, &expected, table, StackKeys::deserialize);
    let names: BTreeSet<&str> = blocks.keys().map(String::as_str).collect();
    let layers = layout::layout(document, &value?, &doubtful, &names)?;
    let used: BTreeSet<&str> = layers.iter().flat_map(|name| compose::reachable(blocks, name)).collect();
    for name in names.difference(&used) {
        document.warn(&format!("blocks.{name}"), format!("no layer is made of block \"{name}\""), None);
    }
    Some(layers)
}

/// Blocks that share parameters must be the same.
fn shares(
    document: &mut Document<'_>,
    blocks: &BTreeMap<String, Option<Block>>,
    composed: &BTreeMap<String, Option<Vec<Stage>>>,
) {
    let mut first: BTreeMap<String, (&str, serde_json::Value)> = BTreeMap::new();
    for (name, block) in blocks {
        let share = block.as_ref().and_then(|b| b.share.as_ref()).and_then(|s| s.id(name));
        let (Some(id), Some(Some(stages))) = (share, composed.get(name)) else { continue };
        let stages = layer_json(stages);
        match first.get(&id) {
            Some((other, theirs)) if *theirs != stages => {
                let message = format!("blocks \"{other}\" and \"{name}\" share \"{id}\" but differ");
                document.value(&format!("blocks.{name}.share"), message, None);
            }
            Some(_) => {}
            None => drop(first.insert(id, (name, stages))),
        }
    }
}

/// The path, pre-norm and post-norm of each of some branches.
type Places<'a> = Vec<[Option<&'a str>; 3]>;

/// Parts of layers that share parameters must have them at the same paths.
fn shared_places(document: &mut Document<'_>, architecture: &Architecture) {
    let mut first: BTreeMap<&str, (&str, Places<'_>)> = BTreeMap::new();
    let mut told = BTreeSet::new();
    for layer in &architecture.layers {
        let mut here: BTreeMap<&str, Places<'_>> = BTreeMap::new();
        for branch in layer.stages.iter().flat_map(|s| &s.branches) {
            if let Some(id) = &branch.share {
                let norms = [&branch.pre_norm, &branch.post_norm].map(|norm| norm.as_deref());
                here.entry(id).or_default().push([Some(&branch.path), norms[0], norms[1]]);
            }
        }
        for (id, paths) in here {
            let (other, theirs) = first.entry(id).or_insert_with(|| (&layer.block, paths.clone()));
            if *theirs != paths && told.insert(id) {
                let message = format!(
                    "blocks \"{other}\" and \"{}\" share \"{id}\" but have it at different paths",
                    layer.block
                );
                let help = "use it in both as it is, or set `path` and `norm_path`".to_owned();
                document.key(&format!("blocks.{}", layer.block), message, Some(help));
            }
        }
    }
}

fn layer(
    name: &str,
    blocks: &BTreeMap<String, Option<Block>>,
    composed: &BTreeMap<String, Option<Vec<Stage>>>,
) -> Option<Layer> {
    let share = blocks.get(name)?.as_ref()?.share.as_ref().and_then(|share: &Share| share.id(name));
    Some(Layer { block: name.into(), stages: composed.get(name)?.clone()?, share })
}

/// Bounds the number of parameters, before anything is allocated; sees that layers find what they need of earlier ones.
fn bound(document: &mut Document<'_>, architecture: &Architecture) {
    let model = &architecture.model;
    let embedding = model.padded_vocab() as u128 * model.d_model as u128;
    let mut total = embedding * if model.tie_embeddings { 1 } else { 2 };
    total += model.abacus.as_ref().map_or(0, |a| u128::from(AbacusEmbedding::parameters(a, model.d_model)));
    if total > MAX_PARAMETERS {
        let message =
            format!("the embedding alone has {total} parameters: expected at most {MAX_PARAMETERS}");
        return document.value("model.vocab_size", message, None);
    }
    let (mut of_block, mut shared) = (BTreeMap::new(), BTreeSet::new());
    let (mut row, mut lacking) = (Row::new(model.d_model), BTreeSet::new());
    for (index, layer) in architecture.layers.iter().enumerate() {
        let at = format!("blocks.{}", layer.block);
        if !of_block.contains_key(&layer.block) {
            match sizes(layer, architecture.layers.len(), model) {
                Ok(sizes) => drop(of_block.insert(layer.block.clone(), sizes)),
                Err(error) => return document.key(&at, format!("cannot be built: {error}"), None),
            }
        }
        let Some(sizes) = of_block.get(&layer.block) else { continue };
        if let Err(lack) = row.pass(&sizes.links)
            && lacking.insert(&layer.block)
        {
            let issue = lack.issue(index, layer);
            let key = issue.key.as_str();
            let places = [format!("{at}.{key}"), format!("{at}.mlp.{key}")];
            let place = places.into_iter().find(|place| document.has(place)).unwrap_or(at.clone());
            document.key(&place, issue.message, issue.help);
        }
        let counted = |part: &&Part| part.share.as_ref().is_none_or(|id| shared.insert(id.clone()));
        total += sizes.parts.iter().filter(counted).map(|part| part.parameters).sum::<u128>();
        if total > MAX_PARAMETERS {
            let message =
                format!("the model has more than {MAX_PARAMETERS} parameters, the most there may be");
            return document.key(&at, message, None);
        }
    }
}

/// Whether this can name a block or mixer: it becomes a part of parameter paths and a bare key of TOML.
pub(crate) fn is_name(name: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=64).contains(&name.len()) && name.chars().all(valid)
}

/// Names separated by dots.
fn is_path(path: &str) -> bool {
    path.split('.').all(is_name)
}

/// Keys that every block has or may have.
pub(crate) fn reserved_keys() -> Vec<String> {
    let composed = ["mixer", "mlp", "parallel", "series", "merge", "shared_norm"].map(String::from);
    [schema::keys_of::<keys::BranchKeys>(), schema::keys_of::<keys::LayerKeys>(), composed.to_vec()].concat()
}
