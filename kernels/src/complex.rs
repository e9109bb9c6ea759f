//! Complex tensors, which candle lacks, as two real ones. Slow and differentiable: for parameters and definitions.

use candle_core::{D, DType, Result, Tensor};

/// Real and imaginary part, of one shape. Binary operations broadcast.
#[derive(Debug, Clone)]
pub struct Complex {
    /// Real part.
    pub re: Tensor,
    /// Imaginary part.
    pub im: Tensor,
}

impl Complex {
    /// From pairs (re, im) along the last dimension: (.., 2) -> (..).
    ///
    /// # Errors
    /// If the last dimension is not 2.
    pub fn from_pairs(t: &Tensor, dtype: DType) -> Result<Self> {
        if t.dim(D::Minus1)? != 2 {
            candle_core::bail!("complex numbers are pairs (re, im), got shape {:?}", t.dims());
        }
        let part = |i| t.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1)?.to_dtype(dtype);
        Ok(Self { re: part(0)?, im: part(1)? })
    }

    /// As pairs along a new last dimension.
    ///
    /// # Errors
    /// If the parts differ in shape.
    pub fn to_pairs(&self) -> Result<Tensor> {
        Tensor::stack(&[&self.re, &self.im], D::Minus1)
    }

    /// The same function of both parts: of their shapes, say.
    ///
    /// # Errors
    /// If the function fails.
    pub fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { re: f(&self.re)?, im: f(&self.im)? })
    }

    /// Complex conjugate.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn conj(&self) -> Result<Self> {
        Ok(Self { re: self.re.clone(), im: self.im.neg()? })
    }

    /// Sum.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn add(&self, o: &Self) -> Result<Self> {
        Ok(Self { re: self.re.broadcast_add(&o.re)?, im: self.im.broadcast_add(&o.im)? })
    }

    /// Difference.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn sub(&self, o: &Self) -> Result<Self> {
        Ok(Self { re: self.re.broadcast_sub(&o.re)?, im: self.im.broadcast_sub(&o.im)? })
    }

    /// Product.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn mul(&self, o: &Self) -> Result<Self> {
        Ok(Self {
            re: (self.re.broadcast_mul(&o.re)? - self.im.broadcast_mul(&o.im)?)?,
            im: (self.re.broadcast_mul(&o.im)? + self.im.broadcast_mul(&o.re)?)?,
        })
    }

    /// Product with a real tensor.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn scale(&self, real: &Tensor) -> Result<Self> {
        self.map(|t| t.broadcast_mul(real))
    }

    /// `self · mul + add` with real numbers.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn affine(&self, mul: f64, add: f64) -> Result<Self> {
        Ok(Self { re: self.re.affine(mul, add)?, im: self.im.affine(mul, 0.0)? })
    }

    /// `1 / self`
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn reciprocal(&self) -> Result<Self> {
        let norm = (self.re.sqr()? + self.im.sqr()?)?;
        Ok(Self { re: self.re.div(&norm)?, im: self.im.neg()?.div(&norm)? })
    }

    /// `e^self`
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn exp(&self) -> Result<Self> {
        let size = self.re.exp()?;
        Ok(Self { re: size.mul(&self.im.cos()?)?, im: size.mul(&self.im.sin()?)? })
    }

    /// `2 Re Σ self · o` over the last dimension: a product with both of each pair of conjugates.
    ///
    /// # Errors
    /// If the shapes do not broadcast.
    pub fn read(&self, o: &Self) -> Result<Tensor> {
        let product = (self.re.broadcast_mul(&o.re)? - self.im.broadcast_mul(&o.im)?)?;
        product.sum(D::Minus1)?.affine(2.0, 0.0)
    }
}
