//! Arguments of the diagonal scan, their checks, and what they are as slices.

use candle_core::{DType, Result, Storage, Tensor, bail};

use super::OP;
use crate::check::{optional, positive, shape, tuple};
use crate::host::{self, Rows};
use crate::segments::{Segment, segments};
use crate::simd::Real;

/// Arguments of [`diagonal_scan`](fn@super::diagonal_scan). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct DiagonalScan<'a> {
    /// Decay: (p), or (b, l, p) where it depends on the token; complex: (2, p), or (b, l, 2, p).
    pub a: &'a Tensor,
    /// Input, (b, l, p); complex: (b, l, 2, p), real parts first.
    pub x: &'a Tensor,
    /// From the last token to the first.
    pub reverse: bool,
    /// State before the first token (after the last one with `reverse`), (b or n_seq, p) or (b or n_seq, 2, p); zero if
    /// absent.
    pub initial_state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> DiagonalScan<'a> {
    /// The plain scan, forwards, from zero.
    pub fn new(a: &'a Tensor, x: &'a Tensor) -> Self {
        Self { a, x, reverse: false, initial_state: None, cu_seqlens: None }
    }

    /// The sizes and sequences, if all shapes fit.
    pub(super) fn check(&self) -> Result<Dims> {
        let (b, l, complex, p) = match *self.x.dims() {
            [b, l, p] => (b, l, false, p),
            [b, l, 2, p] => (b, l, true, p),
            _ => bail!(
                "{OP}: x has shape {}, expected (b, l, p), or (b, l, 2, p) for complex numbers",
                tuple(self.x.dims())
            ),
        };
        shape(OP, "x", self.x, self.x.dims(), "")?;
        positive(OP, &[("the number of channels", p)])?;
        let varying = self.a.rank() == self.x.rank();
        match (varying, complex) {
            (true, _) => shape(OP, "a", self.a, self.x.dims(), "as x, or without (b, l)")?,
            (false, true) => shape(OP, "a", self.a, &[2, p], "(2, p), or (b, l, 2, p) as x")?,
            (false, false) => shape(OP, "a", self.a, &[p], "(p), or (b, l, p) as x")?,
        }
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        let dims =
            Dims { b, l, p, planes: 1 + usize::from(complex), varying, reverse: self.reverse, segments };
        optional(OP, "initial_state", self.initial_state, &dims.states_shape(), "one a sequence")?;
        Ok(dims)
    }
}

/// Sizes of a scan.
#[derive(Debug, Clone)]
pub(crate) struct Dims {
    pub(crate) b: usize,
    pub(crate) l: usize,
    pub(crate) p: usize,
    /// 1 for real numbers, 2 for complex ones.
    pub(crate) planes: usize,
    /// Whether `a` depends on the token.
    pub(crate) varying: bool,
    pub(crate) reverse: bool,
    pub(crate) segments: Vec<Segment>,
}

impl Dims {
    /// Numbers of a token.
    pub(crate) fn width(&self) -> usize {
        self.planes * self.p
    }

    pub(crate) fn tokens_shape(&self) -> Vec<usize> {
        self.shape(&[self.b, self.l])
    }

    pub(crate) fn states_shape(&self) -> Vec<usize> {
        self.shape(&[self.segments.len()])
    }

    /// A real number has no axis for its planes.
    fn shape(&self, lead: &[usize]) -> Vec<usize> {
        let number = if self.planes == 2 { vec![2, self.p] } else { vec![self.p] };
        [lead, &number].concat()
    }
}

/// The scan's tensors in the order of the autograd graph: a, x, initial state.
pub(super) const INPUTS: usize = 3;

/// The arguments in the dtype of the arithmetic, as rows of tokens where they have tokens.
pub(super) fn prepare(args: &DiagonalScan, dims: &Dims, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let rows = |t: &Tensor| host::in_rows(&t.to_dtype(work)?, 2).map(Some);
    let whole = |t: &Tensor| t.to_dtype(work)?.contiguous().map(Some);
    Ok([
        if dims.varying { rows(args.a)? } else { whole(args.a)? },
        rows(args.x)?,
        args.initial_state.map_or(Ok(None), whole)?,
    ])
}

/// The decay of each token.
#[derive(Clone, Copy)]
pub(super) enum Decay<'a, T> {
    /// The same everywhere.
    Fixed(&'a [T]),
    /// Row `t` for token `t` of the flattened batch.
    Varying(Rows<'a, T>),
}

impl<'a, T: Real> Decay<'a, T> {
    pub(super) fn new(storage: &'a Storage, layout: &candle_core::Layout, varying: bool) -> Result<Self> {
        Ok(if varying {
            Self::Varying(Rows::new(storage, layout, 2)?)
        } else {
            Self::Fixed(host::slice(storage, layout)?)
        })
    }

    /// The decay, if it is the same everywhere.
    pub(super) fn fixed(&self) -> Option<&'a [T]> {
        match self {
            Self::Fixed(a) => Some(a),
            Self::Varying(_) => None,
        }
    }
}
