//! Long convolution with a filter of modes, and its recurrence: two forms of one map.
//!
//! ```text
//! h[t] = Re Σ_n R_n p_n^t         S_t = p ⊙ S_{t-1} + x_t        y_t = Re Σ_n R_n S_{t,n} + D x_t
//! ```
//! Powers are made by doubling, and split as `p^(cC + r) = p^(cC) p^r`: tables of C and l / C entries and one product of
//! matrices stand for a table of l. No logarithm is taken of a pole, so 0 is one like any other.

use candle_core::{D, DType, Result, Tensor};
use semisep_core::{State, StateKind};
use semisep_kernels::{LongConv, ModalSystem, long_conv, modal_update};

use crate::cache::FilterCache;

/// Entries of the short table (C).
const CHUNK: usize = 64;

/// Filters of (systems, modes), each serving `repeat` channels side by side.
pub(crate) struct Modal {
    poles: Tensor,    // (systems, n, 2)
    residues: Tensor, // (systems, n, 2)
    skip: Tensor,     // (d)
    repeat: usize,
    /// What no training changes.
    fixed: Option<(Modes, Bank, FilterCache)>,
}

/// The systems as the one-token kernel takes them, in f64.
#[derive(Clone)]
struct Bank {
    poles: Tensor,  // (systems, n, 2)
    input: Tensor,  // (systems, n, 2): ones
    output: Tensor, // (1, systems, n, 2): half the residues, as the kernel reads 2 Re
}

/// Poles and residues, (systems, n).
#[derive(Clone)]
struct Modes {
    poles: Complex,
    residues: Complex,
}

/// Real and imaginary part.
#[derive(Clone)]
struct Complex {
    re: Tensor,
    im: Tensor,
}

impl Complex {
    /// From pairs along the last dimension.
    fn of_pairs(t: &Tensor) -> Result<Self> {
        let part = |i| t.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1)?.contiguous();
        Ok(Self { re: part(0)?, im: part(1)? })
    }

    fn pairs(&self) -> Result<Tensor> {
        Tensor::stack(&[&self.re, &self.im], D::Minus1)
    }

    fn mul(&self, o: &Self) -> Result<Self> {
        let product = |a: &Tensor, b: &Tensor| a.broadcast_mul(b);
        Ok(Self {
            re: (product(&self.re, &o.re)? - product(&self.im, &o.im)?)?,
            im: (product(&self.re, &o.im)? + product(&self.im, &o.re)?)?,
        })
    }

    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { re: f(&self.re)?, im: f(&self.im)? })
    }

    /// `[re | im]` along the last dimension, the second times `sign`.
    fn joined(&self, sign: f64) -> Result<Tensor> {
        Tensor::cat(&[&self.re, &self.im.affine(sign, 0.0)?], D::Minus1)
    }

    fn one(like: &Tensor) -> Result<Self> {
        Ok(Self { re: like.ones_like()?, im: like.zeros_like()? })
    }

    /// `self^exponent`
    fn power(&self, mut exponent: usize) -> Result<Self> {
        let (mut result, mut square) = (Self::one(&self.re)?, self.clone());
        while exponent > 0 {
            if exponent % 2 == 1 {
                result = result.mul(&square)?;
            }
            exponent /= 2;
            if exponent > 0 {
                square = square.mul(&square)?;
            }
        }
        Ok(result)
    }

    /// `self^0, ..., self^(count - 1)` of (systems, n): (systems, count, n).
    fn powers(&self, count: usize) -> Result<Self> {
        let mut step = self.map(|t| t.unsqueeze(1))?;
        let mut table = Self::one(&step.re)?;
        while table.re.dim(1)? < count {
            let next = table.mul(&step)?;
            table = Self {
                re: Tensor::cat(&[&table.re, &next.re], 1)?,
                im: Tensor::cat(&[&table.im, &next.im], 1)?,
            };
            step = step.mul(&step)?;
        }
        table.map(|t| t.narrow(1, 0, count)?.contiguous())
    }
}

impl Modal {
    /// Poles and residues (systems, n, 2) as pairs, the skip (d).
    pub(crate) fn new(poles: &Tensor, residues: &Tensor, skip: Tensor) -> Result<Self> {
        let repeat = skip.elem_count() / poles.dim(0)?.max(1);
        let trained = poles.track_op() || residues.track_op();
        let (poles, residues) = (poles.clone(), residues.clone());
        let mut modal = Self { poles, residues, skip, repeat, fixed: None };
        if !trained {
            modal.fixed = Some((modal.modes()?, modal.bank()?, FilterCache::default()));
        }
        Ok(modal)
    }

    fn modes(&self) -> Result<Modes> {
        match &self.fixed {
            Some((modes, ..)) => Ok(modes.clone()),
            None => Ok(Modes {
                poles: Complex::of_pairs(&self.poles)?,
                residues: Complex::of_pairs(&self.residues)?,
            }),
        }
    }

    fn bank(&self) -> Result<Bank> {
        if let Some((_, bank, _)) = &self.fixed {
            return Ok(bank.clone());
        }
        let wide = |t: &Tensor| t.detach().to_dtype(DType::F64)?.contiguous();
        let poles = wide(&self.poles)?;
        let one = Complex::one(&poles.narrow(2, 0, 1)?.squeeze(2)?.contiguous()?)?;
        let output = wide(&self.residues)?.affine(0.5, 0.0)?.unsqueeze(0)?;
        Ok(Bank { input: one.pairs()?, poles, output })
    }

    pub(crate) fn skip(&self) -> &Tensor {
        &self.skip
    }

    /// The first `len` taps, (d, len).
    pub(crate) fn taps(&self, len: usize) -> Result<Tensor> {
        match &self.fixed {
            Some((.., cache)) => cache.get((1, len, usize::MAX), |len| self.compute(len)),
            None => self.compute(len),
        }
    }

    fn compute(&self, len: usize) -> Result<Tensor> {
        let Modes { poles, residues } = self.modes()?;
        let (systems, chunks) = (poles.re.dim(0)?, len.div_ceil(CHUNK));
        let coarse = poles.power(CHUNK)?.powers(chunks)?.joined(-1.0)?; // (systems, chunks, 2n)
        let fine = poles.powers(CHUNK)?.mul(&residues.map(|t| t.unsqueeze(1))?)?.joined(1.0)?;
        let taps = coarse.matmul(&fine.t()?.contiguous()?)?.reshape((systems, chunks * CHUNK))?;
        self.spread(&taps.narrow(1, 0, len)?)
    }

    /// (systems, ...) -> (d, ...)
    fn spread(&self, t: &Tensor) -> Result<Tensor> {
        if self.repeat == 1 {
            return t.contiguous();
        }
        let (systems, rest) = (t.dim(0)?, &t.dims()[1..]);
        let wide: Vec<usize> = [systems, self.repeat].iter().chain(rest).copied().collect();
        let flat: Vec<usize> = std::iter::once(systems * self.repeat).chain(rest.iter().copied()).collect();
        t.unsqueeze(1)?.broadcast_as(wide)?.reshape(flat)
    }

    /// x (b, l, d) from `state` (sequences, d, n, 2) on: y (b, l, d).
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        state: Option<&Tensor>,
        cu_seqlens: Option<&[usize]>,
    ) -> Result<Tensor> {
        let (_, l, _) = x.dims3()?;
        let taps = self.taps(l.max(1))?;
        let y = long_conv(&LongConv { bias: Some(&self.skip), cu_seqlens, ..LongConv::new(x, &taps) })?;
        let Some(state) = state.filter(|_| l > 0) else { return Ok(y) };
        let old = match cu_seqlens {
            None => self.response(state, l)?,
            Some(cu) => {
                let parts = cu.windows(2).enumerate().filter(|(_, w)| w[1] > w[0]);
                let parts = parts.map(|(i, w)| self.response(&state.narrow(0, i, 1)?, w[1] - w[0]));
                Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)?
            }
        };
        y + old.to_dtype(x.dtype())?
    }

    /// What `state` (b, d, n, 2) alone gives in the next `l` tokens, (b, l, d).
    fn response(&self, state: &Tensor, l: usize) -> Result<Tensor> {
        let (b, d, n, _) = state.dims4()?;
        let Modes { poles, residues } = self.modes()?;
        let (systems, chunks) = (d / self.repeat, l.div_ceil(CHUNK));
        // p^(cC) S, (systems, repeat, b, chunks, n)
        let shape = (b, systems, self.repeat, 1, n);
        let state = Complex::of_pairs(state)?.map(|t| t.reshape(shape)?.permute((1, 2, 0, 3, 4)))?;
        let coarse = poles.power(CHUNK)?.powers(chunks)?;
        let coarse = coarse.map(|t| t.reshape((systems, 1, 1, chunks, n)))?;
        let rows = state.mul(&coarse)?.joined(-1.0)?.reshape((systems, (), 2 * n))?;
        let factor = residues.mul(&poles)?.map(|t| t.unsqueeze(1))?;
        let fine = poles.powers(CHUNK)?.mul(&factor)?.joined(1.0)?;
        let y = rows.matmul(&fine.t()?.contiguous()?)?; // (systems, repeat b chunks, C)
        y.reshape((d, b, chunks * CHUNK))?.narrow(2, 0, l)?.permute((1, 2, 0))?.contiguous()
    }

    /// The states after the last tokens.
    pub(crate) fn advance(&self, state: &Tensor, x: &Tensor, cu_seqlens: Option<&[usize]>) -> Result<Tensor> {
        let x = x.to_dtype(state.dtype())?;
        let Some(cu) = cu_seqlens else { return self.advance_rows(state, &x) };
        let parts = cu.windows(2).enumerate();
        let parts =
            parts.map(|(i, w)| self.advance_rows(&state.narrow(0, i, 1)?, &x.narrow(1, w[0], w[1] - w[0])?));
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
    }

    /// `p^l S + Σ_s p^(l-1-s) x_s` of x (b, l, d).
    fn advance_rows(&self, state: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (b, l, d) = x.dims3()?;
        if l == 0 {
            return Ok(state.clone());
        }
        let Modes { poles, .. } = self.modes()?;
        let (systems, n) = poles.re.dims2()?;
        let chunks = l.div_ceil(CHUNK);
        // Zeros before the first token change nothing but the length.
        let x = x.pad_with_zeros(1, chunks * CHUNK - l, 0)?.permute((2, 0, 1))?.contiguous()?;
        let rows = x.reshape((systems, self.repeat * b * chunks, CHUNK))?;
        let turned: Vec<u32> = (0..CHUNK as u32).rev().collect();
        let turned = Tensor::new(turned, x.device())?;
        let fine = poles.powers(CHUNK)?.joined(1.0)?.index_select(&turned, 1)?; // (systems, C, 2n)
        let parts = rows.matmul(&fine)?.reshape((systems, self.repeat * b, chunks, 2 * n))?;
        let parts = Complex { re: parts.narrow(3, 0, n)?, im: parts.narrow(3, n, n)? };
        let turned: Vec<u32> = (0..chunks as u32).rev().collect();
        let turned = Tensor::new(turned, x.device())?;
        let coarse = poles.power(CHUNK)?.powers(chunks)?;
        let coarse = coarse.map(|t| t.index_select(&turned, 1)?.unsqueeze(1))?;
        let new = parts.mul(&coarse)?.map(|t| t.sum(2)?.reshape((d, b, n))?.transpose(0, 1))?;
        let old = Complex::of_pairs(state)?.mul(&poles.power(l)?.map(|t| self.spread(t))?)?;
        Complex { re: (old.re + new.re)?, im: (old.im + new.im)? }.pairs()
    }

    /// One token x (b, d): y (b, d); the state (b, d, n, 2) is advanced in place.
    pub(crate) fn step(&self, state: &Tensor, x: &Tensor) -> Result<Tensor> {
        let Bank { poles, input, output } = &self.bank()?;
        let system = ModalSystem { poles, input, output, low_rank: None, skip: None };
        let y = modal_update(state, x, &system)?.squeeze(1)?;
        y + x.broadcast_mul(&self.skip.to_dtype(x.dtype())?)?
    }

    /// Adds the state of `channels` channels, of zeros.
    pub(crate) fn state(&self, to: State, name: &'static str, channels: usize) -> Result<State> {
        let shape = (to.batch(), channels, self.poles.dim(1)?, 2);
        to.with_zeros(name, StateKind::Recurrent, shape, self.poles.dtype(), self.poles.device())
    }
}
