//! A weight matrix in whatever form it is held.

use candle_core::{DType, Result, Tensor, bail};

use super::{InPlace, Quantised, linear};

/// The matrix W of `y = x Wᵀ`, (outputs, inputs): dense, in quantised blocks, or in memory of others. Who multiplies by it need not know.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// A tensor of a float dtype.
    Dense(Tensor),
    /// Blocks.
    Quantised(Quantised),
    /// Rows in memory that something else owns.
    InPlace(InPlace),
}

impl From<Tensor> for Matrix {
    fn from(tensor: Tensor) -> Self {
        Self::Dense(tensor)
    }
}

impl Matrix {
    /// `x Wᵀ + bias`, (..., inputs) -> (..., outputs); see [`linear`], [`Quantised::apply`] and [`InPlace::apply`].
    ///
    /// # Errors
    /// If the shapes or dtypes do not fit together.
    pub fn apply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => linear(x, weight, bias),
            Self::Quantised(weight) => weight.apply(x, bias),
            Self::InPlace(weight) => weight.apply(x, bias),
        }
    }

    /// These rows: ids (n) u32 on W's device -> (n, inputs), in W's dtype, f32 from blocks.
    ///
    /// # Errors
    /// If there is no such row.
    pub fn gather(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => weight.index_select(ids, 0),
            Self::Quantised(weight) => weight.gather(ids),
            Self::InPlace(weight) => weight.gather(ids),
        }
    }

    /// `rows` outputs from `first` on, of the same memory; as of a tensor, `dim` counts from 0, and is 0.
    ///
    /// # Errors
    /// If there are not so many, or `dim` is another: blocks lie along the inputs.
    pub fn narrow(&self, dim: usize, first: usize, rows: usize) -> Result<Self> {
        if dim != 0 {
            bail!("narrow: a matrix can be narrowed along dimension 0, found {dim}");
        }
        Ok(match self {
            Self::Dense(weight) => Self::Dense(weight.narrow(0, first, rows)?),
            Self::Quantised(weight) => Self::Quantised(weight.narrow(first, rows)?),
            Self::InPlace(weight) => Self::InPlace(weight.narrow(first, rows)?),
        })
    }

    /// All numbers as a tensor of `dtype`, (outputs, inputs).
    ///
    /// # Errors
    /// If `dtype` is no float.
    pub fn to_tensor(&self, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => weight.to_dtype(dtype),
            Self::Quantised(weight) => weight.dequantise(dtype),
            Self::InPlace(weight) => weight.to_tensor(dtype),
        }
    }

    /// (outputs, inputs)
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Quantised(weight) => weight.dims(),
            Self::InPlace(weight) => weight.dims(),
        }
    }

    /// One of [`Matrix::dims`].
    ///
    /// # Errors
    /// If there is no such dimension.
    pub fn dim(&self, dim: usize) -> Result<usize> {
        match self.dims().get(dim) {
            Some(&size) => Ok(size),
            None => bail!("a matrix has no dimension {dim}"),
        }
    }

    /// Numbers in it.
    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }

    /// Bytes that it takes.
    pub fn size_in_bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Self::Quantised(weight) => weight.bytes().len(),
            Self::InPlace(weight) => self.elem_count() * weight.dtype().size_in_bytes(),
        }
    }

    /// Whether it is being trained, or comes from something that is.
    pub fn track_op(&self) -> bool {
        match self {
            Self::Dense(weight) => weight.track_op(),
            Self::Quantised(_) | Self::InPlace(_) => false,
        }
    }
}
