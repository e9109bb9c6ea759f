//! Recorded layer cases: inputs, parameters, the reference's outputs and gradients.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use semisep_core::{ParameterGroup, Source};
use serde_json::Value;

use crate::{assert_close, golden};

/// One record: `in.*` and `param.*` (float32), `out.*`, `extra.*` (float64), `cot.*` cotangents of outputs, `grad.*`
/// gradients of `sum(cot * out)` over the outputs, and the options.
#[derive(Debug)]
pub struct Case {
    /// File name.
    pub name: String,
    /// The options (`config` of the file's metadata).
    pub config: Value,
    tensors: HashMap<String, Tensor>,
}

/// The records of `golden/{folder}` whose names start with `prefix`, sorted; at least one.
///
/// # Panics
/// If there is none or a file cannot be read.
pub fn cases(folder: &str, prefix: &str) -> Vec<Case> {
    let folder = golden(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> = entries
        .filter_map(|e| e.ok().and_then(|e| e.file_name().into_string().ok()))
        .filter(|n| n.starts_with(prefix) && n.ends_with(".safetensors"))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no golden case {prefix}* in {}", folder.display());
    let open = |name: String| {
        Case::open(&folder.join(&name), name.clone()).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    names.into_iter().map(open).collect()
}

impl Case {
    fn open(path: &Path, name: String) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
        let text = header.metadata().as_ref().and_then(|m| m.get("config").cloned()).unwrap_or_default();
        let config = serde_json::from_str(&text).map_err(candle_core::Error::wrap)?;
        Ok(Self { name, config, tensors: candle_core::safetensors::load(path, &Device::Cpu)? })
    }

    /// Whether the record has this tensor (full name: `in.x`, `out.y_step`, ...).
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this full name, floats in f64.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        match self.tensors.get(name) {
            Some(t) if t.dtype().is_float() => t.to_dtype(DType::F64),
            Some(t) => Ok(t.clone()),
            None => bail!("{}: no tensor {name}", self.name),
        }
    }

    /// The same record with another tensor under this full name.
    pub fn replaced(&self, name: &str, tensor: Tensor) -> Self {
        let mut tensors = self.tensors.clone();
        tensors.insert(name.into(), tensor);
        Self { name: self.name.clone(), config: self.config.clone(), tensors }
    }

    /// Input `in.{name}` as a variable.
    ///
    /// # Errors
    /// If there is none.
    pub fn input(&self, name: &str, dtype: DType) -> Result<Var> {
        Var::from_tensor(&self.get(&format!("in.{name}"))?.to_dtype(dtype)?)
    }

    /// The parameters of the record, found under `rename(path)` for the path that a layer asks for. Shapes may differ
    /// as long as the number of elements agrees.
    pub fn parameters(&self, rename: impl Fn(&str) -> String + Send + Sync + 'static) -> Arc<CaseParameters> {
        let tensors =
            self.tensors.iter().filter_map(|(n, t)| Some((n.strip_prefix("param.")?.into(), t.clone())));
        Arc::new(CaseParameters {
            tensors: tensors.collect(),
            rename: Box::new(rename),
            vars: Mutex::default(),
        })
    }

    /// `sum(cot * out)` over the named outputs, in f64.
    ///
    /// # Errors
    /// If an output has no cotangent.
    pub fn loss(&self, outputs: &[(&str, &Tensor)]) -> Result<Tensor> {
        let mut loss = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for (name, out) in outputs {
            loss = (loss + (out.to_dtype(DType::F64)? * self.get(&format!("cot.{name}"))?)?.sum_all()?)?;
        }
        Ok(loss)
    }

    /// Compares the gradients of the outputs' loss with every `grad.*` of the record: those of parameters and of these
    /// inputs. Nothing recorded may be left over.
    ///
    /// # Errors
    /// If the backward pass fails.
    ///
    /// # Panics
    /// If a gradient is missing or out of tolerance.
    pub fn check_gradients(
        &self,
        outputs: &[(&str, &Tensor)],
        inputs: &[(&str, &Var)],
        parameters: &CaseParameters,
        tolerance: f64,
    ) -> Result<()> {
        let grads = self.loss(outputs)?.backward()?;
        let mut vars: BTreeMap<String, Var> = parameters.all();
        vars.extend(inputs.iter().map(|(name, var)| ((*name).to_owned(), (*var).clone())));
        for name in self.tensors.keys().filter_map(|n| n.strip_prefix("grad.")) {
            let want = self.get(&format!("grad.{name}"))?;
            let what = format!("{}: gradient of {name}", self.name);
            let Some(var) = vars.get(name) else { panic!("{what}: no such variable was built") };
            let got = match grads.get(var) {
                Some(grad) => grad.to_dtype(DType::F64)?.reshape(want.dims())?,
                None => want.zeros_like()?,
            };
            let largest = |t: &Tensor| -> Result<f64> { t.abs()?.flatten_all()?.max(0)?.to_scalar() };
            if largest(&want)? < 1e-12 {
                // Zero by construction: only rounding is left, and no scale to measure it by.
                assert!(largest(&got)? < tolerance.max(1e-9), "{what}: expected zero");
            } else {
                assert_close(&what, &got, &want, tolerance);
            }
        }
        Ok(())
    }
}

/// The recorded parameters as variables, made when a layer asks for them.
pub struct CaseParameters {
    tensors: BTreeMap<String, Tensor>,
    rename: Box<dyn Fn(&str) -> String + Send + Sync>,
    vars: Mutex<BTreeMap<String, Var>>,
}

impl CaseParameters {
    /// Variables by recorded name, those that were asked for.
    pub fn all(&self) -> BTreeMap<String, Var> {
        self.vars.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Recorded names that no layer asked for.
    pub fn unread(&self) -> Vec<String> {
        let read = self.all();
        self.tensors.keys().filter(|n| !read.contains_key(*n)).cloned().collect()
    }
}

impl Source for CaseParameters {
    fn get(&self, parameter: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor> {
        let name = (self.rename)(&parameter.name);
        let Some(tensor) = self.tensors.get(&name) else {
            bail!("no recorded parameter {name} ({})", parameter.name)
        };
        if tensor.elem_count() != parameter.shape.iter().product::<usize>() {
            bail!("{name}: recorded as {:?}, asked for as {:?}", tensor.dims(), parameter.shape);
        }
        let tensor = tensor.reshape(parameter.shape.as_slice())?.to_dtype(dtype)?.to_device(device)?;
        let var = Var::from_tensor(&tensor)?;
        self.vars.lock().unwrap_or_else(PoisonError::into_inner).insert(name, var.clone());
        Ok(if parameter.buffer { tensor } else { var.as_tensor().clone() })
    }

    fn contains(&self, path: &str) -> bool {
        self.tensors.contains_key(&(self.rename)(path))
    }
}
