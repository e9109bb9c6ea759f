//! Which layer is of which kind: the ways in which configurations say it.
//!
//! | way | for example |
//! |---|---|
//! | a list of layers | `attn_layer_indices` = [9, 18, 27] |
//! | period and offset | `attn_layer_period` = 8, `attn_layer_offset` = 4 |
//! | a list of kinds | `layer_types` = ["mamba", "attention", ...] |
//! | a list of kinds, repeated | `block_types` = ["recurrent", "recurrent", "attention"] |
//! | a pattern | `hybrid_override_pattern` = "M-M*-" |
//!
//! Published configurations speak of layers that do not exist, or name more kinds than layers. What is beyond the last layer
//! is passed over with a note; what is not there is a problem.

use std::collections::BTreeSet;

use super::{Fields, MAX_LAYERS};

/// The layers of a list; none if it is absent or null. Those past the last are left out, with a note.
pub(super) fn indices(
    config: &Fields,
    key: &str,
    n_layer: usize,
    notes: &mut Vec<String>,
) -> BTreeSet<usize> {
    let mut all = config.indices(key, MAX_LAYERS);
    let past = all.split_off(&n_layer);
    if !past.is_empty() {
        let list: Vec<String> = past.iter().map(ToString::to_string).collect();
        let list = list.join(", ");
        notes.push(format!("{key} names layer {list} of {n_layer}, counted from 0: passed over"));
    }
    all
}

/// The layers i with i % period = offset.
pub(super) fn every(n_layer: usize, period: usize, offset: usize) -> BTreeSet<usize> {
    (0..n_layer).filter(|i| i % period.max(1) == offset).collect()
}

/// As [`every`], with period and offset read from these keys; a note if that is no layer at all.
pub(super) fn periodic(
    config: &Fields,
    (period, offset): (&str, &str),
    (default_period, default_offset): (usize, usize),
    n_layer: usize,
    notes: &mut Vec<String>,
) -> BTreeSet<usize> {
    let every_so_many = config.size_or(period, default_period);
    let first = config.size_from(offset, 0).unwrap_or(default_offset);
    let chosen = every(n_layer, every_so_many, first);
    if chosen.is_empty() && config.ok() {
        notes.push(format!(
            "{period} = {every_so_many} and {offset} = {first} choose none of {n_layer} layers"
        ));
    }
    chosen
}

/// One kind a layer, from a list of names; `None` if it is absent. Names past the last layer are left out, with a note.
pub(super) fn types<K: Copy>(
    config: &Fields,
    key: &str,
    n_layer: usize,
    kinds: &[(&str, K)],
    notes: &mut Vec<String>,
) -> Option<Vec<K>> {
    let mut read = names(config, key, kinds)?;
    if read.len() < n_layer {
        config.problem(key, format!("expected a kind for each of {n_layer} layers, found {}", read.len()));
    }
    if read.len() > n_layer {
        notes
            .push(format!("{key} has {} entries for {n_layer} layers: the last are passed over", read.len()));
        read.truncate(n_layer);
    }
    Some(read)
}

/// One kind a layer, from a list of names that starts over where it ends; `None` if it is absent.
pub(super) fn cycled<K: Copy>(
    config: &Fields,
    key: &str,
    n_layer: usize,
    kinds: &[(&str, K)],
) -> Option<Vec<K>> {
    let read = names(config, key, kinds)?;
    if read.is_empty() {
        config.problem(key, "expected at least one kind of layer, found none");
    }
    Some(read.into_iter().cycle().take(n_layer).collect())
}

fn names<K: Copy>(config: &Fields, key: &str, kinds: &[(&str, K)]) -> Option<Vec<K>> {
    let list = config.get(key)?;
    let known = || kinds.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    let Some(items) = list.as_array().filter(|items| items.len() <= MAX_LAYERS) else {
        config.problem(key, format!("expected a list of up to {MAX_LAYERS} of {}", known()));
        return Some(Vec::new());
    };
    let mut read = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        match kinds.iter().find(|(name, _)| item.as_str() == Some(name)) {
            Some((_, kind)) => read.push(*kind),
            None => {
                config.problem(&format!("{key}[{i}]"), format!("expected one of {}, found {item}", known()));
                return Some(Vec::new());
            }
        }
    }
    Some(read)
}

/// One kind a letter; `None` if the key is absent. The separators of pipelines, `|` and `/`, are no layers.
pub(super) fn pattern<K: Copy>(config: &Fields, key: &str, kinds: &[(char, K)]) -> Option<Vec<K>> {
    let text = config.text(key)?;
    if text.len() > MAX_LAYERS {
        config.problem(key, format!("expected up to {MAX_LAYERS} layers, found {}", text.len()));
        return Some(Vec::new());
    }
    let mut read = Vec::with_capacity(text.len());
    for (i, letter) in text.chars().filter(|c| !matches!(c, '|' | '/')).enumerate() {
        match kinds.iter().find(|(known, _)| *known == letter) {
            Some((_, kind)) => read.push(*kind),
            None => {
                let known: String = kinds.iter().map(|(letter, _)| *letter).collect();
                config.problem(key, format!("expected letters of {known:?}, found {letter:?} for layer {i}"));
                return Some(Vec::new());
            }
        }
    }
    if read.is_empty() {
        config.problem(key, "expected at least one layer, found none");
    }
    Some(read)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::new(Path::new("config.json"), serde_json::from_str(text).unwrap())
    }

    const KINDS: [(&str, char); 2] = [("mamba", 'm'), ("attention", 'a')];

    #[test]
    fn lists_and_periods() {
        let mut notes = Vec::new();
        let config = fields(r#"{"at": [1, 9, 32], "none": null, "p": 3, "o": 1, "far": 7, "bad": [-1]}"#);
        assert_eq!(indices(&config, "at", 10, &mut notes), [1, 9].into());
        assert!(notes[0].contains("at names layer 32 of 10"), "{notes:?}");
        assert!(indices(&config, "none", 10, &mut notes).is_empty());
        assert_eq!(periodic(&config, ("p", "o"), (8, 4), 8, &mut notes), [1, 4, 7].into());
        assert!(periodic(&config, ("p", "far"), (8, 4), 8, &mut notes).is_empty());
        assert_eq!(notes.len(), 2);
        indices(&config, "bad", 10, &mut notes);
        assert!(!config.ok());
    }

    #[test]
    fn lists_of_kinds() {
        let mut notes = Vec::new();
        let config =
            fields(r#"{"t": ["mamba", "attention", "mamba"], "x": ["mamba", "rwkv"], "s": "mamba"}"#);
        let mut read = |n| types(&config, "t", n, &KINDS, &mut notes);
        assert_eq!(read(3), Some(vec!['m', 'a', 'm']));
        assert_eq!(read(2), Some(vec!['m', 'a']));
        assert_eq!(notes.len(), 1);
        assert_eq!(cycled(&config, "t", 5, &KINDS), Some(vec!['m', 'a', 'm', 'm', 'a']));
        assert_eq!(cycled(&config, "absent", 5, &KINDS), None);
        assert!(config.ok());
        for (key, part) in [
            ("t", "t: expected a kind for each of 4 layers, found 3"),
            ("x", r#"x[1]: expected one of "mamba", "attention", found "rwkv""#),
            ("s", "s: expected a list"),
        ] {
            let config =
                fields(r#"{"t": ["mamba", "attention", "mamba"], "x": ["mamba", "rwkv"], "s": "mamba"}"#);
            types(&config, key, 4, &KINDS, &mut Vec::new());
            let message = config.finish().unwrap_err().to_string();
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn patterns() {
        let letters = [('M', 'm'), ('*', 'a')];
        let config = fields(r#"{"p": "MM|*/M", "q": "M?", "e": ""}"#);
        assert_eq!(pattern(&config, "p", &letters), Some(vec!['m', 'm', 'a', 'm']));
        assert!(config.ok());
        pattern(&config, "q", &letters);
        pattern(&config, "e", &letters);
        let message = config.finish().unwrap_err().to_string();
        assert!(
            message.contains("found '?' for layer 1") && message.contains("at least one layer"),
            "{message}"
        );
    }
}
