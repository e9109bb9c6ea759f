//! The tokenizer in a GGUF file's metadata.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::cut::cut;
use super::world::World;
use super::{Tokenizer, guarded};
use crate::checkpoint::{Metadata, Value};
use crate::{Error, Result};

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// A space at the beginning of a word, in SentencePiece's vocabularies.
const SPACE: &str = "\u{2581}";

/// The tokenizer of a file's metadata; `None` if it has none.
///
/// # Errors
/// If it is of another kind than gpt2, llama and rwkv, or damaged.
pub(super) fn tokenizer(path: &Path, metadata: &Metadata) -> Result<Option<Tokenizer>> {
    let fail =
        |message: String| Error::at(path, message).hint("put the model's tokenizer.json beside the file");
    let kind = match metadata.text("tokenizer.ggml.model") {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some(kind) => kind,
    };
    let Some(Value::Texts(tokens)) = metadata.get("tokenizer.ggml.tokens") else {
        return Err(fail("expected tokenizer.ggml.tokens, a list of texts".into()));
    };
    if kind == "rwkv" {
        return Ok(Some(Tokenizer::World(Box::new(World::escaped(tokens)))));
    }
    let texts: std::result::Result<Vec<&str>, _> = tokens.iter().map(|t| std::str::from_utf8(t)).collect();
    let Ok(tokens) = texts else { return Err(fail("tokenizer.ggml.tokens are not UTF-8".into())) };
    let vocabulary = Vocabulary { metadata, tokens };
    let json = match kind {
        "gpt2" => vocabulary.byte_level(),
        "llama" => Ok(vocabulary.sentence_piece()),
        other => Err(format!("the tokenizer {other:?} is not supported: known are gpt2, llama and rwkv")),
    };
    let json = json.map_err(fail)?.to_string();
    let damaged = |e: tokenizers::Error| fail(format!("the tokenizer in the metadata is damaged: {e}"));
    let tokenizer = guarded(|| json.parse().map_err(damaged)).map_err(|e| e.in_file(path))?;
    Ok(Some(Tokenizer::Trained(Box::new(tokenizer))))
}

struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: Vec<&'a str>,
}

impl Vocabulary<'_> {
    fn ids(&self) -> Json {
        let ids = self.tokens.iter().enumerate().map(|(id, token)| ((*token).to_string(), json!(id)));
        Json::Object(ids.collect::<Map<_, _>>())
    }

    fn number(&self, key: &str) -> Option<usize> {
        match self.metadata.get(&format!("tokenizer.ggml.{key}")) {
            Some(Value::Number(n)) if *n >= 0.0 => Some(*n as usize),
            _ => None,
        }
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        match self.metadata.get(&format!("tokenizer.ggml.{key}")) {
            Some(Value::Flag(flag)) => *flag,
            _ => default,
        }
    }

    fn numbers(&self, key: &str) -> &[f64] {
        match self.metadata.get(&format!("tokenizer.ggml.{key}")) {
            Some(Value::Numbers(numbers)) => numbers,
            _ => &[],
        }
    }

    /// Tokens that no merge makes: found in a text before all else.
    fn added(&self) -> Vec<Json> {
        let kinds = self.numbers("token_type").iter().zip(&self.tokens).enumerate();
        kinds
            .filter(|(_, (kind, _))| matches!(**kind, CONTROL | USER_DEFINED))
            .map(|(id, (kind, token))| {
                json!({
                    "id": id, "content": token, "special": *kind == CONTROL, "normalized": false,
                    "single_word": false, "lstrip": false, "rstrip": false
                })
            })
            .collect()
    }

    /// Puts the tokens around a text that the file asks for.
    fn around(&self, begin_by_default: bool) -> Json {
        let token = |key, wanted: bool| {
            let id = self.number(key).filter(|_| wanted)?;
            Some((id, *self.tokens.get(id)?))
        };
        let begin = token("bos_token_id", self.flag("add_bos_token", begin_by_default));
        let end = token("eos_token_id", self.flag("add_eos_token", false));
        if begin.is_none() && end.is_none() {
            return Json::Null;
        }
        let special = |token: Option<(usize, &str)>, sequence: usize| {
            token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": sequence}}))
        };
        let whole = |name: &str, sequence: usize| {
            let text = json!({"Sequence": {"id": name, "type_id": sequence}});
            [special(begin, sequence), Some(text), special(end, sequence)].into_iter().flatten()
        };
        let specials = [begin, end].into_iter().flatten();
        let specials: Map<_, _> = specials
            .map(|(id, text)| (text.to_string(), json!({"id": text, "ids": [id], "tokens": [text]})))
            .collect();
        json!({
            "type": "TemplateProcessing",
            "single": whole("A", 0).collect::<Vec<_>>(),
            "pair": whole("A", 0).chain(whole("B", 1)).collect::<Vec<_>>(),
            "special_tokens": specials
        })
    }

    /// Bytes as characters, merged pair by pair.
    fn byte_level(&self) -> Result<Json, String> {
        let Some(Value::Texts(merges)) = self.metadata.get("tokenizer.ggml.merges") else {
            return Err("expected tokenizer.ggml.merges, a list of texts".into());
        };
        let merges: Vec<Json> = merges.iter().map(|m| json!(String::from_utf8_lossy(m))).collect();
        let pre = self.metadata.text("tokenizer.ggml.pre").unwrap_or("default");
        let cut = cut(pre).ok_or_else(|| format!("the way {pre:?} to cut a text into words is not known"))?;
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added(),
            "normalizer": if cut.composes { json!({"type": "NFC"}) } else { Json::Null },
            "pre_tokenizer": cut.json(),
            "post_processor": self.around(cut.begins),
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": cut.whole_words, "vocab": self.ids(), "merges": merges
            }
        }))
    }

    /// Pieces with scores: the pair whose piece scores highest is merged first.
    fn sentence_piece(&self) -> Json {
        let prefix = self.flag("add_space_prefix", true);
        let replace =
            |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let mut normal = vec![replace(" ", SPACE)];
        let mut decoders =
            vec![replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if prefix {
            normal.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.number("unknown_token_id").and_then(|id| self.tokens.get(id));
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added(),
            "normalizer": {"type": "Sequence", "normalizers": normal},
            "pre_tokenizer": null,
            "post_processor": self.around(true),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": self.ids(), "merges": self.merges()
            }
        })
    }

    /// Every way to make a piece of two others, the highest score first.
    fn merges(&self) -> Vec<Json> {
        let ids: std::collections::HashMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
        let scores = self.numbers("scores");
        let mut merges = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let score = scores.get(id).copied().unwrap_or(-(id as f64));
            // Longer pieces are no words; every cut of one would be looked up.
            for (at, _) in token.char_indices().skip(1).take(64) {
                let (left, right) = token.split_at(at);
                if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                    merges.push((score, l, r));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        merges.into_iter().map(|(_, l, r)| json!([self.tokens[l], self.tokens[r]])).collect()
    }
}

/// The tokens that end a text and stand before one: `eos_token_id`, `eot_token_id`; `bos_token_id`.
pub(super) fn special(metadata: &Metadata, key: &str) -> Option<Vec<u32>> {
    let keys: &[&str] = if key == "eos_token_id" { &["eos_token_id", "eot_token_id"] } else { &[key] };
    let ids = keys.iter().filter_map(|key| match metadata.get(&format!("tokenizer.ggml.{key}")) {
        Some(Value::Number(n)) if *n >= 0.0 && n.fract() == 0.0 => Some(*n as u32),
        _ => None,
    });
    let ids: Vec<u32> = ids.collect();
    (!ids.is_empty()).then_some(ids)
}
