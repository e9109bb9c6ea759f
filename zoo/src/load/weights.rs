//! A checkpoint as a source of parameters: once for their shapes, to find out whether everything fits, then for good.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result as CandleResult, Tensor, bail};
use semisep_core::{BlockFormat, Matrix, ParameterGroup, Seeded, Shapes, Source};
use semisep_kernels::Quantised;

use super::LoadOptions;
use super::recipes::{Misfit, Parts, Tensors};
use super::report::{LoadedTensor, Report};
use crate::checkpoint::{Stored, StoredType, View};

/// Most elements of a parameter that no tensor of the checkpoint stands for: layers may compute with what the plan gives
/// them, and its size is then the configuration's word alone.
const MAX_UNBACKED: usize = 1 << 26;

/// Elements that are numbers at a time on their way to blocks.
const RUN: usize = 1 << 22;

/// Finds out what a load would do. Gives out shapes without memory behind them.
pub(super) struct Plan {
    tensors: Arc<Tensors>,
    found: Mutex<Found>,
}

/// The report so far, and the tensors that parameters asked for.
#[derive(Default)]
struct Found {
    report: Report,
    used: BTreeSet<String>,
}

impl Plan {
    pub(super) fn new(tensors: Arc<Tensors>) -> Self {
        Self { tensors, found: Mutex::default() }
    }

    /// What was found, once the model has asked for everything.
    pub(super) fn report(&self) -> Report {
        let Found { report, used } = &*lock(&self.found);
        let unexpected: BTreeSet<&str> = self.tensors.named().filter(|name| !used.contains(*name)).collect();
        Report {
            unexpected: unexpected.into_iter().map(String::from).collect(),
            ignored: self.tensors.ignored.clone(),
            ..report.clone()
        }
    }
}

impl Source for Plan {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let elements = p.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let Found { report, used } = &mut *lock(&self.found);
        used.extend(self.tensors.behind(&p.name).into_iter().map(String::from));
        match self.tensors.parts(&p.name, &p.shape) {
            Ok(parts) => report.loaded.push(loaded(p, &parts)),
            Err(misfit) => {
                match misfit {
                    Misfit::Shape(mismatch) => report.mismatched.push(mismatch),
                    Misfit::Missing(None) => report.missing.push((p.name.clone(), p.shape.clone())),
                    Misfit::Missing(Some(part)) => {
                        report.missing.push((format!("{part}, a part of {}", p.name), p.shape.clone()));
                    }
                }
                if elements.is_none_or(|n| n > MAX_UNBACKED) {
                    bail!("{}: the shape {:?} is too large to be made up", p.name, p.shape);
                }
            }
        }
        Shapes.get(p, dtype, device)
    }

    fn matrix(
        &self,
        p: &ParameterGroup,
        dtype: DType,
        _: Option<BlockFormat>,
        device: &Device,
    ) -> CandleResult<Matrix> {
        Ok(self.get(p, dtype, device)?.into())
    }

    fn contains(&self, path: &str) -> bool {
        self.tensors.contains(path)
    }
}

fn loaded(p: &ParameterGroup, parts: &Parts<'_>) -> LoadedTensor {
    let stored: Vec<&Stored> = parts.parts.iter().map(|(stored, _)| *stored).collect();
    LoadedTensor {
        name: p.name.clone(),
        stored_as: stored.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(" + "),
        stored_shape: if parts.whole { stored[0].shape.clone() } else { p.shape.clone() },
        shape: p.shape.clone(),
        dtype: stored[0].dtype,
    }
}

/// Called with the bytes of each tensor read.
pub type Progress = dyn Fn(u64) + Send + Sync;

/// Gives out the checkpoint's tensors, and seeded values for those it lacks.
pub(super) struct Weights {
    tensors: Arc<Tensors>,
    non_finite: Mutex<Vec<(String, usize)>>,
    /// Whether matrices stay in the files where they can.
    in_place: bool,
    /// Whether those are looked at when they are first used, not now.
    checked_at_first_use: bool,
    progress: Option<Arc<Progress>>,
}

impl Weights {
    pub(super) fn new(tensors: Arc<Tensors>, options: &LoadOptions) -> Self {
        Self {
            tensors,
            non_finite: Mutex::default(),
            in_place: options.in_place,
            checked_at_first_use: options.checked_at_first_use,
            progress: options.progress.clone(),
        }
    }

    /// Tensors read with NaN or infinite values, by their names in the checkpoint, and how many.
    pub(super) fn non_finite(&self) -> Vec<(String, usize)> {
        lock(&self.non_finite).clone()
    }
}

impl Weights {
    /// These parts as one tensor, in a shape of as many elements.
    fn read(
        &self,
        parts: &[(&Stored, View)],
        shape: &[usize],
        dtype: DType,
        device: &Device,
        plus: f64,
    ) -> CandleResult<Tensor> {
        let read = self.tensors.checkpoint.read_views(parts, shape, dtype, device, plus);
        let read = read.map_err(candle_core::Error::wrap)?;
        self.note(parts, read.non_finite);
        Ok(read.tensor)
    }

    /// What an error calls the parts.
    fn called(&self, parts: &[(&Stored, View)]) -> String {
        let file =
            parts.first().map(|(stored, _)| self.tensors.checkpoint.path(stored).display().to_string());
        format!("{}: {}", file.unwrap_or_default(), names(parts))
    }

    /// These parts have been read, and so many values of theirs are not finite.
    fn note(&self, parts: &[(&Stored, View)], non_finite: usize) {
        if non_finite > 0 {
            let (name, mut known) = (names(parts), lock(&self.non_finite));
            match known.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += non_finite,
                None => known.push((name, non_finite)),
            }
        }
        if let Some(progress) = &self.progress {
            let bytes = |(stored, view): &(&Stored, View)| stored.dtype.bytes(view.elements()).unwrap_or(0);
            progress(parts.iter().map(bytes).sum::<usize>() as u64);
        }
    }
}

fn names(parts: &[(&Stored, View)]) -> String {
    parts.iter().map(|(stored, _)| stored.name.as_str()).collect::<Vec<_>>().join(" + ")
}

/// The parts, each in runs of rows of at most [`RUN`] elements where it has rows of so many columns, and the rows of each.
fn runs(parts: Vec<(&Stored, View)>, columns: usize) -> Vec<((&Stored, View), usize)> {
    let mut runs = Vec::new();
    for (stored, view) in parts {
        let rows = view.elements() / columns.max(1);
        let step = (RUN / columns.max(1)).max(1);
        if view.shape != [rows, columns] {
            runs.push(((stored, view), rows));
            continue;
        }
        for first in (0..rows).step_by(step) {
            let len = step.min(rows - first);
            runs.extend(view.clone().take(0, first, len).map(|view| ((stored, view), len)));
        }
    }
    runs
}

impl Source for Weights {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let Ok(Parts { parts, plus, .. }) = self.tensors.parts(&p.name, &p.shape) else {
            return Seeded { seed: 0 }.get(p, dtype, device);
        };
        self.read(&parts, &p.shape, dtype, device, plus)
    }

    /// Quantised run by run: never more numbers in memory than a run has.
    fn matrix(
        &self,
        p: &ParameterGroup,
        dtype: DType,
        format: Option<BlockFormat>,
        device: &Device,
    ) -> CandleResult<Matrix> {
        let dense = || Ok(self.get(p, dtype, device)?.into());
        let (&[rows, columns], true) = (p.shape.as_slice(), device.is_cpu()) else { return dense() };
        let Ok(Parts { parts, plus, .. }) = self.tensors.parts(&p.name, &p.shape) else {
            let Some(format) = format else { return dense() };
            let numbers = Seeded { seed: 0 }.get(p, DType::F32, &Device::Cpu)?;
            return Ok(Matrix::Quantised(Quantised::quantise(&numbers, format)?));
        };
        if plus == 0.0
            && let Some(found) = self.tensors.checkpoint.blocks(&parts, columns, format, self.in_place)
        {
            if self.checked_at_first_use {
                self.note(&parts, 0);
                return Ok(Matrix::Quantised(found.checked_at_first_use(&self.called(&parts))));
            }
            self.note(&parts, found.non_finite());
            return Ok(Matrix::Quantised(found));
        }
        // Blocks of several formats in one matrix: eight bits lose next to nothing of any.
        let blocks = |dtype| matches!(dtype, StoredType::Blocks(_) | StoredType::Packed(_));
        let some_blocks = parts.iter().any(|(stored, _)| blocks(stored.dtype));
        let mixed = some_blocks.then(|| BlockFormat::Q8_0.for_columns(columns)).flatten();
        let Some(format) = format.or(mixed) else {
            let found = (self.in_place && plus == 0.0)
                .then(|| self.tensors.checkpoint.in_place(&parts, columns, dtype))
                .flatten();
            let Some(found) = found else { return dense() };
            if self.checked_at_first_use {
                self.note(&parts, 0);
                return Ok(Matrix::InPlace(found.checked_at_first_use(&self.called(&parts))));
            }
            self.note(&parts, found.non_finite());
            return Ok(Matrix::InPlace(found));
        };
        let mut blocks = Vec::new();
        for (part, rows) in runs(parts, columns) {
            let numbers = self.read(&[part], &[rows, columns], DType::F32, &Device::Cpu, plus)?;
            // A load with such numbers fails in the end; their blocks might not be made at all.
            let numbers = if lock(&self.non_finite).is_empty() { numbers } else { numbers.zeros_like()? };
            blocks.extend_from_slice(Quantised::quantise(&numbers, format)?.bytes());
        }
        Ok(Matrix::Quantised(Quantised::new(format, (rows, columns), blocks)?))
    }

    fn contains(&self, path: &str) -> bool {
        self.tensors.contains(path)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
