//! How byte-level vocabularies in GGUF files cut a text before they merge, by `tokenizer.ggml.pre`.
//!
//! Source: the patterns that llama.cpp's `src/llama-vocab.cpp` cites from the vocabularies' own `tokenizer.json`.

use serde_json::{Value as Json, json};

/// A way to cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    names: &'static [&'static str],
    /// Patterns whose matches stand alone, one after the other.
    patterns: &'static [&'static str],
    /// Whether the rest is cut as GPT-2 does.
    as_gpt2: bool,
    /// A pattern for what is left.
    last: Option<&'static str>,
    /// Whether a word that is a token is one, whatever the merges say.
    pub(super) whole_words: bool,
    /// Whether a text begins with the first token unless the file says otherwise.
    pub(super) begins: bool,
    /// Whether letters and their marks become one character first.
    pub(super) composes: bool,
}

const PLAIN: Cut = Cut {
    names: &[],
    patterns: &[],
    as_gpt2: false,
    last: None,
    whole_words: false,
    begins: false,
    composes: false,
};

const LLAMA3: &[&str] = &[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
const QWEN2: &[&str] = &[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
const TEKKEN: &[&str] = &[
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
const FALCON: &[&str] = &[r"[\p{P}\$\+<=>\^~\|`]+"];

const CUTS: [Cut; 7] = [
    Cut {
        names: &[
            "default",
            "gpt-2",
            "gpt2",
            "gpt-neox",
            "mpt",
            "olmo",
            "phi-2",
            "jais",
            "trillion",
            "granite-docling",
        ],
        as_gpt2: true,
        ..PLAIN
    },
    Cut {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"],
        patterns: LLAMA3,
        whole_words: true,
        begins: true,
        ..PLAIN
    },
    Cut { names: &["dbrx", "smaug-bpe"], patterns: LLAMA3, ..PLAIN },
    Cut {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"],
        patterns: QWEN2,
        composes: true,
        ..PLAIN
    },
    Cut { names: &["tekken"], patterns: TEKKEN, whole_words: true, begins: true, ..PLAIN },
    Cut {
        names: &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"],
        patterns: &[r"\p{N}"],
        as_gpt2: true,
        ..PLAIN
    },
    Cut { names: &["falcon"], patterns: FALCON, as_gpt2: true, last: Some("[0-9][0-9][0-9]"), ..PLAIN },
];

/// The way of this name.
pub(super) fn cut(name: &str) -> Option<&'static Cut> {
    CUTS.iter().find(|cut| cut.names.contains(&name))
}

impl Cut {
    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub(super) fn json(&self) -> Json {
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let mut steps: Vec<Json> = self.patterns.iter().map(|pattern| split(pattern)).collect();
        steps.push(json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": self.as_gpt2
        }));
        steps.extend(self.last.map(split));
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}
