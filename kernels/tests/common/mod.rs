//! Golden op cases and comparisons, for the tests of every op.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

pub mod scan;

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Result, Tensor, Var};

/// One recorded case: `in.*` inputs, `out.*` outputs, `cot.*` cotangents of outputs, `grad.*` gradients of
/// `sum(cot * out)`, and the scalar options.
pub struct Case {
    pub name: String,
    pub tensors: HashMap<String, Tensor>,
    pub params: serde_json::Value,
}

/// The recorded cases of one op, sorted by name; at least one.
pub fn cases(op: &str) -> Vec<Case> {
    Case::all_in("tests/golden", op)
}

/// The files of one op in a folder.
fn names_in(dir: &std::path::Path, op: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with(&format!("{op}__")))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no golden case of {op}");
    names
}

impl Case {
    pub fn load(name: &str) -> Self {
        Self::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), name)
    }

    /// The recorded cases of one op in a folder of this repository, from this crate's on.
    pub fn all_in(folder: &str, op: &str) -> Vec<Self> {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
        names_in(&dir, op).iter().map(|name| Self::open(&dir, name)).collect()
    }

    fn open(dir: &std::path::Path, name: &str) -> Self {
        let path = dir.join(name);
        let bytes = std::fs::read(&path).unwrap();
        let (_, meta) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let params = meta.metadata().as_ref().and_then(|m| m.get("params").cloned()).unwrap_or("{}".into());
        Self {
            name: name.into(),
            tensors: candle_core::safetensors::load(&path, &Device::Cpu).unwrap(),
            params: serde_json::from_str(&params).unwrap(),
        }
    }

    /// Input `in.{name}` as a variable of this dtype; `None` if the case has no such input.
    pub fn var(&self, name: &str, dtype: DType) -> Option<Var> {
        let t = self.tensors.get(&format!("in.{name}"))?;
        Some(Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap())
    }

    /// Tensor by full name (`out.y`, `cot.y`, `grad.x`, `in.seq_idx`), in f64 if it is a float.
    pub fn get(&self, name: &str) -> Tensor {
        let t = self.tensors.get(name).unwrap_or_else(|| panic!("{}: no {name}", self.name));
        if t.dtype().is_float() { t.to_dtype(DType::F64).unwrap() } else { t.clone() }
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn flag(&self, name: &str, default: bool) -> bool {
        self.params.get(name).map_or(default, |v| v.as_bool().unwrap())
    }

    pub fn number(&self, name: &str) -> Option<f64> {
        self.params.get(name).and_then(serde_json::Value::as_f64)
    }

    /// `sum(cot * out)` over the named outputs, in f64: its gradients are the recorded ones.
    pub fn loss(&self, outputs: &[(&str, &Tensor)]) -> Result<Tensor> {
        let mut loss = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for (name, out) in outputs {
            let cot = self.get(&format!("cot.{name}"));
            loss = (loss + (out.to_dtype(DType::F64)? * cot)?.sum_all()?)?;
        }
        Ok(loss)
    }
}

/// Relative RMS of `got - want` against `want`, in f64.
pub fn relative_rms(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims(), "shapes");
    let got = got.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let want = want.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let scale = want.iter().map(|w| w * w).sum::<f64>();
    let error = got.iter().zip(&want).map(|(g, w)| (g - w) * (g - w)).sum::<f64>();
    if error == 0.0 { 0.0 } else { (error / scale.max(1e-300)).sqrt() }
}

#[track_caller]
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let error = relative_rms(got, want);
    assert!(error <= tolerance, "{what}: relative RMS {error:.3e}, tolerance {tolerance:.0e}");
}

/// Reproducible values in [-1, 1).
pub fn random(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def0;
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}
