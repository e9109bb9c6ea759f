//! RWKV's World vocabulary: the longest token that the text goes on with, byte for byte.

use std::collections::HashMap;

use crate::{Error, Result};

/// Tokens as bytes.
pub struct World {
    tokens: Vec<Vec<u8>>,
    ids: HashMap<Vec<u8>, u32>,
    longest: usize,
}

impl World {
    /// Tokens in the order of their ids, written as Python writes bytes: `\n`, `\x9f`. The first stands between texts and
    /// is no text.
    pub(super) fn new(written: &[Vec<u8>]) -> Self {
        let tokens: Vec<Vec<u8>> = written.iter().map(|token| unescaped(token)).collect();
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
    fn the_longest_token_wins() {
        let mut written: Vec<Vec<u8>> = vec![b"<s>".to_vec()];
        written.extend((0..=255u8).map(|b| format!("\\x{b:02x}").into_bytes()));
        written.extend([&b"ab"[..], b"abc", b"\\n\\n", b"\\\\'", b"\\xe2\\x82\\xac"].map(<[u8]>::to_vec));
        let world = World::new(&written);
        let text = "abcab\n\n\\'€x\u{1f980}";
        let ids = world.encode(text).unwrap();
        assert_eq!(ids[..6], [258, 257, 259, 260, 261, 1 + u32::from(b'x')]);
        assert_eq!(world.decode(&ids), text);
        assert_eq!(world.decode(&[0, 257, 9999]), "ab");
        assert!(World::new(&written[..5]).encode("a").is_err());
        assert_eq!(unescaped(b"\\xzz\\q\\"), b"\\xzz\\q\\");
    }
}
