//! Which files of a repository are needed: what the loader reads, and one set of weights.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::cache::is_file_name;
use crate::{Error, Result};

/// Beside the weights: configuration, tokenizers of all kinds, and the reference values of `verify`.
const SMALL: &[&str] = &[
    "blueprint.toml",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "20B_tokenizer.json",
    "meta.json",
    "tokens.json",
    "expected.safetensors",
];
/// RWKV's World tokenizer has its date in its name.
const RWKV_VOCABULARY: &str = "rwkv_vocab";
/// Weights by preference; each also as shards with an index. The loader's order.
const STEMS: &[&str] = &["model.safetensors", "pytorch_model.bin", "weights.ckpt"];
/// Most shards.
const MAX_SHARDS: usize = 10_000;

/// The weights of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// One file.
    Whole(String),
    /// The index of several.
    Index(String),
}

/// The files beside the weights, of those that there are.
pub(super) fn small<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let wanted = |name: &str| {
        SMALL.contains(&name)
            || (is_file_name(name) && name.starts_with(RWKV_VOCABULARY) && name.ends_with(".txt"))
    };
    names.iter().copied().filter(|name| wanted(name)).collect()
}

/// Whether there is a configuration, by which a model is known without its weights.
pub(super) fn has_configuration(names: &[&str]) -> bool {
    names.contains(&"config.json") || names.contains(&"blueprint.toml")
}

/// The weights of those that there are; `file` if one is asked for.
///
/// # Errors
/// If there are none, or several that exclude each other.
pub(super) fn weights(repo: &str, names: &[&str], file: Option<&str>) -> Result<Weights> {
    if let Some(file) = file {
        if !is_file_name(file) || !names.contains(&file) {
            return Err(Error::new(format!("{repo} has no file {file:?}")).hint(listed(names)));
        }
        return Ok(Weights::Whole(file.into()));
    }
    for stem in STEMS {
        let index = format!("{stem}.index.json");
        if names.contains(stem) {
            return Ok(Weights::Whole((*stem).into()));
        }
        if names.contains(&index.as_str()) {
            return Ok(Weights::Index(index));
        }
    }
    let pth = pth(names);
    match pth[..] {
        [only] => Ok(Weights::Whole(only.into())),
        [] => Err(Error::new(format!(
            "{repo} has no weights that can be loaded: expected model.safetensors, pytorch_model.bin (or shards with an \
             index), weights.ckpt or a .pth file"
        ))
        .hint("name a repository with the weights themselves, not one with GGUF, ONNX or adapters")),
        _ => Err(Error::new(format!("{repo} has {} models, one a .pth file: expected one", pth.len()))
            .hint(format!("pull one of them with --file NAME: {}", some(&pth)))),
    }
}

fn pth<'a>(names: &[&'a str]) -> Vec<&'a str> {
    names.iter().copied().filter(|name| is_file_name(name) && name.ends_with(".pth")).collect()
}

fn listed(names: &[&str]) -> String {
    let weights: Vec<&str> = names
        .iter()
        .copied()
        .filter(|n| {
            is_file_name(n) && [".safetensors", ".bin", ".pth", ".ckpt"].iter().any(|e| n.ends_with(e))
        })
        .collect();
    if weights.is_empty() {
        "it has no files of weights".into()
    } else {
        format!("it has {}", some(&weights))
    }
}

fn some(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    let more = if names.len() > SHOWN { format!(", ... ({} in all)", names.len()) } else { String::new() };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The shards that an index names.
///
/// # Errors
/// If it is none, or a name is not that of a file beside it.
pub(super) fn shards(index: &str) -> Result<Vec<String>> {
    let parsed: Index = serde_json::from_str(index)
        .map_err(|e| Error::new(format!("expected {{\"weight_map\": {{tensor: file}}}}: {e}")))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(Error::new(format!("expected 1 to {MAX_SHARDS} files, found {}", names.len())));
    }
    if let Some(bad) = names.iter().find(|name| !is_file_name(name)) {
        return Err(Error::new(format!("expected plain names of files, found {bad:?}")));
    }
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safetensors_come_first() {
        let of = |names: &[&str]| weights("o/n", names, None).unwrap();
        let whole = |name: &str| Weights::Whole(name.into());
        let all =
            ["a.pth", "model.onnx", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];
        assert_eq!(of(&all), whole("model.safetensors"));
        assert_eq!(of(&all[3..]), Weights::Index("model.safetensors.index.json".into()));
        assert_eq!(of(&all[4..]), whole("pytorch_model.bin"));
        assert_eq!(of(&all[..2]), whole("a.pth"));
        assert_eq!(of(&["weights.ckpt", "a.pth"]), whole("weights.ckpt"));
    }

    #[test]
    fn one_of_several_is_asked_for() {
        let names = ["x.pth", "y.pth", "sub/z.pth"];
        let error = weights("o/n", &names, None).unwrap_err();
        assert!(error.advice().unwrap().contains("--file NAME: x.pth, y.pth"), "{error:?}");
        assert_eq!(weights("o/n", &names, Some("y.pth")).unwrap(), Weights::Whole("y.pth".into()));
        for bad in ["z.pth", "../x.pth", "sub/z.pth"] {
            assert!(weights("o/n", &names, Some(bad)).is_err(), "{bad}");
        }
        for none in [&["flax_model.msgpack", "model.gguf", "onnx/model.onnx"][..], &[]] {
            assert!(weights("o/n", none, None).unwrap_err().to_string().contains("no weights"));
        }
    }

    #[test]
    fn what_is_not_read_is_not_pulled() {
        let names = [
            "README.md",
            "config.json",
            "../config.json",
            "sub/config.json",
            "tokenizer.json",
            "rwkv_vocab_v20230424.txt",
            "rwkv_vocab/../../x.txt",
            "tf_model.h5",
        ];
        assert_eq!(small(&names), ["config.json", "tokenizer.json", "rwkv_vocab_v20230424.txt"]);
    }

    #[test]
    fn an_index_names_files_beside_it() {
        let of =
            |file: &str| shards(&serde_json::json!({ "weight_map": { "a": file, "b": "s1" } }).to_string());
        assert_eq!(of("s2").unwrap(), ["s1", "s2"]);
        for bad in ["../s2", "/s2", "a\\s2", "sub/s2", "", ".."] {
            assert!(of(bad).is_err(), "{bad}");
        }
        for bad in ["", "{}", "[]", r#"{"weight_map": {}}"#, r#"{"weight_map": {"a": 1}}"#] {
            assert!(shards(bad).is_err(), "{bad}");
        }
    }
}
