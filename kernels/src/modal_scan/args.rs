//! Arguments of the modal scan and of its one-token step, and their checks.

use candle_core::{Result, Tensor, bail};

use super::OP;
use crate::check::{divides, optional, positive, shape, tuple};
use crate::segments::{Segment, segments};

/// Largest rank of a correction.
pub(super) const MAX_RANK: usize = 4;

/// A bank of discrete-time linear systems with one input each, in modal form; complex numbers are (re, im) along the
/// last dimension. Systems that repeat serve `d / p` channels each: channel `i` has system `i / (d / p)`.
///
/// Give the tensors in f64, whatever the data is: a pole near 1 loses in f32 what tells it from 1, and that is its
/// memory. Their gradients come in f64 as well.
#[derive(Debug, Clone, Copy)]
pub struct ModalSystem<'a> {
    /// Λ, the poles of half the conjugate pairs, (p, n, 2); inside the unit circle if the state is not to grow.
    pub poles: &'a Tensor,
    /// B, (p, n, 2).
    pub input: &'a Tensor,
    /// C of every output, (c, p, n, 2).
    pub output: &'a Tensor,
    /// P and Q of `Ā = Λ - P Qᵀ`, (r, p, n, 2) each; without them the system is diagonal.
    pub low_rank: Option<(&'a Tensor, &'a Tensor)>,
    /// D, (c, p).
    pub skip: Option<&'a Tensor>,
}

impl ModalSystem<'_> {
    /// The sizes for `d` channels, if all shapes fit.
    pub(super) fn check(&self, d: usize) -> Result<Sizes> {
        let (p, n, two) = self.poles.dims3()?;
        let (c, ..) = self.output.dims4()?;
        if two != 2 {
            bail!("{OP}: poles has shape {}, expected (p, n, 2)", tuple(self.poles.dims()));
        }
        positive(OP, &[("the number of modes", n), ("the number of outputs", c)])?;
        divides(OP, ("systems", p), ("channels of u", d))?;
        shape(OP, "poles", self.poles, &[p, n, 2], "(p, n, 2)")?;
        shape(OP, "input", self.input, &[p, n, 2], "as poles")?;
        shape(OP, "output", self.output, &[c, p, n, 2], "(c, p, n, 2)")?;
        let rank = self.low_rank.map_or(Ok(0), |(left, _)| left.dim(0))?;
        if rank > MAX_RANK {
            bail!("{OP}: low_rank has rank {rank}, expected at most {MAX_RANK}");
        }
        optional(OP, "low_rank.0", self.low_rank.map(|p| p.0), &[rank, p, n, 2], "(r, p, n, 2)")?;
        optional(OP, "low_rank.1", self.low_rank.map(|p| p.1), &[rank, p, n, 2], "as low_rank.0")?;
        optional(OP, "skip", self.skip, &[c, p], "(c, p)")?;
        Ok(Sizes { d, p, n, c, rank })
    }
}

/// Arguments of [`modal_scan`](fn@super::modal_scan).
#[derive(Debug, Clone, Copy)]
pub struct ModalScan<'a> {
    /// Input, (b, l, d).
    pub u: &'a Tensor,
    /// The systems.
    pub system: ModalSystem<'a>,
    /// State before the first token, (b or n_seq, d, n, 2); zero if absent.
    pub initial_state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl ModalScan<'_> {
    /// The sizes and sequences, if all shapes fit.
    pub(super) fn check(&self) -> Result<Dims> {
        let (b, l, d) = self.u.dims3()?;
        shape(OP, "u", self.u, &[b, l, d], "(b, l, d)")?;
        positive(OP, &[("the number of channels", d)])?;
        let sizes = self.system.check(d)?;
        let segments = segments(OP, b, l, self.cu_seqlens)?;
        let state = [segments.len(), d, sizes.n, 2];
        optional(OP, "initial_state", self.initial_state, &state, "(sequences, d, n, 2)")?;
        Ok(Dims { b, l, sizes, segments })
    }
}

/// Sizes of a bank: channels, systems, modes, outputs, rank of the correction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) d: usize,
    pub(super) p: usize,
    pub(super) n: usize,
    pub(super) c: usize,
    pub(super) rank: usize,
}

/// Sizes of a scan.
#[derive(Debug, Clone)]
pub(super) struct Dims {
    pub(super) b: usize,
    pub(super) l: usize,
    pub(super) sizes: Sizes,
    pub(super) segments: Vec<Segment>,
}
