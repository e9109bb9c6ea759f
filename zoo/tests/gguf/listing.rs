//! What llama.cpp wrote of the golden checkpoints: metadata, and the names and shapes of tensors (`listings/README.md`).

use std::collections::BTreeMap;
use std::path::Path;

use crate::writer::Gguf;

/// A file's metadata as lines `key type value`, and its tensors' shapes.
pub struct Listing {
    pairs: Vec<(String, String, String)>,
    pub shapes: BTreeMap<String, Vec<usize>>,
}

impl Listing {
    pub fn of(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf/listings");
        let text = std::fs::read_to_string(folder.join(format!("{name}.txt"))).unwrap();
        let (pairs, tensors) = text.split_once("\n\n").unwrap();
        let pair = |line: &str| {
            let (key, rest) = line.split_once(' ').unwrap();
            let (kind, value) = rest.split_once(' ').unwrap();
            (key.to_string(), kind.to_string(), value.to_string())
        };
        let shape = |line: &str| {
            let (name, shape) = line.split_once(' ').unwrap();
            (name.to_string(), shape.split(' ').map(|d| d.parse().unwrap()).collect())
        };
        Self {
            pairs: pairs.lines().map(pair).collect(),
            shapes: tensors.trim_end().lines().map(shape).collect(),
        }
    }

    /// Another value of a key that is there.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        let pair = self.pairs.iter_mut().find(|(name, ..)| name.ends_with(key)).unwrap();
        pair.2 = value.into();
        self
    }

    /// A file with this metadata.
    pub fn file(&self, q8_0: bool) -> Gguf {
        let mut file = Gguf::default();
        file.q8_0 = q8_0;
        for (key, kind, value) in &self.pairs {
            match kind.strip_prefix('[').map(|kind| kind.trim_end_matches(']')) {
                None if kind == "str" => file.text(key, value),
                None => {
                    let (number, bytes) = number(kind, value);
                    file.pair(key, number, &bytes);
                }
                Some(kind) => {
                    let values: Vec<_> = value.split(' ').map(|v| number(kind, v)).collect();
                    let mut bytes = values[0].0.to_le_bytes().to_vec();
                    bytes.extend((values.len() as u64).to_le_bytes());
                    bytes.extend(values.iter().flat_map(|(_, bytes)| bytes));
                    file.pair(key, 9, &bytes);
                }
            }
        }
        file
    }
}

/// GGUF's number of a type, and a value of it.
fn number(kind: &str, value: &str) -> (u32, Vec<u8>) {
    match kind {
        "u32" => (4, value.parse::<u32>().unwrap().to_le_bytes().into()),
        "i32" => (5, value.parse::<i32>().unwrap().to_le_bytes().into()),
        "f32" => (6, value.parse::<f32>().unwrap().to_le_bytes().into()),
        "bool" => (7, vec![value.parse().unwrap()]),
        other => panic!("{other}"),
    }
}
