//! Matrices of quantised blocks: `y = x Wᵀ + b` with weights of four to eight bits.
//!
//! The formats are ggml's, byte for byte, so that blocks come from files as they are. Activations stay in f32: the result
//! is that of the matrix's numbers ([`Quantised::dequantise`]) but for the order of summation.

mod blocks;
mod cpu;
mod format;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use self::cpu::Instructions;
pub use self::format::BlockFormat;
use crate::check::{self, tuple};
use crate::host::{self, Rows};

/// A matrix (rows, columns) of blocks along its rows, on the CPU.
#[derive(Clone)]
pub struct Quantised {
    format: BlockFormat,
    dims: [usize; 2],
    /// Blocks of this matrix and perhaps of others, row by row.
    data: Arc<Vec<u8>>,
    /// Where this matrix begins.
    start: usize,
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
    pub fn new(format: BlockFormat, (rows, columns): (usize, usize), blocks: Vec<u8>) -> Result<Self> {
        let expected = format.row_bytes(columns).and_then(|bytes| bytes.checked_mul(rows));
        if expected != Some(blocks.len()) {
            bail!(
                "a matrix ({rows}, {columns}) in {format} takes {}, found {} bytes",
                expected.map_or("no whole number of blocks a row".into(), |n| format!("{n} bytes")),
                blocks.len()
            );
        }
        Ok(Self { format, dims: [rows, columns], data: Arc::new(blocks), start: 0 })
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

    /// The numbers that the blocks stand for, (rows, columns) in `dtype`.
    ///
    /// # Errors
    /// If `dtype` is no float.
    pub fn dequantise(&self, dtype: DType) -> Result<Tensor> {
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
        Ok(host::tensor(numbers, (ids.len(), columns)))
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
        Ok(Self { dims: [rows, self.dims[1]], start, ..self.clone() })
    }

    /// `x Wᵀ + bias`: x (..., columns) f32, f64 or half precision -> (..., rows) in x's dtype; `bias` (rows) in any float
    /// dtype. Differentiable in x and the bias. In f64 the numbers of the blocks are multiplied in f64.
    ///
    /// # Errors
    /// If the shapes do not fit together, or x is not on the CPU.
    pub fn apply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let [rows, columns] = self.dims;
        if x.dims().last() != Some(&columns) {
            let found = tuple(x.dims());
            bail!("linear: x has shape {found}, expected (..., {columns}), as weight is ({rows}, {columns})");
        }
        if !x.device().is_cpu() {
            bail!("linear: quantised weights multiply on the CPU alone, found x on {:?}", x.device());
        }
        check::optional("linear", "bias", bias, &[rows], "the outputs of weight")?;
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
        &self.data[self.start..][..self.dims[0] * self.row_bytes()]
    }

    fn row_bytes(&self) -> usize {
        // The columns were a whole number of blocks when the matrix was made.
        self.format.row_bytes(self.dims[1]).unwrap_or(0)
    }
}

/// The best instructions of this machine.
fn best() -> Instructions {
    static BEST: OnceLock<Instructions> = OnceLock::new();
    *BEST.get_or_init(|| Instructions::available().next().unwrap_or(Instructions::Portable))
}
