//! JSON as model folders have it: with Python's `NaN` and `Infinity` besides the standard's values.

use std::path::Path;

use serde_json::Value;

use crate::files::read_text;
use crate::{Error, Result};

/// The key under which transformers writes numbers that JSON lacks: `{"__float__": "Infinity"}`.
const FLOAT: &str = "__float__";

/// The value in a JSON file.
///
/// # Errors
/// If the file cannot be read or is not JSON; the error has the line and column.
pub fn read(path: &Path) -> Result<Value> {
    serde_json::from_str(&tolerate(&read_text(path)?)).map_err(|e| {
        Error::at(path, format!("expected JSON: {e}")).hint("download or convert the file again")
    })
}

/// A number, the infinities and NaN included.
pub fn number(value: &Value) -> Option<f64> {
    let special = |name: &str| match name {
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ => None,
    };
    value.as_f64().or_else(|| special(value.get(FLOAT)?.as_str()?))
}

/// The text with bare `Infinity`, `-Infinity` and `NaN` in the form that [`number`] reads.
fn tolerate(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['"', 'I', 'N', '-']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let literal = ["-Infinity", "Infinity", "NaN"].into_iter().find(|l| rest.starts_with(l));
        let taken = match literal {
            Some(literal) => {
                out.push_str(&format!("{{\"{FLOAT}\":\"{literal}\"}}"));
                rest = &rest[literal.len()..];
                continue;
            }
            None if rest.starts_with('"') => string_length(rest),
            None => 1,
        };
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out + rest
}

/// Bytes of the string literal that `text` starts with, quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (i, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return i + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_of_python() {
        let text =
            r#"{"limit": [0.0, Infinity], "low": -Infinity, "s": "NaN \" Infinity", "n": -1, "x": NaN}"#;
        let value: Value = serde_json::from_str(&tolerate(text)).unwrap();
        assert_eq!(number(&value["limit"][1]), Some(f64::INFINITY));
        assert_eq!(number(&value["low"]), Some(f64::NEG_INFINITY));
        assert!(number(&value["x"]).unwrap().is_nan());
        assert_eq!((value["s"].as_str(), number(&value["n"])), (Some("NaN \" Infinity"), Some(-1.0)));
        assert_eq!(number(&serde_json::json!("Infinity")), None);
        for broken in ["\"", "\"\\", "{-", "Infinit", "é\"é"] {
            assert!(serde_json::from_str::<Value>(&tolerate(broken)).is_err(), "{broken}");
        }
    }
}
