//! GGUF files as llama.cpp writes them, from golden checkpoints: by the steps of its `conversion/*.py`.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;

use half::f16;
use semisep_core::BlockFormat;

use super::{Raw, read_safetensors};

/// A tensor's shape and numbers.
#[derive(Debug, Clone)]
pub struct Numbers {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Numbers {
    fn of(raw: &Raw) -> Self {
        assert_eq!(raw.dtype, "F32");
        let values = raw.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Self { shape: raw.shape.clone(), values }
    }

    pub fn reshaped(mut self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.values.len());
        self.shape = shape.into();
        self
    }

    pub fn squeezed(self) -> Self {
        let shape: Vec<usize> = self.shape.iter().copied().filter(|&d| d != 1).collect();
        self.reshaped(&shape)
    }

    pub fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        self.values.iter_mut().for_each(|v| *v = f(*v));
        self
    }

    /// The last two axes in the other order.
    pub fn transposed(self) -> Self {
        let rank = self.shape.len();
        let (rows, columns) = (self.shape[rank - 2], self.shape[rank - 1]);
        let matrix = |m: &[f32]| -> Vec<f32> {
            (0..columns).flat_map(|c| (0..rows).map(move |r| m[r * columns + c])).collect()
        };
        let values = self.values.chunks(rows * columns).flat_map(matrix).collect();
        let mut shape = self.shape;
        shape.swap(rank - 2, rank - 1);
        Self { shape, values }
    }

    /// Features i and i + p/2 of each head side by side.
    pub fn paired(self, heads: usize) -> Self {
        let row = self.values.len() / self.shape[0];
        let p = self.shape[0] / heads;
        let from = |to: usize| (to / p) * p + (to % p) % 2 * (p / 2) + (to % p) / 2;
        let values =
            (0..self.shape[0]).flat_map(|to| self.values[from(to) * row..][..row].to_vec()).collect();
        Self { values, ..self }
    }
}

/// The tensors of a golden folder.
pub fn numbers(folder: &std::path::Path) -> BTreeMap<String, Numbers> {
    let tensors = read_safetensors(&folder.join("model.safetensors"));
    tensors.iter().map(|(name, raw)| (name.clone(), Numbers::of(raw))).collect()
}

/// A file in the making.
#[derive(Default)]
pub struct Gguf {
    pairs: Vec<Vec<u8>>,
    tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
    architecture: String,
    /// Matrices in `q8_0`, or `f16` where rows are no whole blocks; everything in f32 otherwise.
    pub q8_0: bool,
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

impl Gguf {
    pub fn new(architecture: &str, q8_0: bool) -> Self {
        let mut file = Self { architecture: architecture.into(), q8_0, ..Self::default() };
        file.text("general.architecture", architecture);
        file
    }

    fn pair(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.pairs.push([&string(key.as_bytes())[..], &kind.to_le_bytes(), value].concat());
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.pair(key, 8, &string(value.as_bytes()));
    }

    /// A whole number of this architecture.
    pub fn size(&mut self, key: &str, value: usize) {
        let key = format!("{}.{key}", self.architecture);
        self.pair(&key, 4, &(value as u32).to_le_bytes());
    }

    /// A number of this architecture.
    pub fn float(&mut self, key: &str, value: f32) {
        let key = format!("{}.{key}", self.architecture);
        self.pair(&key, 6, &value.to_le_bytes());
    }

    pub fn id(&mut self, key: &str, value: u32) {
        self.pair(key, 4, &value.to_le_bytes());
    }

    pub fn flag(&mut self, key: &str, value: bool) {
        self.pair(key, 7, &[u8::from(value)]);
    }

    pub fn texts(&mut self, key: &str, values: &[String]) {
        let head = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        let all = values.iter().flat_map(|v| string(v.as_bytes()));
        let value = [head, all.collect()].concat();
        self.pair(key, 9, &value);
    }

    pub fn floats(&mut self, key: &str, values: &[f32]) {
        let head = [&6u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        let value = [head, values.iter().flat_map(|v| v.to_le_bytes()).collect()].concat();
        self.pair(key, 9, &value);
    }

    /// A whole number a layer of this architecture.
    pub fn each_layer(&mut self, key: &str, values: &[i32]) {
        let key = format!("{}.{key}", self.architecture);
        self.kinds(&key, values);
    }

    pub fn kinds(&mut self, key: &str, values: &[i32]) {
        let head = [&5u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        let value = [head, values.iter().flat_map(|v| v.to_le_bytes()).collect()].concat();
        self.pair(key, 9, &value);
    }

    /// Adds a tensor. Vectors, and matrices that llama.cpp leaves alone, stay in f32.
    pub fn tensor(&mut self, name: &str, numbers: &Numbers) {
        const LEFT_ALONE: [&str; 13] = [
            "norm",
            "ffn_gate_inp",
            "conv1d",
            "ssm_a",
            "ssm_d",
            "time_mix_first",
            "time_mix_w1",
            "time_mix_w2",
            "_decay_w",
            "_lerp_",
            "time_mix_a",
            "time_mix_v1",
            "time_mix_g",
        ];
        let quantised = self.q8_0
            && numbers.shape.len() >= 2
            && !LEFT_ALONE.iter().any(|part| name.contains(part))
            && !name.contains("time_mix_v2")
            && !name.contains("r_k");
        let columns = numbers.shape.last().copied().unwrap_or(1);
        let (kind, bytes) = match (quantised, BlockFormat::Q8_0.row_bytes(columns)) {
            (true, Some(row)) => {
                let mut bytes = vec![0; row * (numbers.values.len() / columns)];
                for (to, from) in bytes.chunks_mut(row).zip(numbers.values.chunks(columns)) {
                    BlockFormat::Q8_0.quantise(from, to);
                }
                (8, bytes)
            }
            (true, None) => {
                (1, numbers.values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect())
            }
            (false, _) => (0, numbers.values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        };
        self.tensors.push((name.into(), numbers.shape.clone(), kind, bytes));
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.pairs.len() as u64).to_le_bytes());
        file.extend(self.pairs.concat());
        let mut offset = 0usize;
        for (name, shape, kind, bytes) in &self.tensors {
            file.extend(string(name.as_bytes()));
            file.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|&d| file.extend((d as u64).to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset = (offset + bytes.len()).next_multiple_of(32);
        }
        for (_, _, _, bytes) in &self.tensors {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(bytes);
        }
        file
    }
}

/// The name with the first of these parts replaced that it has.
pub fn mapped(name: &str, parts: &[(&str, &str)]) -> String {
    parts.iter().fold(name.to_string(), |name, (from, to)| name.replace(from, to))
}
