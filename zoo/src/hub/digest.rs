//! Checksums of the Hub: what an etag says of a file's content.

use std::fmt::Write;

use sha2::{Digest as _, Sha256};

use super::sha1::Sha1;

/// A checksum in the making.
pub(super) enum Digest {
    /// Of files in large file storage: 64 hexadecimal digits.
    Sha256(Sha256),
    /// Of the others, as git names them: 40 digits.
    Git(Sha1),
    /// The etag is none of these: the size is all there is to check.
    None,
}

impl Digest {
    /// The one that an etag is, for a file of this many bytes.
    pub(super) fn of(etag: &str, size: u64) -> Self {
        let hexadecimal = etag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match (hexadecimal, etag.len()) {
            (true, 64) => Self::Sha256(Sha256::new()),
            (true, 40) => {
                let mut sha1 = Sha1::new();
                sha1.update(format!("blob {size}\0").as_bytes());
                Self::Git(sha1)
            }
            _ => Self::None,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sha256) => sha256.update(bytes),
            Self::Git(sha1) => sha1.update(bytes),
            Self::None => {}
        }
    }

    /// Its name and digits; `None` if there is nothing to compare.
    pub(super) fn finish(self) -> Option<(&'static str, String)> {
        match self {
            Self::Sha256(sha256) => Some(("SHA-256", hex(&sha256.finalize()))),
            Self::Git(sha1) => Some(("git SHA-1", hex(&sha1.finish()))),
            Self::None => None,
        }
    }
}

/// What the Hub calls a content that is not in large file storage: its name in git.
pub fn git_etag(content: &[u8]) -> String {
    let mut sha1 = Sha1::new();
    sha1.update(format!("blob {}\0", content.len()).as_bytes());
    sha1.update(content);
    hex(&sha1.finish())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_name_contents() {
        let of = |etag: &str| {
            let mut digest = Digest::of(etag, 5);
            digest.update(b"he");
            digest.update(b"llo");
            digest.finish()
        };
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(of(sha256), Some(("SHA-256", sha256.into())));
        // `printf hello | git hash-object --stdin`
        let git = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";
        assert_eq!(of(git), Some(("git SHA-1", git.into())));
        assert_eq!(git_etag(b"hello"), git);
        assert_eq!(of("abc"), None);
        assert_eq!(of(&"g".repeat(64)), None);
    }
}
