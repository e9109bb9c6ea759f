//! RWKV's World vocabulary: the longest token that the text goes on with, byte for byte.

use std::collections::{BTreeMap, HashMap};

use super::literal;
use crate::{Error, Result};

/// Most tokens of a vocabulary file.
const MAX_TOKENS: usize = 1 << 20;

/// Tokens as bytes.
pub struct World {
    tokens: Vec<Vec<u8>>,
    ids: HashMap<Vec<u8>, u32>,
    longest: usize,
}

impl World {
    /// Tokens in the order of their ids, written as in GGUF files: `\n`, `\x9f`. The first stands between texts and is no
    /// text.
    pub(super) fn escaped(written: &[Vec<u8>]) -> Self {
        Self::new(written.iter().map(|token| unescaped(token)).collect())
    }

    /// Of the lines of RWKV's vocabulary file: `id literal bytes`, the token as Python writes texts or bytes.
    ///
    /// # Errors
    /// If a line is something else; the message tells which.
    pub(super) fn read(lines: &str) -> Result<Self> {
        let mut tokens = BTreeMap::new();
        for (number, line) in lines.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let token = line.split_once(' ').zip(line.rsplit_once(' ')).and_then(|((id, _), (_, length))| {
                let id = id.parse().ok().filter(|id| (1..MAX_TOKENS).contains(id))?;
                // The token itself may have spaces in it.
                let literal = line.get(line.find(' ')? + 1..line.rfind(' ')?)?;
                let token = literal::read(literal)?;
                (length.parse() == Ok(token.len())).then_some((id, token))
            });
            let Some((id, token)) = token else {
                let found: String = line.chars().take(40).collect();
                return Err(Error::new(format!(
                    "line {}: expected `id literal bytes`, as in `5 '\\x04' 1`, found `{found}`",
                    number + 1
                )));
            };
            tokens.insert(id, token);
        }
        let size = tokens.last_key_value().map_or(0, |(id, _)| id + 1);
        Ok(Self::new((0..size).map(|id| tokens.remove(&id).unwrap_or_default()).collect()))
    }

    /// The lines that [`World::read`] reads.
    pub(super) fn lines(&self) -> String {
        let tokens = self.tokens.iter().enumerate().skip(1).filter(|(_, token)| !token.is_empty());
        tokens.map(|(id, token)| format!("{id} {} {}\n", literal::write(token), token.len())).collect()
    }

    fn new(tokens: Vec<Vec<u8>>) -> Self {
        let texts = tokens.iter().enumerate().skip(1).filter(|(_, token)| !token.is_empty());
        let ids: HashMap<Vec<u8>, u32> =
            texts.filter_map(|(id, token)| Some((token.clone(), u32::try_from(id).ok()?))).collect();
        let longest = ids.keys().map(Vec::len).max().unwrap_or(0);
        Self { tokens, ids, longest }
    }

    /// # Errors
    /// If the vocabulary lacks a byte of the text.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut rest = text.as_bytes();
        let mut ids = Vec::new();
        while let Some(byte) = rest.first() {
            let mut lengths = (1..=self.longest.min(rest.len())).rev();
            let found = lengths.find_map(|n| Some((n, *self.ids.get(&rest[..n])?)));
            let (n, id) = found
                .ok_or_else(|| Error::new(format!("tokenizer: the vocabulary lacks the byte {byte:#04x}")))?;
            ids.push(id);
            rest = &rest[n..];
        }
        Ok(ids)
    }

    /// Bytes that are no UTF-8 become U+FFFD.
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        let text = ids.iter().filter(|&&id| id != 0).filter_map(|&id| self.tokens.get(id as usize));
        String::from_utf8_lossy(&text.flatten().copied().collect::<Vec<u8>>()).into_owned()
    }
}

/// The bytes of a token as Python writes them.
fn unescaped(written: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(written.len());
    let mut rest = written;
    while let Some((&first, after)) = rest.split_first() {
        let (byte, length) = if first == b'\\' { escape(after) } else { None }.unwrap_or((first, 0));
        bytes.push(byte);
        rest = &after[length..];
    }
    bytes
}

/// What follows a backslash: the byte that it stands for, and how many bytes say so.
fn escape(after: &[u8]) -> Option<(u8, usize)> {
    let digit = |d: u8| char::from(d).to_digit(16).and_then(|d| u8::try_from(d).ok());
    match *after {
        [b'x', high, low, ..] => Some((16 * digit(high)? + digit(low)?, 3)),
        [b'n', ..] => Some((b'\n', 1)),
        [b'r', ..] => Some((b'\r', 1)),
        [b't', ..] => Some((b'\t', 1)),
        [other @ (b'\\' | b'\'' | b'"'), ..] => Some((other, 1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_file() {
        let lines = "1 '\\x00' 1\n33 ' ' 1\n66 'a' 1\n70 b'\\xe2\\x82' 2\n71 b'\\xac' 1\n300 ' a b' 4\n\n301 '\\u20ac' 3\n";
        let world = World::read(lines).unwrap();
        assert_eq!(world.encode("a a b€ ").unwrap(), [66, 300, 301, 33]);
        assert_eq!(world.decode(&[70, 71, 2, 66, 0, 999]), "€a");
        for (bad, line) in [
            ("1 'a' 1\n2 'b' 2\n", 2),
            ("0 'a' 1\n", 1),
            ("1048576 'a' 1\n", 1),
            ("-1 'a' 1\n", 1),
            ("1 'a'\n", 1),
            ("1\n", 1),
            ("x\n", 1),
            ("1 a 1\n", 1),
            ("1  1\n", 1),
        ] {
            let message = World::read(bad).err().unwrap().to_string();
            assert!(message.starts_with(&format!("line {line}: expected `id literal bytes`")), "{message}");
        }
    }

    #[test]
    fn the_longest_token_wins() {
        let mut written: Vec<Vec<u8>> = vec![b"<s>".to_vec()];
        written.extend((0..=255u8).map(|b| format!("\\x{b:02x}").into_bytes()));
        written.extend([&b"ab"[..], b"abc", b"\\n\\n", b"\\\\'", b"\\xe2\\x82\\xac"].map(<[u8]>::to_vec));
        let world = World::escaped(&written);
        let text = "abcab\n\n\\'€x\u{1f980}";
        let ids = world.encode(text).unwrap();
        assert_eq!(ids[..6], [258, 257, 259, 260, 261, 1 + u32::from(b'x')]);
        assert_eq!(world.decode(&ids), text);
        assert_eq!(world.decode(&[0, 257, 9999]), "ab");
        assert!(World::escaped(&written[..5]).encode("a").is_err());
        let again = World::read(&world.lines()).unwrap();
        assert_eq!(again.encode(text).unwrap(), ids);
        assert_eq!(again.decode(&ids), text);
        assert_eq!(unescaped(b"\\xzz\\q\\"), b"\\xzz\\q\\");
    }
}
