//! One token a character: HyenaDNA's tokenizer, which has a class of its own and no file.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Tokenizer, guarded};
use crate::import::Fields;
use crate::{Error, Result};

/// The ids before the characters, by HyenaDNA's `CharacterTokenizer`.
const SPECIAL: [&str; 7] = ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]"];

/// The characters, unless the configuration lists others.
const BASES: [&str; 5] = ["A", "C", "G", "T", "N"];

/// Most characters.
const MAX: usize = 1 << 12;

/// The tokenizer of a folder; `None` if its `tokenizer_config.json` is of another class, or there is none.
///
/// # Errors
/// If the characters that it lists are none.
pub(super) fn tokenizer(folder: &Path) -> Result<Option<Tokenizer>> {
    let path = folder.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let config = Fields::open(&path)?;
    if config.get("tokenizer_class").and_then(Value::as_str) != Some("HyenaDNATokenizer") {
        return Ok(None);
    }
    let character = |value: &Value| value.as_str().filter(|c| c.chars().count() == 1).map(String::from);
    let characters = match config.get("characters") {
        None => Some(BASES.map(String::from).to_vec()),
        Some(list) => list
            .as_array()
            .filter(|list| list.len() <= MAX)
            .and_then(|list| list.iter().map(character).collect::<Option<Vec<String>>>()),
    };
    let Some(characters) = characters else {
        return Err(Error::at(&path, "characters: expected a list of single characters"));
    };
    let names = SPECIAL.into_iter().map(String::from).chain(characters).enumerate();
    let vocabulary: Map<String, Value> = names.map(|(id, name)| (name, json!(id))).collect();
    let added = SPECIAL.iter().enumerate().map(|(id, name)| {
        json!({
            "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true
        })
    });
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "(?s)." }, "behavior": "Isolated", "invert": false },
        "post_processor": null,
        "decoder": { "type": "Fuse" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    });
    let damaged = |e: tokenizers::Error| Error::at(&path, format!("characters: {e}"));
    let tokenizer = guarded(|| json.to_string().parse().map_err(damaged))?;
    Ok(Some(Tokenizer::Trained(Box::new(tokenizer))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases() {
        let dir = tempfile::tempdir().unwrap();
        let open = |config: &str| {
            std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
            tokenizer(dir.path())
        };
        assert!(tokenizer(dir.path()).unwrap().is_none());
        assert!(open(r#"{"tokenizer_class": "GPT2Tokenizer"}"#).unwrap().is_none());
        let listed = r#"{"tokenizer_class": "HyenaDNATokenizer", "characters": ["U", "A"]}"#;
        assert_eq!(open(listed).unwrap().unwrap().encode("AUG").unwrap(), [8, 7, 6]);
        let bases = open(r#"{"tokenizer_class": "HyenaDNATokenizer"}"#).unwrap().unwrap();
        let ids = bases.encode("ACGTNxA\nC").unwrap();
        assert_eq!(ids, [7, 8, 9, 10, 11, 6, 7, 6, 8]);
        assert_eq!(bases.decode(&[7, 8, 1, 9, 10, 11]).unwrap(), "ACGTN");
        for bad in [r#"["AC"]"#, r#""ACGT""#, "[7]"] {
            let config = format!(r#"{{"tokenizer_class": "HyenaDNATokenizer", "characters": {bad}}}"#);
            let error = open(&config).err().unwrap().to_string();
            assert!(error.contains("single characters"), "{bad}: {error}");
        }
    }
}
