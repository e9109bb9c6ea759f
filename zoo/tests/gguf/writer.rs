//! GGUF files, tensor by tensor.

use std::collections::BTreeMap;

use half::f16;
use semisep_core::BlockFormat;

use crate::common::{Raw, read_safetensors};

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

    pub fn map(mut self, mut f: impl FnMut(f32) -> f32) -> Self {
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

    /// These rows, in this order.
    pub fn rows(self, rows: impl IntoIterator<Item = usize>) -> Self {
        let row = self.values.len() / self.shape[0];
        let values: Vec<f32> =
            rows.into_iter().flat_map(|i| self.values[i * row..(i + 1) * row].to_vec()).collect();
        let shape = [&[values.len() / row][..], &self.shape[1..]].concat();
        Self { shape, values }
    }

    /// The first half of all rows, or of those of each matrix, and the second.
    pub fn halves(self) -> [Self; 2] {
        let rank = self.shape.len();
        let half = self.shape[rank - 2] / 2 * self.shape[rank - 1];
        let mut shape = self.shape;
        shape[rank - 2] /= 2;
        let part = |second: usize| {
            let pieces = self.values.chunks(half).skip(second).step_by(2);
            Self { shape: shape.clone(), values: pieces.flatten().copied().collect() }
        };
        [part(0), part(1)]
    }

    /// One after the other, of equal shapes.
    pub fn stack(all: impl Iterator<Item = Self>) -> Self {
        let all: Vec<Self> = all.collect();
        let shape = [&[all.len()][..], &all[0].shape].concat();
        Self { shape, values: all.into_iter().flat_map(|one| one.values).collect() }
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

/// The numbers of a golden folder; old files hold masks as well.
pub fn numbers(folder: &std::path::Path) -> BTreeMap<String, Numbers> {
    let tensors = read_safetensors(&folder.join("model.safetensors"));
    let numbers = tensors.iter().filter(|(_, raw)| raw.dtype == "F32");
    numbers.map(|(name, raw)| (name.clone(), Numbers::of(raw))).collect()
}

/// Parts of the names of matrices that stay in f32.
const LEFT_ALONE: [&str; 16] = [
    "norm",
    "ffn_gate_inp",
    "conv1d",
    "shortconv.conv",
    "ssm_a",
    "ssm_d",
    "time_mix_first",
    "time_mix_w1",
    "time_mix_w2",
    "_decay_w",
    "_lerp_",
    "time_mix_a",
    "time_mix_v1",
    "time_mix_v2",
    "time_mix_g",
    "r_k",
];

/// A file in the making.
#[derive(Default)]
pub struct Gguf {
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Entry>,
    /// Matrices in `q8_0`, or `f16` where rows are no whole blocks; everything in f32 otherwise.
    pub q8_0: bool,
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

impl Gguf {
    /// A file of this architecture that says nothing else.
    pub fn of(architecture: &str) -> Self {
        let mut file = Self::default();
        file.text("general.architecture", architecture);
        file
    }

    /// A pair of the metadata, its value as bytes.
    pub fn pair(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.pairs.push([&string(key.as_bytes())[..], &kind.to_le_bytes(), value].concat());
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.pair(key, 8, &string(value.as_bytes()));
    }

    pub fn id(&mut self, key: &str, value: u32) {
        self.pair(key, 4, &value.to_le_bytes());
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

    pub fn kinds(&mut self, key: &str, values: &[i32]) {
        let head = [&5u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        let value = [head, values.iter().flat_map(|v| v.to_le_bytes()).collect()].concat();
        self.pair(key, 9, &value);
    }

    /// Adds a tensor. Vectors, and matrices that llama.cpp leaves alone, stay in f32.
    pub fn tensor(&mut self, name: &str, numbers: &Numbers) {
        let quantised =
            self.q8_0 && numbers.shape.len() >= 2 && !LEFT_ALONE.iter().any(|part| name.contains(part));
        let columns = numbers.shape.last().copied().unwrap_or(1);
        if quantised && BlockFormat::Q8_0.row_bytes(columns).is_some() {
            self.blocks(name, numbers);
            return;
        }
        let (kind, bytes) = match quantised {
            true => (1, numbers.values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
            false => (0, numbers.values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        };
        self.tensors.push((name.into(), numbers.shape.clone(), kind, bytes));
    }

    /// Adds a tensor in `q8_0`, whatever it is.
    pub fn blocks(&mut self, name: &str, numbers: &Numbers) {
        let format = BlockFormat::Q8_0;
        let mut bytes = vec![0; format.row_bytes(numbers.values.len()).unwrap()];
        format.quantise(&numbers.values, &mut bytes);
        self.tensors.push((name.into(), numbers.shape.clone(), 8, bytes));
    }

    /// Another type for a tensor, of the same bytes.
    pub fn say_type(&mut self, name: &str, kind: u32) {
        self.tensors.iter_mut().find(|(tensor, ..)| tensor == name).unwrap().2 = kind;
    }

    /// Matrices in `iq4_nl`, each number by the nearest step, but for those that llama.cpp leaves alone.
    pub fn pack_iq4_nl(&mut self) {
        const STEPS: [f32; 16] = [
            -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
            89.0, 113.0,
        ];
        for (name, shape, kind, bytes) in &mut self.tensors {
            if shape.len() < 2
                || shape.last().unwrap() % 32 != 0
                || LEFT_ALONE.iter().any(|part| name.contains(part))
            {
                continue;
            }
            let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let block = |values: &[f32]| {
                let d = f16::from_f32(values.iter().fold(0f32, |most, v| most.max(v.abs())) / 113.0);
                let step = |v: f32| {
                    let off = |i: &usize| (STEPS[*i] * d.to_f32() - v).abs();
                    (0..16).min_by(|a, b| off(a).total_cmp(&off(b))).unwrap() as u8
                };
                let codes = (0..16).map(|i| step(values[i]) | step(values[16 + i]) << 4);
                [&d.to_le_bytes()[..], &codes.collect::<Vec<u8>>()].concat()
            };
            *bytes = values.chunks(32).flat_map(block).collect();
            *kind = 20;
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        file(&self.pairs, &self.tensors)
    }

    /// The same in so many files: the metadata in the first, tensors in all.
    pub fn parts(&self, count: usize) -> Vec<Vec<u8>> {
        let each = self.tensors.len().div_ceil(count);
        let part = |i: usize| {
            let mut part = Self::default();
            part.pair("split.no", 2, &(i as u16).to_le_bytes());
            part.pair("split.count", 2, &(count as u16).to_le_bytes());
            part.pair("split.tensors.count", 5, &(self.tensors.len() as i32).to_le_bytes());
            if i == 0 {
                part.pairs.extend(self.pairs.clone());
            }
            file(&part.pairs, self.tensors.chunks(each).nth(i).unwrap())
        };
        (0..count).map(part).collect()
    }
}

/// A tensor's name, shape, type and bytes.
type Entry = (String, Vec<usize>, u32, Vec<u8>);

fn file(pairs: &[Vec<u8>], tensors: &[Entry]) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((pairs.len() as u64).to_le_bytes());
    file.extend(pairs.concat());
    let mut offset = 0usize;
    for (name, shape, kind, bytes) in tensors {
        file.extend(string(name.as_bytes()));
        file.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&d| file.extend((d as u64).to_le_bytes()));
        file.extend(kind.to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        offset = (offset + bytes.len()).next_multiple_of(32);
    }
    for (_, _, _, bytes) in tensors {
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(bytes);
    }
    file
}

/// The name with the first of these parts replaced that it has.
pub fn mapped(name: &str, parts: &[(&str, &str)]) -> String {
    parts.iter().fold(name.to_string(), |name, (from, to)| name.replace(from, to))
}
