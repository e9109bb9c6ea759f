//! One model of a catalogue: what is known of it, and what follows from that.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::families;
use crate::hub::ModelId;
use crate::import::MAX_LAYERS;

/// Longest text of a field.
const MAX_TEXT: usize = 200;
/// Most kinds of layers of a model.
const MAX_KINDS: usize = 16;
/// Most parameters of a model.
const MAX_PARAMETERS: u64 = 100_000_000_000_000;

/// One public checkpoint. What is not known is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `OWNER/NAME` on the Hub.
    pub repo: String,
    /// The file of weights, where the repository has several models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The importer that reads it.
    pub family: String,
    /// The model's parameters, shared ones once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// Layers of each kind of mixer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, usize>,
    /// Kinds of mixers, where their numbers are not certain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kinds: Vec<String>,
    /// The Hub's identifier of the licence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Where the tokenizer is: `own`, another repository, `characters` or `bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The weights' type in the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<Stored>,
    /// Numbers in the files where they are not the parameters': copies of shared ones, layers that nothing here reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_parameters: Option<u64>,
    /// Bytes of a pull, where they do not follow from what is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    download_bytes: Option<u64>,
    /// Whether a licence has to be accepted first.
    #[serde(default)]
    pub gated: bool,
    /// Fields that were computed from the configuration rather than published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub derived: Vec<String>,
    /// Fields that are known to a few digits only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approximate: Vec<String>,
    /// Where the number of parameters comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What else to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Types of weights in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// Four bytes each.
    F32,
    /// Two bytes each.
    F16,
    /// Two bytes each.
    Bf16,
}

/// Bytes of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Download {
    /// How many.
    pub bytes: u64,
    /// How well they are known.
    pub known: Known,
}

/// How well a number of bytes is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Known {
    /// As published.
    Exact,
    /// To a few digits: the weights alone, or as published in round numbers.
    About,
    /// The type of the stored weights is not known, and four bytes each are the most that it may be.
    Most,
}

impl Entry {
    /// The kinds of its mixers, sorted.
    pub fn kinds(&self) -> BTreeSet<&str> {
        self.layers.keys().chain(&self.kinds).map(String::as_str).collect()
    }

    /// Bytes of its weights, each of this many bytes.
    pub fn bytes(&self, of_one: usize) -> Option<u64> {
        self.parameters?.checked_mul(of_one as u64)
    }

    /// Bytes of a pull: as published, else the weights' as they are stored, without the small files beside them.
    pub fn download(&self) -> Option<Download> {
        if let Some(bytes) = self.download_bytes {
            let known = if self.is_approximate("download_bytes") { Known::About } else { Known::Exact };
            return Some(Download { bytes, known });
        }
        let (of_one, known) = match self.stored {
            Some(Stored::F16 | Stored::Bf16) => (2, Known::About),
            Some(Stored::F32) => (4, Known::About),
            None => (4, Known::Most),
        };
        let bytes = self.stored_parameters.or(self.parameters)?.checked_mul(of_one)?;
        Some(Download { bytes, known })
    }

    /// Whether a field is known to a few digits only.
    pub fn is_approximate(&self, field: &str) -> bool {
        self.approximate.iter().any(|name| name == field)
    }

    /// Whether this version reads its family.
    pub fn has_importer(&self) -> bool {
        families().any(|family| family == self.family)
    }

    /// What is wrong with it.
    pub(super) fn problem(&self) -> Option<String> {
        self.bad_name().or_else(|| self.bad_text()).or_else(|| self.bad_number())
    }

    fn bad_name(&self) -> Option<String> {
        if let Some(Err(error)) =
            ModelId::recognise(&self.repo).or_else(|| Some(ModelId::new(&self.repo, None)))
        {
            return Some(format!("repo: {error}"));
        }
        if self.repo.contains('@') {
            return Some(format!("repo: expected no revision, found {:?}", self.repo));
        }
        let file = self.file.as_ref().filter(|file| file.starts_with('.') || file.contains(['/', '\\']))?;
        Some(format!("file: expected the name of a file of the repository, found {file:?}"))
    }

    fn bad_text(&self) -> Option<String> {
        let texts =
            [&self.file, &self.licence, &self.tokenizer, &self.source, &self.note].into_iter().flatten();
        let lists = [&self.kinds, &self.derived, &self.approximate];
        let mut words =
            texts.chain([&self.family]).chain(self.layers.keys()).chain(lists.into_iter().flatten());
        let bad =
            |text: &&String| text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control);
        if let Some(text) = words.find(bad) {
            let shown: String = text.chars().take(40).collect();
            return Some(format!("expected texts of 1 to {MAX_TEXT} bytes in one line, found {shown:?}"));
        }
        if self.kinds().len() > MAX_KINDS || lists.iter().any(|list| list.len() > MAX_KINDS) {
            return Some(format!("expected at most {MAX_KINDS} kinds of layers and names of fields"));
        }
        None
    }

    fn bad_number(&self) -> Option<String> {
        if let Some((kind, n)) = self.layers.iter().find(|(_, n)| !(1..=MAX_LAYERS).contains(*n)) {
            return Some(format!("layers.{kind}: expected 1 to {MAX_LAYERS}, found {n}"));
        }
        let sizes = [
            ("parameters", self.parameters),
            ("stored_parameters", self.stored_parameters),
            ("download_bytes", self.download_bytes),
        ];
        let large = |(_, n): &(&str, Option<u64>)| n.is_some_and(|n| n == 0 || n > MAX_PARAMETERS);
        sizes.iter().find(|size| large(size)).map(|(name, n)| {
            format!("{name}: expected 1 to {MAX_PARAMETERS}, found {}", n.unwrap_or_default())
        })
    }
}
