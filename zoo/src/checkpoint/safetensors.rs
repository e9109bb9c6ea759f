//! The safetensors header: 8 bytes of length, JSON, then the tensors' bytes without gaps.
//!
//! The header is checked whole before any tensor is looked at, so that nothing later can point outside the file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::checkpoint::{MAX_RANK, Stored, StoredType};
use crate::{Error, Result};

/// Longest header that is parsed, as in the format's own library.
const MAX_HEADER: u64 = 100_000_000;

const AGAIN: &str = "the file is damaged or not a safetensors file: download or convert it again";

/// The tensors of a file; `file` is its number in the checkpoint.
///
/// # Errors
/// If the file is truncated, or its header is no valid one.
pub(super) fn tensors(bytes: &[u8], file: usize, path: &Path) -> Result<Vec<Stored>> {
    parse(bytes, file).map_err(|message| Error::at(path, message).hint(AGAIN))
}

/// The texts of a file's `__metadata__`; other values there are passed over.
///
/// # Errors
/// If the header is no valid one.
pub(super) fn metadata(bytes: &[u8], path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Texts {
        #[serde(default)]
        __metadata__: BTreeMap<String, serde_json::Value>,
    }
    let fail = |message: String| Error::at(path, message).hint(AGAIN);
    let (header, _) = split(bytes).map_err(fail)?;
    let texts: Texts =
        serde_json::from_slice(header).map_err(|e| fail(format!("header is not valid: {e}")))?;
    let text = |value: serde_json::Value| value.as_str().map(str::to_owned);
    Ok(texts.__metadata__.into_iter().filter_map(|(key, value)| Some((key, text(value)?))).collect())
}

fn parse(bytes: &[u8], file: usize) -> Result<Vec<Stored>, String> {
    let (header, data_start) = split(bytes)?;
    let Header(entries) = serde_json::from_slice(header).map_err(|e| format!("header is not valid: {e}"))?;
    let data = bytes.len() - data_start;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        tensors.push(stored(name, &entry, data, data_start, file)?);
    }
    tensors.sort_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
    let mut end = data_start;
    for tensor in &tensors {
        if tensor.offset != end {
            let what =
                if tensor.offset < end { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(format!(
                "{} starts at byte {} of the data, expected {}: it {what}",
                tensor.name,
                tensor.offset - data_start,
                end - data_start
            ));
        }
        end += tensor.bytes;
    }
    if end != bytes.len() {
        return Err(format!("expected {} bytes after the header, found {data}", end - data_start));
    }
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("the header names {} twice", pair[0])),
        None => Ok(tensors),
    }
}

/// The header's JSON, and where the data starts.
fn split(bytes: &[u8]) -> Result<(&[u8], usize), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("expected at least 8 bytes, found {}", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("expected a header of at most {MAX_HEADER} bytes, found a length of {length}"));
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let header =
        header.ok_or_else(|| format!("expected a header of {length} bytes, found {}", rest.len()))?;
    if header.first() != Some(&b'{') {
        return Err("expected the header to start with '{'".into());
    }
    Ok((header, 8 + header.len()))
}

fn stored(
    name: String,
    entry: &Entry,
    data: usize,
    data_start: usize,
    file: usize,
) -> Result<Stored, String> {
    let dtype = StoredType::parse(&entry.dtype).unwrap_or(StoredType::Unknown);
    if entry.shape.len() > MAX_RANK {
        return Err(format!("{name}: expected at most {MAX_RANK} dimensions, found {}", entry.shape.len()));
    }
    let elements = entry.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let (begin, end) = entry.data_offsets;
    let bytes = match dtype {
        StoredType::Unknown => end.checked_sub(begin),
        _ => elements.and_then(|n| dtype.bytes(n)),
    };
    let (Some(elements), Some(bytes)) = (elements, bytes) else {
        return Err(format!("{name}: the shape {:?} in {dtype} has no size", entry.shape));
    };
    if begin > end || end > data {
        return Err(format!("{name} lies at {begin}..{end}, outside the {data} bytes of data"));
    }
    if end - begin != bytes {
        return Err(format!(
            "{name}: {:?} in {dtype} takes {bytes} bytes, found {}",
            entry.shape,
            end - begin
        ));
    }
    let shape = entry.shape.clone();
    let offset = data_start + begin;
    Ok(Stored { name, dtype, shape, file, offset, bytes, elements, ..Stored::default() })
}

/// All entries in the file's order, duplicates included.
struct Header(Vec<(String, Entry)>);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensor names to their dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn entry(name: &str, shape: &str, offsets: &str) -> String {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}"#)
    }

    #[test]
    fn a_good_header_in_any_order() {
        let header = format!("{{{},{}}}  ", entry("b", "[2]", "[16,24]"), entry("a", "[2,2]", "[0,16]"));
        let tensors = parse(&file(&header, 24), 3).unwrap();
        assert_eq!(tensors[0].name, "a");
        assert_eq!((tensors[1].offset, tensors[1].bytes, tensors[1].file), (8 + header.len() + 16, 8, 3));
    }

    #[test]
    fn unknown_types_are_listed() {
        let tensors =
            parse(&file(r#"{"a":{"dtype":"F99","shape":[7],"data_offsets":[0,3]}}"#, 3), 0).unwrap();
        assert_eq!((tensors[0].dtype, tensors[0].bytes), (StoredType::Unknown, 3));
    }

    #[test]
    fn every_lie_is_named() {
        let two = |a: &str, b: &str| file(&format!("{{{a},{b}}}"), 24);
        let one = |shape: &str, offsets: &str| file(&format!("{{{}}}", entry("a", shape, offsets)), 16);
        let cases = [
            (b"abc".to_vec(), "at least 8 bytes"),
            ([0xff; 16].to_vec(), "header of at most"),
            (file("{}", 0)[..9].to_vec(), "header of 2 bytes, found 1"),
            (file("[1]", 0), "start with '{'"),
            (file("{\"a\":", 0), "not valid"),
            (two(&entry("a", "[4]", "[0,16]"), &entry("b", "[4]", "[8,24]")), "overlaps"),
            (two(&entry("a", "[2]", "[0,8]"), &entry("b", "[2]", "[16,24]")), "gap"),
            (two(&entry("a", "[2]", "[0,8]"), &entry("b", "[2]", "[8,16]")), "expected 16 bytes after"),
            (two(&entry("a", "[0]", "[0,0]"), &entry("a", "[6]", "[0,24]")), "twice"),
            (one("[5]", "[0,16]"), "takes 20 bytes, found 16"),
            (one("[4]", "[16,0]"), "outside"),
            (one("[4]", "[0,18446744073709551615]"), "outside"),
            (one("[9223372036854775807,9223372036854775807]", "[0,16]"), "has no size"),
            (one("[-4]", "[0,16]"), "not valid"),
            (one("[1,1,1,1,1,1,1,1,4]", "[0,16]"), "at most 8 dimensions"),
            (file(r#"{"a":{"dtype":"F99","shape":[],"data_offsets":[1,0]}}"#, 1), "has no size"),
        ];
        for (bytes, expected) in cases {
            let message = parse(&bytes, 0).map(|_| ()).unwrap_err();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }
}
