//! The GGUF format (ggml's `docs/gguf.md`), versions 2 and 3: key-value pairs, descriptions of tensors, aligned data.
//!
//! Counts and lengths are the file's word: nothing is allocated for more than the bytes that are left could hold.

use std::collections::BTreeMap;
use std::path::Path;

use super::types;
use crate::checkpoint::{MAX_RANK, Stored, StoredType};
use crate::{Error, Result};

const AGAIN: &str = "the file is damaged or not a GGUF file: download or convert it again";

/// Most elements of a list of numbers: a hundred times the largest vocabulary.
const MAX_LIST: u64 = 1 << 25;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number of any type.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// Text.
    Text(String),
    /// A list of texts, as bytes: tokens need not be UTF-8.
    Texts(Vec<Vec<u8>>),
    /// A list of numbers or truth values.
    Numbers(Vec<f64>),
}

/// What a file says of itself.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// `general.architecture`
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or("")
    }

    /// The value of `architecture.key`.
    pub fn own(&self, key: &str) -> Option<&Value> {
        self.get(&format!("{}.{key}", self.architecture()))
    }

    /// A number of this architecture.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.own(key) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// A text by its whole key.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// The metadata and the tensors of a file; `file` is its number in the checkpoint.
///
/// # Errors
/// If the file is truncated or damaged, or of another version or byte order.
pub(super) fn read(bytes: &[u8], file: usize, path: &Path) -> Result<(Metadata, Vec<Stored>)> {
    parse(bytes, file).map_err(|message| Error::at(path, message).hint(AGAIN))
}

fn parse(bytes: &[u8], file: usize) -> Result<(Metadata, Vec<Stored>), String> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != b"GGUF" {
        return Err("expected a file that begins with GGUF".into());
    }
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        let order = if version.swap_bytes() <= 3 { ", of the other byte order" } else { "" };
        return Err(format!("expected GGUF of version 2 or 3, found {version}{order}"));
    }
    let (tensors, pairs) = (cursor.u64()?, cursor.u64()?);
    let mut metadata = Metadata::default();
    for _ in 0..pairs {
        let key = cursor.text("a key")?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind).map_err(|e| format!("{key}: {e}"))?;
        if let Some(value) = value
            && metadata.values.insert(key.clone(), value).is_some()
        {
            return Err(format!("the key {key} is there twice"));
        }
    }
    let mut found = Vec::new();
    for _ in 0..tensors {
        found.push(cursor.tensor(file)?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Number(n)) if *n >= 1.0 && *n <= 65536.0 && (*n as usize).is_power_of_two() => {
            *n as usize
        }
        Some(other) => return Err(format!("general.alignment: expected a power of two, found {other:?}")),
    };
    let data = cursor.at.next_multiple_of(alignment);
    place(&mut found, data, alignment, bytes.len())?;
    Ok((metadata, found))
}

/// Moves offsets from the start of the data to that of the file; no tensor may reach out of it or into another.
fn place(tensors: &mut [Stored], data: usize, alignment: usize, end: usize) -> Result<(), String> {
    for tensor in tensors.iter_mut() {
        let name = &tensor.name;
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(format!("{name} begins at byte {}, no multiple of {alignment}", tensor.offset));
        }
        let first = tensor.offset.checked_add(data);
        match first.and_then(|first| first.checked_add(tensor.bytes)) {
            Some(last) if last <= end => tensor.offset = first.unwrap_or(data),
            _ => {
                return Err(format!(
                    "{name} lies at byte {} of the data, {} bytes long: the file ends before",
                    tensor.offset, tensor.bytes
                ));
            }
        }
    }
    let mut order: Vec<&Stored> = tensors.iter().filter(|t| t.bytes > 0).collect();
    order.sort_by_key(|t| t.offset);
    match order.windows(2).find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset) {
        Some(pair) => Err(format!("{} overlaps {}", pair[1].name, pair[0].name)),
        None => Ok(()),
    }
}

/// Reads from the front; every read says what is missing.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], String> {
        if n > self.left() {
            return Err(format!("expected {n} bytes at {}, found {}", self.at, self.left()));
        }
        let taken = &self.bytes[self.at..self.at + n as usize];
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<&'a [u8], String> {
        let length = self.u64()?;
        self.take(length)
    }

    fn text(&mut self, what: &str) -> Result<String, String> {
        let at = self.at;
        String::from_utf8(self.string()?.to_vec()).map_err(|_| format!("{what} at byte {at} is not UTF-8"))
    }

    /// `None` for a list of lists, which nothing here needs.
    fn value(&mut self, kind: u32) -> Result<Option<Value>, String> {
        Ok(Some(match kind {
            8 => Value::Text(self.text("the text")?),
            7 => Value::Flag(self.number(kind)? != 0.0),
            9 => return self.list(),
            6 => Value::Number(decimal(f32::from_le_bytes(self.array()?))),
            _ => Value::Number(self.number(kind)?),
        }))
    }

    fn list(&mut self) -> Result<Option<Value>, String> {
        let (kind, length) = (self.u32()?, self.u64()?);
        let least = match kind {
            8 => 8,
            9 => return Err("a list of lists".into()),
            _ => width(kind)?,
        };
        if length > MAX_LIST || length.saturating_mul(least) > self.left() {
            return Err(format!("a list of {length}, with {} bytes left", self.left()));
        }
        if kind == 8 {
            let mut texts = Vec::with_capacity(length as usize);
            for _ in 0..length {
                texts.push(self.string()?.to_vec());
            }
            return Ok(Some(Value::Texts(texts)));
        }
        let numbers = (0..length).map(|_| self.number(kind)).collect::<Result<_, _>>()?;
        Ok(Some(Value::Numbers(numbers)))
    }

    fn number(&mut self, kind: u32) -> Result<f64, String> {
        Ok(match kind {
            0 | 7 => self.array::<1>()?[0].into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            6 => f32::from_le_bytes(self.array()?).into(),
            10 => self.u64()? as f64,
            11 => i64::from_le_bytes(self.array()?) as f64,
            12 => f64::from_le_bytes(self.array()?),
            other => return Err(format!("a value of the unknown type {other}")),
        })
    }

    fn tensor(&mut self, file: usize) -> Result<Stored, String> {
        let name = self.text("a tensor's name")?;
        let rank = self.u32()? as usize;
        if rank > MAX_RANK {
            return Err(format!("{name}: expected at most {MAX_RANK} dimensions, found {rank}"));
        }
        let mut shape = Vec::with_capacity(rank);
        for _ in 0..rank {
            let size = self.u64()?;
            shape.push(usize::try_from(size).map_err(|_| format!("{name}: a dimension of {size}"))?);
        }
        shape.reverse();
        let dtype = types::stored(self.u32()?);
        let offset = self.u64()?;
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let rows_whole = shape.last().is_none_or(|n| n.is_multiple_of(dtype.block()));
        let bytes = match dtype {
            StoredType::Unknown | StoredType::Other { .. } => Some(0),
            _ => elements.filter(|_| rows_whole).and_then(|n| dtype.bytes(n)),
        };
        let (Some(elements), Some(bytes), Ok(offset)) = (elements, bytes, usize::try_from(offset)) else {
            return Err(format!("{name}: the shape {shape:?} in {dtype} at byte {offset} has no size"));
        };
        let plain = Stored { name, dtype, shape, file, offset, bytes, elements, ..Stored::default() };
        Ok(plain)
    }
}

/// The shortest decimal that a number in single precision stands for: configurations say 1e-5, not the double nearest to
/// the single nearest to that.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| number.into())
}

/// Bytes of a number.
fn width(kind: u32) -> Result<u64, String> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        other => Err(format!("a list of the unknown type {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
        let mut bytes = string(name);
        bytes.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes
    }

    fn file(pairs: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((pairs.len() as u64).to_le_bytes());
        bytes.extend(pairs.concat());
        bytes.extend(tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        bytes
    }

    fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&string(key)[..], &kind.to_le_bytes(), value].concat()
    }

    #[test]
    fn values_and_tensors() {
        let list = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &string("a"), &string("bc")].concat();
        let pairs = [
            pair("general.architecture", 8, &string("mamba")),
            pair("mamba.block_count", 4, &7u32.to_le_bytes()),
            pair("mamba.flag", 7, &[1]),
            pair("tokens", 9, &list),
        ];
        let tensors = [tensor("a", &[64, 3], 8, 0), tensor("b", &[5], 0, 224)];
        let (metadata, tensors) = parse(&file(&pairs, &tensors, 244), 2).unwrap();
        assert_eq!((metadata.architecture(), metadata.number("block_count")), ("mamba", Some(7.0)));
        assert_eq!(metadata.own("flag"), Some(&Value::Flag(true)));
        assert_eq!(metadata.get("tokens"), Some(&Value::Texts(vec![b"a".to_vec(), b"bc".to_vec()])));
        assert_eq!((&tensors[0].shape[..], tensors[0].bytes), (&[3, 64][..], 204));
        assert_eq!((tensors[1].file, tensors[1].bytes, tensors[1].offset - tensors[0].offset), (2, 20, 224));
    }

    #[test]
    fn every_lie_is_named() {
        let of = |tensors: &[Vec<u8>], data| file(&[], tensors, data);
        let with = |pair: Vec<u8>| file(&[pair], &[], 0);
        let counts = |tensors: u64, pairs: u64| {
            [b"GGUF", &3u32.to_le_bytes()[..], &tensors.to_le_bytes(), &pairs.to_le_bytes()].concat()
        };
        let list = |kind: u32, n: u64| [&kind.to_le_bytes()[..], &n.to_le_bytes()].concat();
        let cases = [
            (b"GG".to_vec(), "expected 4 bytes at 0, found 2"),
            (b"GGUX0000".to_vec(), "begins with GGUF"),
            (b"GGUF\x01\0\0\0".to_vec(), "version 2 or 3, found 1"),
            (b"GGUF\0\0\0\x03".to_vec(), "the other byte order"),
            (counts(u64::MAX, 0), "expected 8 bytes"),
            (counts(0, u64::MAX), "expected 8 bytes"),
            (with(pair("k", 99, &[0; 8])), "k: a value of the unknown type 99"),
            (with(pair("k", 8, &u64::MAX.to_le_bytes())), "k: expected 18446744073709551615 bytes"),
            (with(pair("k", 9, &list(4, 1 << 40))), "k: a list of 1099511627776"),
            (with(pair("k", 9, &list(8, 1 << 20))), "k: a list of 1048576"),
            (with(pair("k", 9, &list(9, 1))), "k: a list of lists"),
            (with(pair("general.alignment", 4, &3u32.to_le_bytes())), "a power of two"),
            (with(pair("general.alignment", 4, &0u32.to_le_bytes())), "a power of two"),
            (file(&[pair("k", 7, &[0]), pair("k", 7, &[0])], &[], 0), "the key k is there twice"),
            (of(&[tensor("a", &[1; 9], 0, 0)], 4), "at most 8 dimensions"),
            (of(&[tensor("a", &[u64::MAX, u64::MAX], 0, 0)], 4), "has no size"),
            (of(&[tensor("a", &[33, 2], 8, 0)], 400), "has no size"),
            (of(&[tensor("a", &[4], 0, 8)], 64), "no multiple of 32"),
            (of(&[tensor("a", &[4], 0, u64::MAX - 31)], 64), "the file ends before"),
            (of(&[tensor("a", &[64], 0, 0)], 64), "the file ends before"),
            (of(&[tensor("a", &[16], 0, 0), tensor("b", &[8], 0, 32)], 96), "b overlaps a"),
        ];
        for (bytes, expected) in cases {
            let message = parse(&bytes, 0).map(|_| ()).unwrap_err();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }
}
