//! Matrices of quantised blocks: `y = x Wᵀ + b` with weights of four to eight bits.
//!
//! The formats are ggml's, byte for byte, so that blocks come from files as they are. Activations are rounded to eight bits,
//! as ggml does, or stay in f32, as the matrix is told ([`Activations`]): but for that, the result is that of the matrix's
//! numbers ([`Quantised::dequantise`]), to the order of summation.

mod blocks;
mod cpu;
mod format;
mod rounded;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};

use self::cpu::Instructions;
pub use self::format::BlockFormat;
pub use self::rounded::Activations;
use super::Memory;
use super::finite::FirstUse;
use crate::host::{self, Rows};

/// A matrix (rows, columns) of blocks along its rows, on the CPU.
#[derive(Clone)]
pub struct Quantised {
    format: BlockFormat,
    dims: [usize; 2],
    /// Blocks of this matrix and perhaps of others, row by row.
    data: Memory,
    /// Where this matrix begins.
    start: usize,
    activations: Activations,
    first_use: Option<Arc<FirstUse>>,
}

impl fmt::Debug for Quantised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quantised({:?}, {})", self.dims, self.format)
    }
}

impl Quantised {
    /// A matrix of blocks as ggml lays them out, row by row.
    ///
    /// # Errors
    /// If the columns are no whole number of blocks, or there are more or fewer bytes than the matrix takes.
    pub fn new(format: BlockFormat, dims: (usize, usize), blocks: Vec<u8>) -> Result<Self> {
        let found = blocks.len();
        let matrix = Self::in_place(format, dims, Arc::new(blocks), 0)?;
        if matrix.bytes().len() != found {
            return Err(wrong_size(format, dims, found));
        }
        Ok(matrix)
    }

    /// A matrix of blocks that something else owns, row by row from byte `start` on.
    ///
    /// # Errors
    /// If the columns are no whole number of blocks, or the matrix reaches past the memory.
    pub fn in_place(
        format: BlockFormat,
        (rows, columns): (usize, usize),
        memory: Memory,
        start: usize,
    ) -> Result<Self> {
        let bytes = format.row_bytes(columns).and_then(|bytes| bytes.checked_mul(rows));
        let end = bytes.and_then(|bytes| start.checked_add(bytes));
        let length = (*memory).as_ref().len();
        if end.is_none_or(|end| end > length) {
            return Err(wrong_size(format, (rows, columns), length.saturating_sub(start)));
        }
        let activations = Activations::default();
        Ok(Self { format, dims: [rows, columns], data: memory, start, activations, first_use: None })
    }

    /// The same matrix, which fails when it is first used if it has blocks that are not finite: as
    /// [`InPlace::checked_at_first_use`](super::InPlace::checked_at_first_use).
    #[must_use]
    pub fn checked_at_first_use(self, name: &str) -> Self {
        Self { first_use: Some(FirstUse::of(name)), ..self }
    }

    /// How many blocks have a scale or an offset that is NaN or infinite.
    pub fn non_finite(&self) -> usize {
        cpu::non_finite(self)
    }

    /// The blocks nearest to these numbers, (rows, columns) in any float dtype; the choice of scales is candle's.
    ///
    /// # Errors
    /// If the columns are no whole number of blocks.
    pub fn quantise(numbers: &Tensor, format: BlockFormat) -> Result<Self> {
        let (rows, columns) = numbers.dims2()?;
        let Some(row_bytes) = format.row_bytes(columns) else {
            bail!("{columns} columns are no whole number of {format} blocks");
        };
        let numbers = numbers.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let mut blocks = vec![0; rows * row_bytes];
        {
            let (storage, layout) = numbers.storage_and_layout();
            let numbers = host::slice::<f32>(&storage, layout)?;
            let to = host::Disjoint::new(&mut blocks);
            host::parallel(rows, |row| {
                // SAFETY: rows do not overlap.
                let to = unsafe { to.slice(row * row_bytes, row_bytes) };
                format.quantise(&numbers[row * columns..][..columns], to);
            });
        }
        Self::new(format, (rows, columns), blocks)
    }

    /// The same matrix, that reads its input so; [`Activations::Rounded`] unless this was called.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// The numbers that the blocks stand for, (rows, columns) in `dtype`.
    ///
    /// # Errors
    /// If `dtype` is no float.
    pub fn dequantise(&self, dtype: DType) -> Result<Tensor> {
        if let Some(first_use) = &self.first_use {
            first_use.all(|| self.non_finite())?;
        }
        let mut numbers = vec![0.0; self.dims[0] * self.dims[1]];
        cpu::unpack(self, 0, &mut numbers);
        host::tensor(numbers, &self.dims).to_dtype(dtype)
    }

    /// The numbers of these rows: ids (n) u32 -> (n, columns) f32.
    ///
    /// # Errors
    /// If there is no such row.
    pub fn gather(&self, ids: &Tensor) -> Result<Tensor> {
        let ids = ids.to_vec1::<u32>()?;
        let [rows, columns] = self.dims;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            bail!("gather: row {id} of a matrix of {rows}");
        }
        let mut numbers = vec![0.0; ids.len() * columns];
        for (&id, to) in ids.iter().zip(numbers.chunks_exact_mut(columns.max(1))) {
            cpu::unpack_row(self, id as usize, to);
        }
        let rows = host::tensor(numbers, (ids.len(), columns));
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
        let start = self.start + first * self.row_bytes();
        let first_use = self.first_use.as_ref().map(|all| all.of_part());
        Ok(Self { dims: [rows, self.dims[1]], start, first_use, ..self.clone() })
    }

    /// `x Wᵀ + bias`: x (..., columns) f32, f64 or half precision -> (..., rows) in x's dtype; `bias` (rows) in any float
    /// dtype. Differentiable in x and the bias. In f64 the numbers of the blocks are multiplied in f64.
    ///
    /// # Errors
    /// If the shapes do not fit together, or x is not on the CPU.
    pub fn apply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        super::check_on_cpu(x, self.dims, bias, "quantised weights")?;
        let tracked = x.track_op() || bias.is_some_and(Tensor::track_op);
        match x.dtype() {
            DType::F32 if !tracked => self.on_cpu(x, bias, best()),
            DType::BF16 | DType::F16 if !tracked => {
                self.on_cpu(&x.to_dtype(DType::F32)?, bias, best())?.to_dtype(x.dtype())
            }
            dtype => super::linear(x, &self.dequantise(dtype)?, bias),
        }
    }

    /// [`Quantised::apply`] of x in f32, by each set of instructions that this machine has: for tests.
    ///
    /// # Errors
    /// As for [`Quantised::apply`].
    #[doc(hidden)]
    pub fn apply_in_every_way(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Vec<(String, Tensor)>> {
        Instructions::available().map(|set| Ok((format!("{set:?}"), self.on_cpu(x, bias, set)?))).collect()
    }

    fn on_cpu(&self, x: &Tensor, bias: Option<&Tensor>, set: Instructions) -> Result<Tensor> {
        let x = host::in_rows(x, x.rank() - 1)?;
        let bias = bias.map(|b| b.to_dtype(DType::F32)?.contiguous()).transpose()?;
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.dims[0];
        }
        let xs = x.storage_and_layout();
        let bs = bias.as_ref().map(|b| b.storage_and_layout());
        let bias = bs.as_ref().map(|(storage, layout)| host::slice::<f32>(storage, layout)).transpose()?;
        let y = cpu::forward(Rows::of_last(&xs.0, xs.1)?, self, bias, set);
        if let Some(first_use) = &self.first_use {
            first_use.met(&y, || self.non_finite())?;
        }
        Ok(host::tensor(y, Shape::from(shape)))
    }

    /// The format of the blocks.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// (rows, columns)
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The blocks.
    pub fn bytes(&self) -> &[u8] {
        &(*self.data).as_ref()[self.start..][..self.dims[0] * self.row_bytes()]
    }

    fn row_bytes(&self) -> usize {
        // The columns were a whole number of blocks when the matrix was made.
        self.format.row_bytes(self.dims[1]).unwrap_or(0)
    }
}

fn wrong_size(format: BlockFormat, (rows, columns): (usize, usize), found: usize) -> Error {
    let bytes = format.row_bytes(columns).and_then(|bytes| bytes.checked_mul(rows));
    let takes = bytes.map_or("no whole number of blocks a row".into(), |n| format!("{n} bytes"));
    Error::Msg(format!("a matrix ({rows}, {columns}) in {format} takes {takes}, found {found} bytes"))
}

/// The best instructions of this machine.
fn best() -> Instructions {
    static BEST: OnceLock<Instructions> = OnceLock::new();
    *BEST.get_or_init(|| Instructions::available().next().unwrap_or(Instructions::Portable))
}
