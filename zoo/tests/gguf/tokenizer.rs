//! Vocabularies in the metadata.

use semisep_zoo::load::{LoadOptions, load};
use semisep_zoo::tokenizer::{Tokenizer, stop_tokens};

use crate::common::{semisep, stderr, stdout};
use crate::conversion::gguf;
use crate::writer::Gguf;
use crate::written;

/// The characters that stand for bytes in byte-level vocabularies: here those of ASCII.
pub fn with_tokenizer(mut file: Gguf, vocab: usize) -> Gguf {
    let mut tokens: Vec<String> = (0x21..=0x7eu8).map(|b| char::from(b).to_string()).collect();
    tokens.insert(0, "\u{120}".into());
    tokens.push("th".into());
    tokens.push("<|end|>".into());
    let kinds: Vec<i32> = (0..vocab).map(|i| if i + 1 == tokens.len() { 3 } else { 1 }).collect();
    let end = tokens.len() as u32 - 1;
    (tokens.len()..vocab).for_each(|i| tokens.push(format!("[{i}]")));
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "gpt-2");
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.kinds("tokenizer.ggml.token_type", &kinds);
    file.texts("tokenizer.ggml.merges", &["t h".into()]);
    file.id("tokenizer.ggml.eos_token_id", end);
    file
}

#[test]
fn text_through_the_files_own_vocabulary() {
    let (_dir, path) = written(&with_tokenizer(gguf("mamba-hf", true), 104));
    let loaded = load(&path, &LoadOptions::default()).unwrap();
    let tokenizer = Tokenizer::open(&path, &loaded.architecture.model).unwrap();
    let ids = tokenizer.encode("the th!<|end|>").unwrap();
    assert_eq!(ids, [95, 69, 0, 95, 1, 96]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "the th!");
    assert_eq!(stop_tokens(&path).unwrap(), [96]);
    let output = semisep(&["generate", path.to_str().unwrap(), "-p", "the", "-n", "5"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let bench = semisep(&["bench", path.to_str().unwrap(), "--lengths", "4", "--seconds", "0"]);
    assert!(stdout(&bench).contains("q8_0"), "{}", stdout(&bench));
}

#[test]
fn pieces_with_scores() {
    let tokens =
        ["<unk>", "<s>", "</s>", "<0x21>", "\u{2581}", "a", "b", "ab", "\u{2581}ab", "aba", "\u{2581}a"];
    let mut file = gguf("mamba-hf", false);
    file.text("tokenizer.ggml.model", "llama");
    file.texts("tokenizer.ggml.tokens", &tokens.map(String::from));
    file.floats("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, 0.0, -9.0, -8.0, -7.0, -1.0, -2.0, -3.0, -4.0]);
    file.kinds("tokenizer.ggml.token_type", &[2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1]);
    file.id("tokenizer.ggml.bos_token_id", 1);
    file.id("tokenizer.ggml.unknown_token_id", 0);
    let (_dir, path) = written(&file);
    let model = load(&path, &LoadOptions::default()).unwrap().architecture.model;
    let tokenizer = Tokenizer::open(&path, &model).unwrap();
    // `ab` scores highest, then the word that begins with it.
    assert_eq!(tokenizer.encode("ab aba!").unwrap(), [1, 8, 8, 5, 3]);
    assert_eq!(tokenizer.decode(&[1, 8, 8, 5, 3]).unwrap(), "ab aba!");
}

/// An export has the tokenizer and the special tokens of the metadata in files of their own.
#[test]
fn vocabularies_go_along_with_an_export() {
    let mut world = gguf("rwkv7-pth", false);
    let mut tokens = vec!["<s>".to_string()];
    tokens.extend((0..=255u8).map(|b| format!("\\x{b:02x}")));
    tokens.extend(["ab", "\\n\\n", "it\\'s", "\\xe2\\x82\\xac"].map(String::from));
    world.text("tokenizer.ggml.model", "rwkv");
    world.texts("tokenizer.ggml.tokens", &tokens);
    world.id("tokenizer.ggml.eos_token_id", 0);
    for (file, text, name, end) in [
        (with_tokenizer(gguf("mamba-hf", true), 104), "the th!<|end|>", "tokenizer.json", 96),
        (world, "ab it's\n\n€ é\u{1f980}", "rwkv_vocab_v20230424.txt", 0),
    ] {
        let (dir, path) = written(&file);
        let out = dir.path().join("out");
        let output = semisep(&["export", path.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(out.join(name).is_file(), "{name}");
        let model = load(&path, &LoadOptions::default()).unwrap().architecture.model;
        let [before, after] = [&path, &out].map(|from| Tokenizer::open(from, &model).unwrap());
        let ids = before.encode(text).unwrap();
        assert_eq!(after.encode(text).unwrap(), ids);
        assert_eq!(after.decode(&ids).unwrap(), before.decode(&ids).unwrap());
        assert_eq!(stop_tokens(&out).unwrap(), [end]);
        // And once more, from folder to folder.
        let again = dir.path().join("again");
        let output = semisep(&["export", out.to_str().unwrap(), "--out", again.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(std::fs::read(again.join(name)).unwrap(), std::fs::read(out.join(name)).unwrap());
    }
}
