//! Complex tensors as two real ones.

use candle_core::{Result, Tensor};

/// `re + i im`.
#[derive(Debug, Clone)]
pub(crate) struct Complex {
    pub(crate) re: Tensor,
    pub(crate) im: Tensor,
}

impl Complex {
    /// From a trailing axis (re, im).
    pub(crate) fn from_pairs(t: &Tensor) -> Result<Self> {
        let last = t.rank() - 1;
        Ok(Self { re: t.narrow(last, 0, 1)?.squeeze(last)?, im: t.narrow(last, 1, 1)?.squeeze(last)? })
    }

    /// `self · o`, shapes broadcast.
    pub(crate) fn mul(&self, o: &Self) -> Result<Self> {
        let re = (self.re.broadcast_mul(&o.re)? - self.im.broadcast_mul(&o.im)?)?;
        let im = (self.re.broadcast_mul(&o.im)? + self.im.broadcast_mul(&o.re)?)?;
        Ok(Self { re, im })
    }

    /// `1 / self`
    pub(crate) fn recip(&self) -> Result<Self> {
        let scale = (self.re.sqr()? + self.im.sqr()?)?.recip()?;
        Ok(Self { re: (&self.re * &scale)?, im: (&self.im * &scale)?.neg()? })
    }

    /// `self · s` for a real `s`, shapes broadcast.
    pub(crate) fn scale(&self, s: &Tensor) -> Result<Self> {
        Ok(Self { re: self.re.broadcast_mul(s)?, im: self.im.broadcast_mul(s)? })
    }

    /// `a self + b` for numbers.
    pub(crate) fn affine(&self, a: f64, b: f64) -> Result<Self> {
        Ok(Self { re: self.re.affine(a, b)?, im: self.im.affine(a, 0.0)? })
    }

    /// `exp(self)`, and `exp(self) - 1` without cancellation near zero.
    pub(crate) fn exp(&self) -> Result<(Self, Self)> {
        let (size, cos, sin) = (self.re.exp()?, self.im.cos()?, self.im.sin()?);
        let exp = Self { re: (&size * &cos)?, im: (&size * &sin)? };
        // e^x cos y - 1 = (e^x - 1) cos y - 2 sin²(y/2), and e^x - 1 = tanh(x/2) (e^x + 1).
        let growth = (self.re.affine(0.5, 0.0)?.tanh()? * (size + 1.0)?)?;
        let turn = (self.im.affine(0.5, 0.0)?.sin()?.sqr()? * 2.0)?;
        Ok((exp.clone(), Self { re: ((growth * cos)? - turn)?, im: exp.im }))
    }

    /// Real parts, then imaginary parts, along a new axis before the last one.
    pub(crate) fn planes(&self) -> Result<Tensor> {
        Tensor::stack(&[&self.re, &self.im], self.re.rank() - 1)
    }

    pub(crate) fn to_dtype(&self, dtype: candle_core::DType) -> Result<Self> {
        Ok(Self { re: self.re.to_dtype(dtype)?, im: self.im.to_dtype(dtype)? })
    }
}
