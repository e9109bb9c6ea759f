//! Which models of a catalogue to list.

use std::collections::BTreeSet;

use super::Entry;
use crate::{Error, Result};

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
        let texts = [&entry.file, &entry.licence, &entry.tokenizer, &entry.note].into_iter().flatten();
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
