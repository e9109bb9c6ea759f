//! Matrices in memory that something else owns: weights that stay where a file is mapped, and are never copied.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Result, Shape, Tensor, bail};
use half::{bf16, f16};

use super::cpu;
use super::finite::{self, FirstUse};
use super::stored::{Register, Stored};
use crate::host::{self, Rows};

/// Bytes and what keeps them alive.
pub type Memory = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Rows of a matrix that follow each other in memory.
#[derive(Clone)]
pub struct Run {
    /// Where they are.
    pub memory: Memory,
    /// Their first byte in it.
    pub start: usize,
    /// How many.
    pub rows: usize,
}

/// A matrix (rows, columns) of little-endian floats in one run or several, on the CPU.
#[derive(Clone)]
pub struct InPlace {
    dtype: DType,
    dims: [usize; 2],
    runs: Vec<Run>,
    first_use: Option<Arc<FirstUse>>,
}

impl fmt::Debug for InPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InPlace({:?}, {:?}, {} runs)", self.dims, self.dtype, self.runs.len())
    }
}

/// Calls `$f::<type>` for a float dtype.
macro_rules! of_dtype {
    ($dtype:expr, $f:ident($($argument:expr),*)) => {
        match $dtype {
            DType::F64 => $f::<f64>($($argument),*),
            DType::F32 => $f::<f32>($($argument),*),
            DType::F16 => $f::<f16>($($argument),*),
            DType::BF16 => $f::<bf16>($($argument),*),
            other => bail!("a matrix is of a float dtype, found {other:?}"),
        }
    };
}

impl InPlace {
    /// The matrix of these runs of rows of `columns` floats, one after the other.
    ///
    /// # Errors
    /// If `dtype` is no float, a run reaches past its memory or is not aligned to its elements, or the machine is big-endian.
    pub fn new(dtype: DType, columns: usize, runs: Vec<Run>) -> Result<Self> {
        if cfg!(target_endian = "big") {
            bail!("stored floats are little-endian, this machine is not");
        }
        for run in &runs {
            of_dtype!(dtype, check_run(run, columns))?;
        }
        let rows = runs.iter().map(|run| run.rows).sum();
        Ok(Self { dtype, dims: [rows, columns], runs, first_use: None })
    }

    /// The same matrix, which fails when it is first used if it has values that are not finite; errors call it `name`. That
    /// costs nothing, as products tell, where [`InPlace::non_finite`] reads everything once more.
    #[must_use]
    pub fn checked_at_first_use(self, name: &str) -> Self {
        Self { first_use: Some(FirstUse::of(name)), ..self }
    }

    /// How many elements are NaN or infinite.
    pub fn non_finite(&self) -> usize {
        let row_bytes = self.dims[1] * self.dtype.size_in_bytes();
        let count = |run: &Run| {
            let bytes = &(*run.memory).as_ref()[run.start..run.start + run.rows * row_bytes];
            finite::count_non_finite(self.dtype, bytes)
        };
        self.runs.iter().map(count).sum()
    }

    /// (rows, columns)
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The dtype of the stored elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// `x Wᵀ + bias`, as [`super::linear`] of a tensor of the same numbers; x on the CPU.
    ///
    /// # Errors
    /// If the shapes or dtypes do not fit together, or as of [`InPlace::checked_at_first_use`].
    pub fn apply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        super::check_on_cpu(x, self.dims, bias, "weights in place")?;
        let tracked = x.track_op() || bias.is_some_and(Tensor::track_op);
        match (x.dtype(), self.dtype) {
            _ if tracked => super::linear(x, &self.to_tensor(self.dtype)?, bias),
            (DType::F32, DType::F32) => self.on_cpu::<f32, f32>(x, bias),
            (DType::F32, DType::BF16) => self.on_cpu::<f32, bf16>(x, bias),
            (DType::F32, DType::F16) => self.on_cpu::<f32, f16>(x, bias),
            (DType::F64, DType::F64) => self.on_cpu::<f64, f64>(x, bias),
            (DType::BF16 | DType::F16, own) if own == x.dtype() => {
                self.apply(&x.to_dtype(DType::F32)?, bias)?.to_dtype(own)
            }
            _ => super::linear(x, &self.to_tensor(self.dtype)?, bias),
        }
    }

    fn on_cpu<T: Register, W: Stored<T>>(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let x = host::in_rows(x, x.rank() - 1)?;
        let bias = bias.map(|b| b.to_dtype(T::DTYPE)?.contiguous()).transpose()?;
        let outputs = self.dims[0];
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = outputs;
        }
        let xs = x.storage_and_layout();
        let bs = bias.as_ref().map(|b| b.storage_and_layout());
        let bias = bs.as_ref().map(|(storage, layout)| host::slice::<T>(storage, layout)).transpose()?;
        let x = Rows::of_last(&xs.0, xs.1)?;
        let mut y = vec![T::ZERO; x.rows * outputs];
        let mut first = 0;
        for run in self.runs.iter().filter(|run| run.rows > 0 && x.rows > 0) {
            let bias = bias.map(|bias| &bias[first..first + run.rows]);
            let w = elements::<W>(run, self.dims[1])?;
            cpu::forward_into(x, w, bias, &mut y[first..], (run.rows, outputs));
            first += run.rows;
        }
        if let Some(first_use) = &self.first_use {
            first_use.met(&y, || self.non_finite())?;
        }
        Ok(host::tensor(y, Shape::from(shape)))
    }

    /// These rows: ids (n) u32 -> (n, columns) in the stored dtype.
    ///
    /// # Errors
    /// If there is no such row, or as of [`InPlace::checked_at_first_use`].
    pub fn gather(&self, ids: &Tensor) -> Result<Tensor> {
        let ids = ids.to_vec1::<u32>()?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.dims[0]) {
            bail!("gather: row {id} of a matrix of {}", self.dims[0]);
        }
        let rows: Result<Tensor> =
            of_dtype!(self.dtype, gather_rows(self, ids.iter().map(|&id| id as usize)));
        let rows = rows?;
        if let Some(first_use) = &self.first_use {
            first_use.some(&rows, || self.non_finite())?;
        }
        Ok(rows)
    }

    /// `rows` rows from `first` on, of the same memory.
    ///
    /// # Errors
    /// If there are not so many.
    pub fn narrow(&self, first: usize, rows: usize) -> Result<Self> {
        if first.checked_add(rows).is_none_or(|end| end > self.dims[0]) {
            bail!("narrow: rows {first}.. of a matrix of {}, {rows} rows long", self.dims[0]);
        }
        let row_bytes = self.dims[1] * self.dtype.size_in_bytes();
        let (mut runs, mut at) = (Vec::new(), 0);
        for run in &self.runs {
            let (from, to) = (first.max(at), (first + rows).min(at + run.rows));
            if from < to {
                let start = run.start + (from - at) * row_bytes;
                runs.push(Run { start, rows: to - from, ..run.clone() });
            }
            at += run.rows;
        }
        let first_use = self.first_use.as_ref().map(|all| all.of_part());
        Ok(Self { dims: [rows, self.dims[1]], runs, first_use, ..*self })
    }

    /// All numbers, (rows, columns) in `dtype`.
    ///
    /// # Errors
    /// If `dtype` is no float, or as of [`InPlace::checked_at_first_use`].
    pub fn to_tensor(&self, dtype: DType) -> Result<Tensor> {
        if let Some(first_use) = &self.first_use {
            first_use.all(|| self.non_finite())?;
        }
        let all: Result<Tensor> = of_dtype!(self.dtype, gather_rows(self, 0..self.dims[0]));
        all?.to_dtype(dtype)
    }
}

fn check_run<W: candle_core::WithDType>(run: &Run, columns: usize) -> Result<()> {
    elements::<W>(run, columns).map(|_| ())
}

/// The elements of a run.
fn elements<W: candle_core::WithDType>(run: &Run, columns: usize) -> Result<&[W]> {
    let bytes = run.rows.checked_mul(columns).and_then(|n| n.checked_mul(size_of::<W>()));
    let end = bytes.and_then(|bytes| run.start.checked_add(bytes));
    let memory: &[u8] = (*run.memory).as_ref();
    let Some(bytes) = end.and_then(|end| memory.get(run.start..end)) else {
        let (rows, start, len) = (run.rows, run.start, memory.len());
        bail!("{rows} rows of {columns} {:?} from byte {start} on reach past {len} bytes", W::DTYPE);
    };
    // SAFETY: W is a plain float, of which any bits are a value.
    let (before, values, after) = unsafe { bytes.align_to::<W>() };
    if !before.is_empty() || !after.is_empty() {
        bail!("rows from byte {} on are not aligned to {:?}", run.start, W::DTYPE);
    }
    Ok(values)
}

/// These rows, all of which there are, one after the other.
fn gather_rows<W: candle_core::WithDType>(
    matrix: &InPlace,
    rows: impl ExactSizeIterator<Item = usize>,
) -> Result<Tensor> {
    let columns = matrix.dims[1];
    let runs = matrix.runs.iter().map(|run| elements::<W>(run, columns)).collect::<Result<Vec<_>>>()?;
    let shape = (rows.len(), columns);
    let mut values = Vec::with_capacity(shape.0 * columns);
    for mut row in rows {
        for (run, elements) in matrix.runs.iter().zip(&runs) {
            if row < run.rows {
                values.extend_from_slice(&elements[row * columns..][..columns]);
                break;
            }
            row -= run.rows;
        }
    }
    Ok(host::tensor(values, shape))
}
