//! Everything that a model asks its source for.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use semisep_core::{BlockFormat, Matrix, ParameterGroup, Source};

/// Hands requests on, and keeps each, once: parameters, and the constants that are stored beside them.
pub(crate) struct Asked {
    source: Arc<dyn Source>,
    all: Mutex<(Vec<ParameterGroup>, BTreeSet<String>)>,
}

impl Asked {
    pub(crate) fn new(source: Arc<dyn Source>) -> Self {
        Self { source, all: Mutex::default() }
    }

    /// What was asked for, in that order.
    pub(crate) fn all(&self) -> Vec<ParameterGroup> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

impl Asked {
    fn note(&self, p: &ParameterGroup) {
        let (list, names) = &mut *self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if names.insert(p.name.clone()) {
            list.push(p.clone());
        }
    }
}

impl Source for Asked {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        self.note(p);
        self.source.get(p, dtype, device)
    }

    fn matrix(
        &self,
        p: &ParameterGroup,
        dtype: DType,
        format: Option<BlockFormat>,
        device: &Device,
    ) -> CandleResult<Matrix> {
        self.note(p);
        self.source.matrix(p, dtype, format, device)
    }

    fn contains(&self, path: &str) -> bool {
        self.source.contains(path)
    }
}
