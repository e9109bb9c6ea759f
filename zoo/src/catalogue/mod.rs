//! The catalogue: public checkpoints of the zoo's families, what is known of them, and whether they fit this machine.

mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub use memory::available_bytes;
use serde::{Deserialize, Serialize};

use crate::files::read_text;
use crate::hub::ModelId;
use crate::import::{BARE, IMPORTERS, MAX_LAYERS};
use crate::{Error, Result};

/// The catalogue that ships.
const SHIPPED: &str = include_str!("../../catalogue.toml");
/// Most models of a catalogue.
const MAX_MODELS: usize = 10_000;
/// Longest text of a field.
const MAX_TEXT: usize = 200;
/// Most kinds of layers of a model.
const MAX_KINDS: usize = 16;
/// Most parameters of a model.
const MAX_PARAMETERS: u64 = 100_000_000_000_000;

/// One public checkpoint. What is not certain is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `OWNER/NAME` on the Hub.
    pub repo: String,
    /// The importer that reads it.
    pub family: String,
    /// Stored parameters, shared ones once.
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
    /// Bytes of a pull.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download_bytes: Option<u64>,
    /// Whether a licence has to be accepted first.
    #[serde(default)]
    pub gated: bool,
    /// Fields that were computed from the configuration rather than published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub derived: Vec<String>,
    /// What else to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    model: Vec<toml::Spanned<Entry>>,
}

/// Which models to list; everything that is set has to hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this family.
    pub family: Option<String>,
    /// With this many parameters at most.
    pub max_parameters: Option<u64>,
    /// With layers of this kind.
    pub kind: Option<String>,
    /// Under this licence.
    pub licence: Option<String>,
    /// With this text somewhere.
    pub search: Option<String>,
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

    /// Whether this version reads its family.
    pub fn has_importer(&self) -> bool {
        families().any(|family| family == self.family)
    }

    /// What is wrong with it.
    fn problem(&self) -> Option<String> {
        if let Some(Err(error)) =
            ModelId::recognise(&self.repo).or_else(|| Some(ModelId::new(&self.repo, None)))
        {
            return Some(format!("repo: {error}"));
        }
        if self.repo.contains('@') {
            return Some(format!("repo: expected no revision, found {:?}", self.repo));
        }
        let texts = [&self.licence, &self.tokenizer, &self.note].into_iter().flatten();
        let words =
            texts.chain([&self.family]).chain(self.layers.keys()).chain(&self.kinds).chain(&self.derived);
        let bad =
            |text: &&String| text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control);
        if let Some(text) = words.clone().find(bad) {
            let shown: String = text.chars().take(40).collect();
            return Some(format!("expected texts of 1 to {MAX_TEXT} bytes in one line, found {shown:?}"));
        }
        if self.kinds().len() > MAX_KINDS || self.derived.len() > MAX_KINDS {
            return Some(format!("expected at most {MAX_KINDS} kinds of layers"));
        }
        if let Some((kind, n)) = self.layers.iter().find(|(_, n)| !(1..=MAX_LAYERS).contains(*n)) {
            return Some(format!("layers.{kind}: expected 1 to {MAX_LAYERS}, found {n}"));
        }
        let sizes = [("parameters", self.parameters), ("download_bytes", self.download_bytes)];
        let large = |(_, n): &(&str, Option<u64>)| n.is_some_and(|n| n == 0 || n > MAX_PARAMETERS);
        sizes.iter().find(|size| large(size)).map(|(name, n)| {
            format!("{name}: expected 1 to {MAX_PARAMETERS}, found {}", n.unwrap_or_default())
        })
    }
}

/// The families that this version reads.
pub fn families() -> impl Iterator<Item = &'static str> {
    IMPORTERS.iter().map(|i| i.family).chain(BARE.iter().map(|b| b.family))
}

/// The catalogue that ships.
///
/// # Errors
/// If it is damaged.
pub fn shipped() -> Result<Vec<Entry>> {
    parse(SHIPPED, Path::new("catalogue.toml"))
}

/// A catalogue of the user's, in the form of the shipped one.
///
/// # Errors
/// If it cannot be read; with line, key and what was expected.
pub fn open(path: &Path) -> Result<Vec<Entry>> {
    parse(&read_text(path)?, path)
}

fn parse(text: &str, path: &Path) -> Result<Vec<Entry>> {
    let hint = "see zoo/catalogue.toml for the form: [[model]] with repo, family, and what is known";
    let line = |at: usize| 1 + text[..at.min(text.len())].matches('\n').count();
    let file: File = toml::from_str(text).map_err(|e| {
        let place = e.span().map_or_else(String::new, |span| format!("line {}: ", line(span.start)));
        Error::at(path, format!("{place}{}", e.message())).hint(hint)
    })?;
    if file.model.len() > MAX_MODELS {
        let message = format!("expected at most {MAX_MODELS} models, found {}", file.model.len());
        return Err(Error::at(path, message));
    }
    let mut seen = BTreeMap::new();
    let mut entries = Vec::with_capacity(file.model.len());
    for spanned in file.model {
        let line = line(spanned.span().start);
        let entry = spanned.into_inner();
        if let Some(problem) = entry.problem() {
            return Err(Error::at(path, format!("model at line {line}: {problem}")).hint(hint));
        }
        if let Some(first) = seen.insert(entry.repo.clone(), line) {
            let message = format!("model at line {line}: {} is at line {first} already", entry.repo);
            return Err(Error::at(path, message).hint("leave one of them out"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

impl Filter {
    /// Whether a model is to be listed.
    pub fn takes(&self, entry: &Entry) -> bool {
        let same = |a: &Option<String>, b: &str| a.as_ref().is_none_or(|a| a.eq_ignore_ascii_case(b));
        let kind =
            self.kind.as_ref().is_none_or(|kind| entry.kinds().contains(kind.to_ascii_lowercase().as_str()));
        let small = self.max_parameters.is_none_or(|most| entry.parameters.is_some_and(|n| n <= most));
        let licence = entry.licence.as_deref().unwrap_or_default();
        kind && small
            && same(&self.family, &entry.family)
            && same(&self.licence, licence)
            && self.finds(entry)
    }

    fn finds(&self, entry: &Entry) -> bool {
        let Some(search) = self.search.as_ref().map(|search| search.to_lowercase()) else { return true };
        let texts = [&entry.licence, &entry.tokenizer, &entry.note].into_iter().flatten();
        texts
            .chain([&entry.repo, &entry.family])
            .map(String::as_str)
            .chain(entry.kinds())
            .any(|text| text.to_lowercase().contains(&search))
    }

    /// Refuses a family, kind or licence that no entry has: a mistake in it would look like an empty list.
    ///
    /// # Errors
    /// With those that there are.
    pub fn check(&self, entries: &[Entry]) -> Result<()> {
        let all = |of: &dyn Fn(&Entry) -> Vec<String>| entries.iter().flat_map(of).collect::<BTreeSet<_>>();
        let known = [
            ("--family", &self.family, all(&|e| vec![e.family.clone()])),
            ("--kind", &self.kind, all(&|e| e.kinds().into_iter().map(String::from).collect())),
            ("--licence", &self.licence, all(&|e| e.licence.clone().into_iter().collect())),
        ];
        for (flag, asked, known) in known {
            let Some(asked) = asked else { continue };
            if !known.iter().any(|name| name.eq_ignore_ascii_case(asked)) {
                let known: Vec<String> = known.into_iter().collect();
                let message = format!("{flag}: no model of the catalogue has {asked:?}");
                return Err(Error::new(message).hint(format!("there are {}", known.join(", "))));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use semisep_models::Registry;

    use super::*;

    #[test]
    fn every_family_has_an_importer_and_every_kind_is_a_mixer() {
        let entries = shipped().unwrap();
        assert!(entries.len() > 150);
        let registry = Registry::builtin();
        let mixers: BTreeSet<&str> = registry.names().collect();
        for entry in &entries {
            assert!(entry.has_importer(), "{}: {}", entry.repo, entry.family);
            assert!(!entry.kinds().is_empty(), "{}", entry.repo);
            for kind in entry.kinds() {
                assert!(mixers.contains(kind), "{}: {kind}", entry.repo);
            }
            let fields = ["parameters", "layers", "download_bytes"];
            assert!(entry.derived.iter().all(|field| fields.contains(&field.as_str())), "{}", entry.repo);
        }
        let listed: BTreeSet<&str> = entries.iter().map(|entry| entry.family.as_str()).collect();
        assert!(listed.len() > 20);
    }

    fn entry(lines: &str) -> Result<Vec<Entry>> {
        parse(&format!("\n[[model]]\nrepo = \"a/b\"\nfamily = \"f\"\n{lines}"), Path::new("mine.toml"))
    }

    #[test]
    fn catalogues_of_others_are_checked() {
        assert_eq!(entry("parameters = 12").unwrap()[0].bytes(2), Some(24));
        assert!(parse("", Path::new("mine.toml")).unwrap().is_empty());
        let long = format!("note = \"{}\"", "x".repeat(201));
        for (lines, says) in [
            ("parameters = 0", "line 2: parameters"),
            ("parameters = -1", "line 5"),
            ("parameters = 999999999999999999", "line 2: parameters"),
            ("nonsense = 1", "unknown field"),
            ("layers = { mamba2 = 0 }", "layers.mamba2"),
            ("layers = { mamba2 = 10001 }", "layers.mamba2"),
            ("kinds = [\"\"]", "texts of 1 to 200"),
            ("note = \"a\\u0007\"", "texts of 1 to 200"),
            (&long, "texts of 1 to 200"),
            ("[[model]]\nrepo = \"a/b\"\nfamily = \"f\"", "line 5: a/b is at line 2 already"),
            ("[[model]]\nrepo = \"../x\"\nfamily = \"f\"", "line 5: repo"),
            ("[[model]]\nrepo = \"a/b@main\"\nfamily = \"f\"", "no revision"),
            ("[[model]]\nfamily = \"f\"", "repo"),
            ("= 1", "line 5"),
        ] {
            let error = entry(lines).unwrap_err();
            assert!(
                error.to_string().starts_with("mine.toml: ") && error.to_string().contains(says),
                "{lines}: {error}"
            );
            assert!(error.advice().is_some());
        }
    }

    #[test]
    fn filters_hold_together() {
        let entries = shipped().unwrap();
        let count = |filter: Filter| {
            filter.check(&entries).unwrap();
            entries.iter().filter(|entry| filter.takes(entry)).count()
        };
        let text = |text: &str| Some(text.to_string());
        assert_eq!(count(Filter::default()), entries.len());
        assert_eq!(count(Filter { family: text("Zamba2"), ..Filter::default() }), 6);
        let small = Filter { max_parameters: Some(200_000_000), kind: text("mamba2"), ..Filter::default() };
        assert_eq!(count(small.clone()), 1);
        assert_eq!(count(Filter { search: text("MAMBA2-130"), ..small.clone() }), 1);
        assert_eq!(count(Filter { licence: text("gemma"), ..small }), 0);
        let wrong = Filter { kind: text("mamba4"), ..Filter::default() };
        assert!(wrong.check(&entries).unwrap_err().advice().unwrap().contains("mamba2"));
    }
}
