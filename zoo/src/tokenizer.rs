//! Text to tokens and back: `tokenizer.json`, RWKV's vocabulary file, the characters of HyenaDNA, the vocabulary in a GGUF
//! file, or bytes.

mod characters;
mod cut;
mod gguf;
mod literal;
mod world;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use semisep_models::normal::ModelConfig;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::checkpoint;
use crate::files::{inside, read_text};
use crate::import::Fields;
use crate::{Error, Result};
pub use world::World;

/// A tokenizer.
pub enum Tokenizer {
    /// From `tokenizer.json`, or what could stand there.
    Trained(Box<tokenizers::Tokenizer>),
    /// RWKV's vocabulary.
    World(Box<World>),
    /// Ids 0 to 255 are bytes; other ids are no text.
    Bytes,
}

/// Names of the file that says everything: as usual, and of GPT-NeoX's in RWKV-4's folders.
const COMPLETE: [&str; 2] = ["tokenizer.json", "20B_tokenizer.json"];

/// RWKV's vocabulary file has its date in its name; this is the only one so far.
const WORLD: &str = "rwkv_vocab_v20230424.txt";

impl Tokenizer {
    /// The tokenizer of a model folder or GGUF file: `tokenizer.json`, for a file that beside it; a folder's RWKV vocabulary or
    /// HyenaDNA's characters; that of a GGUF file; else bytes.
    ///
    /// # Errors
    /// If a file is damaged, or there is none and the vocabulary has no room for bytes.
    pub fn open(folder: &Path, model: &ModelConfig) -> Result<Self> {
        if let Some(tokenizer) = Self::found(folder)? {
            return Ok(tokenizer);
        }
        if model.vocab_size < 256 {
            let message = format!(
                "there is no tokenizer.json, and a vocabulary of {} has no room for bytes (256)",
                model.vocab_size
            );
            return Err(Error::at(folder, message).hint("copy the model's tokenizer.json into the folder"));
        }
        Ok(Self::Bytes)
    }

    /// As [`Tokenizer::open`], `None` where there is none.
    pub(crate) fn found(folder: &Path) -> Result<Option<Self>> {
        let beside = if folder.is_dir() { folder } else { folder.parent().unwrap_or(Path::new("")) };
        for path in COMPLETE.map(|name| beside.join(name)) {
            if path.exists() {
                let text = read_text(&path)?;
                let damaged = |e: &dyn fmt::Display| Error::at(&path, format!("expected a tokenizer: {e}"));
                let _: IgnoredAny = serde_json::from_str(&text).map_err(|e| damaged(&e))?;
                let parsed = guarded(|| text.parse().map_err(|e: tokenizers::Error| damaged(&e)));
                return Ok(Some(Self::Trained(Box::new(parsed.map_err(|e| e.in_file(&path))?))));
            }
        }
        if folder.is_dir() {
            if folder.join(WORLD).exists() {
                let path = inside(folder, WORLD)?;
                let world = World::read(&read_text(&path)?).map_err(|e| e.in_file(&path))?;
                return Ok(Some(Self::World(Box::new(world))));
            }
            if let Some(tokenizer) = characters::tokenizer(folder)? {
                return Ok(Some(tokenizer));
            }
        }
        match checkpoint::gguf_metadata(folder)? {
            Some((path, metadata)) => gguf::tokenizer(&path, &metadata),
            None => Ok(None),
        }
    }

    /// The file that gives this tokenizer to a folder, by its name; bytes need none.
    ///
    /// # Errors
    /// If the tokenizer cannot be written down.
    pub(crate) fn file(&self) -> Result<Option<(&'static str, String)>> {
        match self {
            Self::Trained(tokenizer) => Ok(Some((COMPLETE[0], tokenizer.to_string(false).map_err(failed)?))),
            Self::World(world) => Ok(Some((WORLD, world.lines()))),
            Self::Bytes => Ok(None),
        }
    }

    /// The tokens of a text, with the special tokens that the tokenizer puts around a text.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// The tokens of a piece of text: as [`Tokenizer::encode`], without special tokens around it.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_piece(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        match self {
            Self::Trained(tokenizer) => {
                let encoding = guarded(|| tokenizer.encode(text, special).map_err(failed))?;
                Ok(encoding.get_ids().to_vec())
            }
            Self::World(world) => world.encode(text),
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
        }
    }

    /// The text of tokens; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        match self {
            Self::Trained(tokenizer) => guarded(|| tokenizer.decode(tokens, true).map_err(failed)),
            Self::World(world) => Ok(world.decode(tokens)),
            Self::Bytes => {
                let bytes: Vec<u8> = tokens.iter().filter_map(|&t| u8::try_from(t).ok()).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::new(format!("tokenizer: {error}"))
}

/// The tokenizers library panics on some damaged files: an error like any other to us.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let panicked = |_| {
        Err(Error::new("expected a tokenizer, found one that the tokenizers library cannot work with")
            .hint("copy tokenizer.json again from where the weights come from"))
    };
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked)
}

/// Turns tokens into text as they come, never half a character.
///
/// A token may end within a character, and the text of a token may depend on those before it (spaces). So a window of
/// tokens is decoded each time, and what is new is given out, but for replacement characters at its end, which the next
/// token may turn into text.
#[derive(Debug, Default)]
pub struct Stream {
    window: Vec<u32>,
    given: String,
}

/// Tokens kept before the window is cut.
const WINDOW: usize = 32;
/// Tokens of context kept when it is cut.
const CONTEXT: usize = 8;
/// A character has at most four bytes: this many may still be waiting for the last.
const WAITING: usize = 3;

impl Stream {
    /// The text that `token` adds; empty while a character is incomplete.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String> {
        self.window.push(token);
        let text = tokenizer.decode(&self.window)?;
        let complete = without_incomplete(&text);
        let Some(new) = complete.strip_prefix(self.given.as_str()) else { return Ok(String::new()) };
        let new = new.to_string();
        if self.window.len() > WINDOW && complete.len() == text.len() {
            let context = self.window.split_off(self.window.len() - CONTEXT);
            let given = tokenizer.decode(&context)?;
            // A context that begins within a character would change the text.
            if !given.contains('\u{fffd}') && text.ends_with(&given) {
                (self.window, self.given) = (context, given);
                return Ok(new);
            }
            self.window.extend(context);
        }
        self.given += &new;
        Ok(new)
    }

    /// What is left at the end, incomplete characters as U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.window)?;
        let rest = text.strip_prefix(self.given.as_str()).unwrap_or_default().to_string();
        *self = Self::default();
        Ok(rest)
    }
}

fn without_incomplete(text: &str) -> &str {
    let mut complete = text;
    for _ in 0..WAITING {
        complete = complete.strip_suffix('\u{fffd}').unwrap_or(complete);
    }
    complete
}

/// The tokens that end a text: `eos_token_id` of `generation_config.json`, else of `config.json`, else of a GGUF file; a
/// number or a list.
///
/// # Errors
/// If a file is damaged, or the value is something else.
pub fn stop_tokens(folder: &Path) -> Result<Vec<u32>> {
    Ok(token_ids(folder, "eos_token_id")?.unwrap_or_default())
}

/// The token that stands before a text: `bos_token_id`, else the first `eos_token_id`.
///
/// # Errors
/// As for [`stop_tokens`].
pub fn start_token(folder: &Path) -> Result<Option<u32>> {
    let bos = token_ids(folder, "bos_token_id")?.unwrap_or_default();
    Ok(bos.into_iter().chain(stop_tokens(folder)?).next())
}

/// The ids of start, end and padding that a folder or file names, by their keys in `generation_config.json`.
pub(crate) fn special_tokens(folder: &Path) -> Result<Map<String, Value>> {
    let mut named = Map::new();
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        match token_ids(folder, key)?.as_deref() {
            None => {}
            Some(&[id]) => {
                named.insert(key.into(), id.into());
            }
            Some(ids) => {
                named.insert(key.into(), ids.into());
            }
        }
    }
    Ok(named)
}

fn token_ids(folder: &Path, key: &str) -> Result<Option<Vec<u32>>> {
    for name in ["generation_config.json", "config.json"] {
        let path = folder.join(name);
        if !path.exists() {
            continue;
        }
        let config = Fields::open(&path)?;
        let Some(value) = config.get(key) else { continue };
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        return match ids {
            Some(ids) => Ok(Some(ids)),
            None => {
                Err(Error::at(&path, format!("{key}: expected a token id or a list of them, found {value}")))
            }
        };
    }
    Ok(checkpoint::gguf_metadata(folder)?.and_then(|(_, metadata)| gguf::special(&metadata, key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(tokenizer: &Tokenizer, tokens: &[u32]) -> (Vec<String>, String) {
        let mut stream = Stream::default();
        let mut pieces: Vec<String> = tokens.iter().map(|&t| stream.push(tokenizer, t).unwrap()).collect();
        pieces.push(stream.finish(tokenizer).unwrap());
        let all = pieces.concat();
        (pieces, all)
    }

    #[test]
    fn characters_come_whole() {
        let text = "naïve € 🦀 ".repeat(20);
        let tokens = Tokenizer::Bytes.encode(&text).unwrap();
        let (pieces, all) = stream(&Tokenizer::Bytes, &tokens);
        assert_eq!(all, text);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    }

    #[test]
    fn broken_bytes_end_as_replacement_characters() {
        let tokens = [b'a'.into(), 0xe2, 0x82, b'b'.into(), 0xf0, 0x9f];
        assert_eq!(stream(&Tokenizer::Bytes, &tokens).1, "a\u{fffd}b\u{fffd}");
        let many = [0xff; 100];
        assert_eq!(stream(&Tokenizer::Bytes, &many).1, "\u{fffd}".repeat(100));
    }

    /// A tokenizer with byte fallback, as in Llama files: bytes become text only when a character is whole.
    #[test]
    fn byte_fallback() {
        let vocab: Vec<String> = (0..256).map(|b| format!("\"<0x{b:02X}>\":{b}")).collect();
        let json = format!(
            r#"{{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,
            "decoder":{{"type":"Sequence","decoders":[{{"type":"ByteFallback"}},{{"type":"Fuse"}}]}},
            "model":{{"type":"BPE","byte_fallback":true,"vocab":{{{}}},"merges":[]}}}}"#,
            vocab.join(",")
        );
        let tokenizer = Tokenizer::Trained(Box::new(json.parse().unwrap()));
        let text = "aé€🦀!".repeat(12);
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        assert_eq!(tokenizer.encode(&text).unwrap(), tokens);
        assert_eq!(stream(&tokenizer, &tokens).1, text);
    }

    #[test]
    fn stop_tokens_of_both_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(stop_tokens(dir.path()).unwrap().is_empty());
        std::fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 3}"#).unwrap();
        assert_eq!(stop_tokens(dir.path()).unwrap(), [3]);
        std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [1, 2]}"#).unwrap();
        assert_eq!(stop_tokens(dir.path()).unwrap(), [1, 2]);
        std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": "x"}"#).unwrap();
        assert!(stop_tokens(dir.path()).unwrap_err().to_string().contains("eos_token_id"));
    }
}
