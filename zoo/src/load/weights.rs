//! A checkpoint as a source of parameters: once for their shapes, to find out whether everything fits, then for good.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result as CandleResult, Tensor, bail};
use semisep_core::{ParameterGroup, Seeded, Shapes, Source};

use super::report::{LoadedTensor, Mismatch, Report};
use crate::checkpoint::{Checkpoint, Stored};
use crate::import::Names;
use crate::{Error, Result};

/// Most elements of a parameter that no tensor of the checkpoint stands for: layers may compute with what the plan gives
/// them, and its size is then the configuration's word alone.
const MAX_UNBACKED: usize = 1 << 26;

/// Which tensor of a checkpoint is which parameter.
pub(super) struct Tensors {
    checkpoint: Arc<Checkpoint>,
    /// Our names to the checkpoint's.
    names: BTreeMap<String, String>,
    ignored: Vec<String>,
}

impl Tensors {
    /// # Errors
    /// If two tensors stand for one parameter.
    pub(super) fn new(checkpoint: Arc<Checkpoint>, rules: &Names) -> Result<Self> {
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        let mut ignored = Vec::new();
        for stored in checkpoint.tensors() {
            match rules.native(&stored.name) {
                Some(native) if rules.tied().is_some_and(|(alias, _)| alias == native) => {
                    ignored.push(stored.name.clone());
                }
                None => ignored.push(stored.name.clone()),
                Some(native) => {
                    if let Some(other) = names.insert(native.clone(), stored.name.clone()) {
                        let message = format!("{other} and {} both stand for {native}", stored.name);
                        return Err(Error::at(checkpoint.path(stored), message));
                    }
                }
            }
        }
        Ok(Self { checkpoint, names, ignored })
    }

    fn stored(&self, parameter: &str) -> Option<&Stored> {
        self.names.get(parameter).and_then(|name| self.checkpoint.get(name))
    }
}

/// Finds out what a load would do. Gives out shapes without memory behind them.
pub(super) struct Plan {
    tensors: Arc<Tensors>,
    report: Mutex<Report>,
}

impl Plan {
    pub(super) fn new(tensors: Arc<Tensors>) -> Self {
        Self { tensors, report: Mutex::default() }
    }

    /// What was found, once the model has asked for everything.
    pub(super) fn report(&self) -> Report {
        let mut report = lock(&self.report).clone();
        let used: BTreeSet<&str> = report.loaded.iter().map(|t| t.stored_as.as_str()).collect();
        let mismatched: BTreeSet<&str> = report.mismatched.iter().map(|m| m.stored_as.as_str()).collect();
        let names = self.tensors.names.values();
        let unexpected = names.filter(|n| !used.contains(n.as_str()) && !mismatched.contains(n.as_str()));
        report.unexpected = unexpected.cloned().collect();
        report.ignored = self.tensors.ignored.clone();
        report
    }
}

impl Source for Plan {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let elements = p.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let mut report = lock(&self.report);
        match self.tensors.stored(&p.name) {
            Some(stored) if same_but_ones(&stored.shape, &p.shape) => report.loaded.push(LoadedTensor {
                name: p.name.clone(),
                stored_as: stored.name.clone(),
                stored_shape: stored.shape.clone(),
                shape: p.shape.clone(),
                dtype: stored.dtype,
            }),
            backed => {
                match backed {
                    Some(stored) => report.mismatched.push(Mismatch {
                        stored_as: stored.name.clone(),
                        expected: p.shape.clone(),
                        found: stored.shape.clone(),
                    }),
                    None => report.missing.push((p.name.clone(), p.shape.clone())),
                }
                if elements.is_none_or(|n| n > MAX_UNBACKED) {
                    bail!("{}: the shape {:?} is too large to be made up", p.name, p.shape);
                }
            }
        }
        Shapes.get(p, dtype, device)
    }

    fn contains(&self, path: &str) -> bool {
        self.tensors.names.contains_key(path)
    }
}

/// Called with the bytes of each tensor read.
pub type Progress = dyn Fn(u64) + Send + Sync;

/// Gives out the checkpoint's tensors, and seeded values for those it lacks.
pub(super) struct Weights {
    tensors: Arc<Tensors>,
    non_finite: Mutex<Vec<(String, usize)>>,
    progress: Option<Arc<Progress>>,
}

impl Weights {
    pub(super) fn new(tensors: Arc<Tensors>, progress: Option<Arc<Progress>>) -> Self {
        Self { tensors, non_finite: Mutex::default(), progress }
    }

    /// Tensors read with NaN or infinite values, by their names in the checkpoint, and how many.
    pub(super) fn non_finite(&self) -> Vec<(String, usize)> {
        lock(&self.non_finite).clone()
    }
}

impl Source for Weights {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let Some(stored) = self.tensors.stored(&p.name) else {
            return Seeded { seed: 0 }.get(p, dtype, device);
        };
        let read = self.tensors.checkpoint.read(&stored.name, &p.shape, dtype, device);
        let read = read.map_err(candle_core::Error::wrap)?;
        if read.non_finite > 0 {
            lock(&self.non_finite).push((stored.name.clone(), read.non_finite));
        }
        if let Some(progress) = &self.progress {
            progress(stored.dtype.bytes(stored.elements).unwrap_or(0) as u64);
        }
        Ok(read.tensor)
    }

    fn contains(&self, path: &str) -> bool {
        self.tensors.names.contains_key(path)
    }
}

fn same_but_ones(a: &[usize], b: &[usize]) -> bool {
    let rest = |shape: &[usize]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    a == b || rest(a) == rest(b)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
