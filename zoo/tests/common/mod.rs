//! Model folders for tests: golden ones, copies of them in other formats, damaged ones.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::DType;
use semisep_core::VarBuilder;
use semisep_models::LanguageModel;
use semisep_zoo::load::describe;
use serde_json::{Value, json};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Every golden model.
pub const GOLDEN: &[&str] = &[
    "bamba",
    "bamba-groups",
    "delta_net-fla",
    "falcon_h1",
    "falcon_mamba",
    "gated_deltanet-fla",
    "gla-fla",
    "gpt_neox",
    "gpt_neox-serial",
    "granitemoehybrid",
    "hgrn2-fla",
    "hyenadna",
    "hyenadna-hf",
    "jamba-dense",
    "jamba-moe",
    "lfm2",
    "lfm2_moe",
    "llama",
    "mamba-hf",
    "mamba-orig",
    "mamba2-hf",
    "mamba2-orig",
    "mamba2-orig-groups",
    "mamba2attn-mlp-orig",
    "mamba2attn-orig",
    "mistral",
    "nemotron_h",
    "nemotron_h-latent",
    "nemotron_h-moe",
    "olmo2",
    "olmo_hybrid",
    "olmo_hybrid-saved",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_moe-saved",
    "qwen3_next",
    "recurrent_gemma",
    "retnet-fla",
    "retnet-torchscale",
    "rwkv4-eps",
    "rwkv4-hf",
    "rwkv4-pth",
    "rwkv5-hf",
    "rwkv5-pth",
    "rwkv6-fla",
    "rwkv6-hf",
    "rwkv6-pth",
    "rwkv7-fla",
    "rwkv7-pth",
    "stripedhyena",
    "xlstm",
    "zamba",
    "zamba-apart",
    "zamba2",
];

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// A copy of a golden folder that may be changed.
pub fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::write(dir.path().join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
    dir
}

/// One tensor of a file: dtype as in safetensors, shape, little-endian bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Raw {
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: "F32".into(), shape: shape.into(), bytes }
    }
}

pub type Tensors = BTreeMap<String, Raw>;

/// The tensors of a safetensors file, by a reader of its own.
pub fn read_safetensors(path: &Path) -> Tensors {
    let file = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let parsed: BTreeMap<String, Value> = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let number = |v: &Value| v.as_u64().unwrap() as usize;
    let entries = parsed.into_iter().filter(|(name, _)| name != "__metadata__");
    entries
        .map(|(name, entry)| {
            let offsets = &entry["data_offsets"];
            let bytes = file[8 + header + number(&offsets[0])..8 + header + number(&offsets[1])].to_vec();
            let shape = entry["shape"].as_array().unwrap().iter().map(number).collect();
            (name, Raw { dtype: entry["dtype"].as_str().unwrap().into(), shape, bytes })
        })
        .collect()
}

pub fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, t) in tensors {
        let offsets = [data.len(), data.len() + t.bytes.len()];
        header.insert(name.clone(), json!({ "dtype": t.dtype, "shape": t.shape, "data_offsets": offsets }));
        data.extend(&t.bytes);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// Two shards and their index.
pub fn write_shards(folder: &Path, tensors: &Tensors) {
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut parts = [Tensors::new(), Tensors::new()];
    let mut map = BTreeMap::new();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        parts[i % 2].insert(name.clone(), tensor.clone());
        map.insert(name.clone(), names[i % 2]);
    }
    for (name, part) in names.iter().zip(&parts) {
        std::fs::write(folder.join(name), safetensors(part)).unwrap();
    }
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// A PyTorch archive of these tensors, as `torch.save(state_dict)` writes it. Two-dimensional tensors are stored
/// transposed, with the strides to match, so that views are part of the test.
pub fn torch(tensors: &Tensors) -> Vec<u8> {
    let mut pickle = b"\x80\x02}q\x00(".to_vec();
    let mut storages = Vec::new();
    for (i, (name, t)) in tensors.iter().enumerate() {
        let width = t.bytes.len() / t.shape.iter().product::<usize>().max(1);
        let (bytes, strides) = match *t.shape {
            [rows, columns] => (transposed(&t.bytes, rows, columns, width), vec![1, rows]),
            _ => (t.bytes.clone(), (0..t.shape.len()).map(|d| t.shape[d + 1..].iter().product()).collect()),
        };
        string(&mut pickle, name);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        string(&mut pickle, "storage");
        let class = match t.dtype.as_str() {
            "F32" => "FloatStorage",
            "F64" => "DoubleStorage",
            "BF16" => "BFloat16Storage",
            "BOOL" => "BoolStorage",
            other => panic!("no storage for {other}"),
        };
        pickle.extend(format!("ctorch\n{class}\n").bytes());
        string(&mut pickle, &i.to_string());
        string(&mut pickle, "cpu");
        int(&mut pickle, bytes.len() / width);
        pickle.extend(b"tQK\x00");
        for numbers in [&t.shape, &strides] {
            pickle.push(b'(');
            numbers.iter().for_each(|&n| int(&mut pickle, n));
            pickle.push(b't');
        }
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        storages.push(bytes);
    }
    pickle.extend(b"u.");
    archive(&pickle, &storages)
}

/// A PyTorch archive of a pickle and its storages.
pub fn archive(pickle: &[u8], storages: &[Vec<u8>]) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut entry = |name: &str, bytes: &[u8]| {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    entry("archive/data.pkl", pickle);
    entry("archive/byteorder", b"little");
    for (i, storage) in storages.iter().enumerate() {
        entry(&format!("archive/data/{i}"), storage);
    }
    zip.finish().unwrap().into_inner()
}

fn string(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.bytes());
}

fn int(pickle: &mut Vec<u8>, n: usize) {
    pickle.push(b'J');
    pickle.extend((n as i32).to_le_bytes());
}

fn transposed(bytes: &[u8], rows: usize, columns: usize, width: usize) -> Vec<u8> {
    let element = |r: usize, c: usize| &bytes[(r * columns + c) * width..][..width];
    (0..columns).flat_map(|c| (0..rows).flat_map(move |r| element(r, c).iter().copied())).collect()
}

/// Public configurations, a JSON object of `{"parameters", "config"}` by names: each is understood without its weights, and
/// has as many parameters as the reference's model. Gives what its importer noted, by names.
pub fn public_configurations(all: &str) -> BTreeMap<String, Vec<String>> {
    let all: BTreeMap<String, Value> = serde_json::from_str(all).unwrap();
    let notes = all.into_iter().map(|(name, public)| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), public["config"].to_string()).unwrap();
        let (architecture, notes) = describe(dir.path()).unwrap();
        let model = LanguageModel::new(&architecture, &VarBuilder::shapes(DType::BF16)).unwrap();
        assert_eq!(Some(model.cost(1, 1).parameters), public["parameters"].as_u64(), "{name}");
        (name, notes)
    });
    notes.collect()
}

/// Changes the configuration of a folder.
pub fn edit_config(folder: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.join("config.json");
    // The literal of Python is no JSON; the limit it stands for is the default.
    let text = std::fs::read_to_string(&path).unwrap().replace("Infinity", "1e300");
    let mut config: Value = serde_json::from_str(&text).unwrap();
    edit(config.as_object_mut().unwrap());
    std::fs::write(path, config.to_string()).unwrap();
}

/// Changes the tensors of a folder's `model.safetensors`.
pub fn edit_tensors(folder: &Path, edit: impl FnOnce(&mut Tensors)) {
    let path = folder.join("model.safetensors");
    let mut tensors = read_safetensors(&path);
    edit(&mut tensors);
    let mut file = safetensors(&tensors);
    // As the library does: elements begin at multiples of eight bytes.
    let end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let spaces = end.next_multiple_of(8) - end;
    file.splice(end..end, vec![b' '; spaces]);
    file[..8].copy_from_slice(&((end + spaces - 8) as u64).to_le_bytes());
    std::fs::write(path, file).unwrap();
}

/// A folder with a Mamba-2 model of 256 tokens, bytes, whose embedding alone is stored: for `--allow-missing`.
pub fn bytes_model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "d_model": 32, "n_layer": 2, "vocab_size": 256, "pad_vocab_size_multiple": 8, "rms_norm": true,
        "ssm_cfg": { "layer": "Mamba2", "d_state": 16, "headdim": 16 },
    });
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let values: Vec<f32> = (0..256 * 32).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
    let tensors = [("backbone.embedding.weight".to_string(), Raw::f32(&[256, 32], &values))].into();
    std::fs::write(dir.path().join("model.safetensors"), safetensors(&tensors)).unwrap();
    dir
}

/// Runs the command.
pub fn semisep(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_semisep")).args(args).env("NO_COLOR", "1").output().unwrap()
}

pub fn verify(folder: &Path, more: &[&str]) -> Output {
    semisep(&[&["verify", folder.to_str().unwrap()], more].concat())
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
