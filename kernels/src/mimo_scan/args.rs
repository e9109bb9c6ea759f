//! Arguments of the scan, their checks, and what they are as slices.

use candle_core::{DType, Result, Tensor, bail};

use super::OP;
use crate::check::{optional, positive, shape, tuple};
use crate::host::{self, Rows};
use crate::segments::{Segment, segments};
use crate::simd::Real;

/// Arguments of [`mimo_scan`](fn@super::mimo_scan). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct MimoScan<'a> {
    /// Input, (b, l, d).
    pub u: &'a Tensor,
    /// Decay, (p); complex: (2, p), real parts first.
    pub a: &'a Tensor,
    /// B, (s, d), for the s = p numbers of a state; complex: s = 2 p, the rows of the real parts first.
    pub input: &'a Tensor,
    /// C, (o, s).
    pub output: &'a Tensor,
    /// D, (o): what outputs get of the inputs themselves, output j of input j mod d; o is a multiple of d. None if
    /// absent.
    pub skip: Option<&'a Tensor>,
    /// From the last token to the first.
    pub reverse: bool,
    /// State before the first token (after the last one with `reverse`), (b or n_seq, p) or (b or n_seq, 2, p); zero if
    /// absent.
    pub initial_state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> MimoScan<'a> {
    /// The plain scan, forwards, from zero, without D.
    pub fn new(u: &'a Tensor, a: &'a Tensor, input: &'a Tensor, output: &'a Tensor) -> Self {
        Self { u, a, input, output, skip: None, reverse: false, initial_state: None, cu_seqlens: None }
    }

    /// The sizes and sequences, if all shapes fit.
    pub(super) fn check(&self) -> Result<Dims> {
        let &[b, l, d] = self.u.dims() else {
            bail!("{OP}: u has shape {}, expected (b, l, d)", tuple(self.u.dims()))
        };
        let (planes, p) = match *self.a.dims() {
            [p] => (1, p),
            [2, p] => (2, p),
            _ => bail!(
                "{OP}: a has shape {}, expected (p), or (2, p) for complex numbers",
                tuple(self.a.dims())
            ),
        };
        let &[outputs, _] = self.output.dims() else {
            bail!("{OP}: output has shape {}, expected (o, s)", tuple(self.output.dims()))
        };
        positive(
            OP,
            &[("the number of inputs", d), ("the number of states", p), ("the number of outputs", outputs)],
        )?;
        let width = planes * p;
        shape(OP, "u", self.u, &[b, l, d], "")?;
        shape(OP, "a", self.a, self.a.dims(), "")?;
        shape(OP, "input", self.input, &[width, d], "(s, d), s the numbers of a state")?;
        shape(OP, "output", self.output, &[outputs, width], "(o, s), s the numbers of a state")?;
        if self.skip.is_some() && !outputs.is_multiple_of(d) {
            bail!("{OP}: {outputs} outputs are no multiple of the {d} inputs, as `skip` asks for");
        }
        optional(OP, "skip", self.skip, &[outputs], "the outputs")?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        let dims = Dims { b, l, d, p, planes, outputs, reverse: self.reverse, segments };
        optional(OP, "initial_state", self.initial_state, &dims.states_shape(), "one a sequence")?;
        Ok(dims)
    }
}

/// Sizes of a scan.
#[derive(Debug, Clone)]
pub(super) struct Dims {
    pub(super) b: usize,
    pub(super) l: usize,
    pub(super) d: usize,
    pub(super) p: usize,
    /// 1 for real numbers, 2 for complex ones.
    pub(super) planes: usize,
    pub(super) outputs: usize,
    pub(super) reverse: bool,
    pub(super) segments: Vec<Segment>,
}

/// Tokens of one sequence, lying one after the other, that go through together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) segment: usize,
    /// How many blocks of the sequence come before it.
    pub(super) turn: usize,
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Dims {
    /// Numbers of a state.
    pub(super) fn width(&self) -> usize {
        self.planes * self.p
    }

    pub(super) fn states_shape(&self) -> Vec<usize> {
        let number = if self.planes == 2 { vec![2, self.p] } else { vec![self.p] };
        [vec![self.segments.len()], number].concat()
    }

    /// All blocks in the order of the walk: the first ones of all sequences, the second ones, ... Depends on sizes alone,
    /// not on threads.
    pub(super) fn blocks(&self) -> Vec<Block> {
        /// Numbers of a block's states: a part of a core's own cache.
        const NUMBERS: usize = 1 << 17;
        const LEAST: usize = 32;
        /// Blocks that are worth having of one call, to be shared out.
        const WANTED: usize = 16;
        let fits = (NUMBERS / self.width()).max(LEAST);
        let tokens = (self.b * self.l).div_ceil(WANTED).clamp(LEAST, fits).next_multiple_of(16);
        let mut blocks = Vec::new();
        let longest = self.segments.iter().map(|s| s.len).max().unwrap_or(0);
        for turn in 0..longest.div_ceil(tokens) {
            let offset = turn * tokens;
            for (segment, s) in self.segments.iter().enumerate().filter(|(_, s)| s.len > offset) {
                let len = tokens.min(s.len - offset);
                let start = if self.reverse { s.start + s.len - offset - len } else { s.start + offset };
                blocks.push(Block { segment, turn, start, len });
            }
        }
        blocks
    }
}

/// The scan's tensors in the order of the autograd graph: u, a, B, C, D, initial state.
pub(super) const INPUTS: usize = 6;

/// The arguments in the dtype of the arithmetic.
pub(super) fn prepare(args: &MimoScan, work: DType) -> Result<[Option<Tensor>; INPUTS]> {
    let whole = |t: &Tensor| t.to_dtype(work)?.contiguous().map(Some);
    Ok([
        Some(host::in_rows(&args.u.to_dtype(work)?, 2)?),
        whole(args.a)?,
        whole(args.input)?,
        whole(args.output)?,
        args.skip.map_or(Ok(None), whole)?,
        args.initial_state.map_or(Ok(None), whole)?,
    ])
}

/// Prepared arguments as slices; token `t` of the flattened batch is row `t`.
#[derive(Clone, Copy)]
pub(super) struct Views<'a, T> {
    pub(super) u: Rows<'a, T>,
    pub(super) a: &'a [T],
    pub(super) input: &'a [T],
    pub(super) output: &'a [T],
    pub(super) skip: Option<&'a [T]>,
    pub(super) initial: Option<&'a [T]>,
}

/// Hands the prepared arguments to `f` as slices.
pub(super) fn with_views<T: Real, R>(inputs: &[Option<Tensor>], f: impl FnOnce(&Views<T>) -> R) -> Result<R> {
    let guards: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let [Some((u, layout)), rest @ ..] = &guards[..] else { bail!("{OP}: u is needed") };
    let slices = rest
        .iter()
        .map(|t| t.as_ref().map(|(guard, layout)| host::slice::<T>(guard, layout)).transpose())
        .collect::<Result<Vec<_>>>()?;
    let [Some(a), Some(input), Some(output), skip, initial] = slices[..] else {
        bail!("{OP}: a, input and output are needed")
    };
    Ok(f(&Views { u: Rows::new(u, layout, 2)?, a, input, output, skip, initial }))
}
