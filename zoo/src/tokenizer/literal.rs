//! Text and bytes as Python's `repr` writes them, in which RWKV's vocabulary is published: `'é'`, `b'\xc3'`.

/// The bytes that a literal stands for, those of a text in UTF-8; `None` if it is no literal.
pub(super) fn read(literal: &str) -> Option<Vec<u8>> {
    let (bytes, quoted) = match literal.strip_prefix('b') {
        Some(rest) => (true, rest),
        None => (false, literal),
    };
    let quote = quoted.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut rest = quoted[1..].strip_suffix(quote)?.chars();
    let mut read = Vec::new();
    while let Some(c) = rest.next() {
        let value = match c {
            '\\' => escape(&mut rest)?,
            c if c == quote || (bytes && !c.is_ascii()) => return None,
            c => u32::from(c),
        };
        if bytes {
            read.push(u8::try_from(value).ok()?);
        } else {
            read.extend_from_slice(char::from_u32(value)?.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Some(read)
}

/// What follows a backslash.
fn escape(rest: &mut std::str::Chars<'_>) -> Option<u32> {
    let digits = match rest.next()? {
        'n' => return Some(u32::from('\n')),
        'r' => return Some(u32::from('\r')),
        't' => return Some(u32::from('\t')),
        c @ ('\\' | '\'' | '"') => return Some(u32::from(c)),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => return None,
    };
    (0..digits).try_fold(0u32, |value, _| {
        let digit = rest.next()?.to_digit(16)?;
        value.checked_mul(16)?.checked_add(digit)
    })
}

/// Bytes as a literal of bytes.
pub(super) fn write(bytes: &[u8]) -> String {
    let one = |&byte: &u8| match byte {
        b'\\' | b'\'' => format!("\\{}", char::from(byte)),
        b' '..=b'~' => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    format!("b'{}'", bytes.iter().map(one).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_bytes() {
        for (literal, bytes) in [
            (r"'a'", &b"a"[..]),
            (r#""it's""#, b"it's"),
            (r#"'\'"\\'"#, b"'\"\\"),
            (r"'\n\r\t\x00\x7f'", b"\n\r\t\0\x7f"),
            (r"'\xa0\u20ac\U0001f980é'", "\u{a0}€🦀é".as_bytes()),
            (r"b'\xa0\xffa'", b"\xa0\xffa"),
            ("''", b""),
        ] {
            assert_eq!(read(literal).as_deref(), Some(bytes), "{literal}");
            assert_eq!(read(&write(bytes)).as_deref(), Some(bytes), "{literal}");
        }
        for bad in [
            "",
            "a",
            "'",
            "'a",
            "'a\"",
            "'a'b'",
            r"'\q'",
            r"'\x1'",
            r"'\ud800'",
            r"b'é'",
            r"b'\u0100'",
            "é'",
            r"'\'",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
