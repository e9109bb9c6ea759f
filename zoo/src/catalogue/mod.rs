//! The catalogue: public checkpoints of the zoo's families, what is known of them, and whether they fit this machine.

mod entry;
mod filter;
mod memory;

use std::collections::BTreeMap;
use std::path::Path;

pub use entry::{Download, Entry, Known, Stored};
pub use filter::Filter;
pub use memory::available_bytes;
use serde::Deserialize;

use crate::files::read_text;
use crate::import::{BARE, IMPORTERS};
use crate::{Error, Result};

/// The catalogue that ships.
const SHIPPED: &str = include_str!("../../catalogue.toml");
/// Most models of a catalogue.
const MAX_MODELS: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    model: Vec<toml::Spanned<Entry>>,
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
        if let Some(first) = seen.insert((entry.repo.clone(), entry.file.clone()), line) {
            let name = entry.file.as_ref().unwrap_or(&entry.repo);
            let message = format!("model at line {line}: {name} is at line {first} already");
            return Err(Error::at(path, message).hint("leave one of them out"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use semisep_models::Registry;

    use super::*;

    #[test]
    fn every_model_is_known_as_far_as_a_user_asks() {
        let entries = shipped().unwrap();
        assert!(entries.len() > 250);
        let registry = Registry::builtin();
        let mixers: BTreeSet<&str> = registry.names().collect();
        for entry in &entries {
            let name = entry.file.as_ref().unwrap_or(&entry.repo);
            assert!(entry.has_importer(), "{name}: {}", entry.family);
            assert!(!entry.kinds().is_empty(), "{name}");
            for kind in entry.kinds() {
                assert!(mixers.contains(kind), "{name}: {kind}");
            }
            assert!(entry.tokenizer.is_some() && entry.source.is_some(), "{name}");
            let parameters = entry.parameters.unwrap();
            assert!(entry.stored_parameters.is_none_or(|stored| stored > parameters), "{name}");
            // Two or four bytes each; a training checkpoint holds up to three times as many.
            let each = entry.download().unwrap().bytes as f64 / parameters as f64;
            assert!((1.9..12.1).contains(&each), "{name}: {each} bytes a parameter");
        }
        let listed: BTreeSet<&str> = entries.iter().map(|entry| entry.family.as_str()).collect();
        assert!(listed.len() > 30);
    }

    /// What is said to be approximate is a round number, and is neither derived nor said of an unknown field.
    #[test]
    fn approximate_figures_are_round() {
        for entry in shipped().unwrap() {
            let (name, parameters) = (&entry.repo, entry.parameters.unwrap());
            let digits = parameters.to_string();
            if entry.is_approximate("parameters") {
                assert!(digits.trim_end_matches('0').len() <= 4, "{name}: {parameters}");
            }
            assert!(entry.derived.iter().all(|field| field == "parameters"), "{name}");
            assert!(entry.approximate.iter().all(|field| !entry.derived.contains(field)), "{name}");
            let fields = ["parameters", "download_bytes"];
            assert!(entry.approximate.iter().all(|field| fields.contains(&field.as_str())), "{name}");
        }
    }

    /// A size in a name, `-1.2B` or `-90M`, is the model's; they are rounded freely, `0.1B` is 191 million.
    #[test]
    fn names_and_figures_agree() {
        let size = |part: &str| {
            let scale = match part.chars().last()?.to_ascii_lowercase() {
                'm' => 1e6,
                'b' => 1e9,
                _ => return None,
            };
            part[..part.len() - 1].parse::<f64>().ok().map(|n| n * scale)
        };
        let mut found = 0;
        // HyenaDNA's numbers are lengths.
        for entry in shipped().unwrap().iter().filter(|entry| !entry.family.starts_with("hyenadna")) {
            let name = entry.file.as_ref().unwrap_or(&entry.repo);
            let Some(named) = name.split(['-', '/']).find_map(size) else { continue };
            let ratio = entry.parameters.unwrap() as f64 / named;
            assert!((0.9..2.0).contains(&ratio), "{name}: {:?}", entry.parameters);
            found += 1;
        }
        assert!(found > 200);
    }

    /// Where a model is said to have another's shapes it has its parameters.
    #[test]
    fn models_of_the_same_shapes_agree() {
        let entries = shipped().unwrap();
        let mut found = 0;
        for entry in &entries {
            let Some(other) = entry.source.as_ref().and_then(|source| source.strip_prefix("those of "))
            else {
                continue;
            };
            let same = |e: &&Entry| {
                e.repo == other && (e.parameters, &e.layers) == (entry.parameters, &entry.layers)
            };
            assert!(entries.iter().any(|e| same(&e)), "{}: {other}", entry.repo);
            found += 1;
        }
        assert!(found > 20);
    }

    fn entry(lines: &str) -> Result<Vec<Entry>> {
        parse(&format!("\n[[model]]\nrepo = \"a/b\"\nfamily = \"f\"\n{lines}"), Path::new("mine.toml"))
    }

    #[test]
    fn downloads_are_as_certain_as_what_is_known() {
        let of = |lines: &str| entry(lines).unwrap()[0].download().map(|d| (d.bytes, d.known));
        assert_eq!(of("parameters = 12"), Some((48, Known::Most)));
        assert_eq!(of("parameters = 12\nstored = \"bf16\""), Some((24, Known::About)));
        assert_eq!(of("parameters = 12\nstored = \"f16\""), Some((24, Known::About)));
        assert_eq!(of("parameters = 12\nstored = \"f32\"\nstored_parameters = 20"), Some((80, Known::About)));
        assert_eq!(of("parameters = 12\nstored = \"f32\"\ndownload_bytes = 9"), Some((9, Known::Exact)));
        assert_eq!(of("download_bytes = 9\napproximate = [\"download_bytes\"]"), Some((9, Known::About)));
        assert_eq!(of("stored = \"f32\""), None);
    }

    #[test]
    fn catalogues_of_others_are_checked() {
        assert_eq!(entry("parameters = 12").unwrap()[0].bytes(2), Some(24));
        let files = "file = \"x.pth\"\n[[model]]\nrepo = \"a/b\"\nfile = \"y.pth\"\nfamily = \"f\"";
        assert_eq!(entry(files).unwrap().len(), 2);
        assert!(
            entry(&files.replace("y.pth", "x.pth"))
                .unwrap_err()
                .to_string()
                .contains("x.pth is at line 2 already")
        );
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
            ("[[model]]\nrepo = \"c/d\"\nfile = \"../x.pth\"\nfamily = \"f\"", "line 5: file"),
            ("file = \".x\"", "line 2: file"),
            ("stored = \"q8_0\"", "line 5"),
            ("stored_parameters = 0", "line 2: stored_parameters"),
            ("approximate = [\"\"]", "texts of 1 to 200"),
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
        assert_eq!(count(Filter { family: text("Zamba2"), ..Filter::default() }), 9);
        let small = Filter { max_parameters: Some(200_000_000), kind: text("mamba2"), ..Filter::default() };
        assert_eq!(count(small.clone()), 4);
        assert_eq!(count(Filter { search: text("SPACES/MAMBA2-130"), ..small.clone() }), 1);
        assert_eq!(
            count(Filter { search: text("world-0.4b"), family: text("rwkv-pth"), ..Filter::default() }),
            3
        );
        assert_eq!(count(Filter { licence: text("gemma"), ..small }), 0);
        let wrong = Filter { kind: text("mamba4"), ..Filter::default() };
        assert!(wrong.check(&entries).unwrap_err().advice().unwrap().contains("mamba2"));
    }
}
