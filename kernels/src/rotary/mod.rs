//! Rotary position embedding: pairs of features turned by an angle proportional to the position.
//!
//! ```text
//! y_a = x_a cos φ - x_b sin φ        φ = position · inv_freq[i]
//! y_b = x_a sin φ + x_b cos φ        (a, b) = (i, i + dim/2) for Half, (2i, 2i + 1) for Interleaved
//! ```
//! The gradient is the inverse rotation. Angles are taken in f64 whatever the data is, so far positions stay exact.
//!
//! Source: Su et al. 2021, section 3.4.2 (interleaved); the half layout is GPT-NeoX's.

mod cpu;

use candle_core::{DType, Result, Tensor, bail};

use crate::segments::segments;
use crate::tape;

/// Which features form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryLayout {
    /// Feature i with feature i + dim/2: GPT-NeoX, Llama and most checkpoints on the Hub.
    Half,
    /// Feature 2i with feature 2i + 1: the paper, GPT-J.
    Interleaved,
}

/// A rotation, without the data.
#[derive(Debug, Clone)]
struct Rotation {
    inv_freq: Vec<f64>,
    layout: RotaryLayout,
    /// First token (of all rows in one line), length and first position of each sequence.
    sequences: Vec<Run>,
    /// Turns backwards.
    inverse: bool,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    start: usize,
    len: usize,
    position: usize,
}

/// Turns the first `dim` features of each head of x (b, l, h, p); the others pass. Same shape and dtype as x.
///
/// `inv_freq` (dim/2), f32 or f64, in radians a position. `positions` has the position of the first token of each row,
/// or of each packed sequence with `cu_seqlens` = `[0, l0, ..., l]`. Differentiable in x only. f32 and f64 are computed
/// as they are, bf16 and f16 in f32.
///
/// # Errors
/// If x is not of rank 4 or not a float, dim exceeds p, the number of positions is not that of the sequences,
/// `inv_freq` is tracked for a gradient (there is none), or x is not on the CPU.
pub fn rotary(
    x: &Tensor,
    inv_freq: &Tensor,
    positions: &[usize],
    layout: RotaryLayout,
    cu_seqlens: Option<&[usize]>,
) -> Result<Tensor> {
    let rotation = Rotation::new(x, inv_freq, positions, layout, cu_seqlens)?;
    if rotation.inv_freq.is_empty() {
        return Ok(x.clone());
    }
    match x.dtype() {
        DType::F32 | DType::F64 => rotation.apply(&x.contiguous()?),
        other => rotation.apply(&x.to_dtype(DType::F32)?.contiguous()?)?.to_dtype(other),
    }
}

impl Rotation {
    fn new(
        x: &Tensor,
        inv_freq: &Tensor,
        positions: &[usize],
        layout: RotaryLayout,
        cu_seqlens: Option<&[usize]>,
    ) -> Result<Self> {
        let &[b, l, _, p] = x.dims() else {
            bail!("rotary: x has shape {:?}, expected (batch, length, heads, head dimension)", x.shape())
        };
        if !x.dtype().is_float() {
            bail!("rotary: x is {:?}, expected a float", x.dtype());
        }
        if !x.device().is_cpu() {
            bail!("rotary: x is on {:?}: there is no CUDA path yet, only the CPU's", x.device());
        }
        if inv_freq.rank() != 1 || !matches!(inv_freq.dtype(), DType::F32 | DType::F64) {
            bail!(
                "rotary: inv_freq is {:?} of shape {:?}, expected f32 or f64 of shape (dim/2)",
                inv_freq.dtype(),
                inv_freq.shape()
            );
        }
        if inv_freq.track_op() {
            bail!("rotary: inv_freq asks for a gradient, but has none here: detach it");
        }
        let inv_freq = inv_freq.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        if inv_freq.len() > p / 2 {
            bail!("rotary: inv_freq has {} pairs, but the heads of x only {p} features", inv_freq.len());
        }
        let pieces = segments("rotary", b, l, cu_seqlens)?;
        if positions.len() != pieces.len() {
            bail!("rotary: {} positions for {} sequences, expected one each", positions.len(), pieces.len());
        }
        let run = |(s, &position): (&crate::segments::Segment, &usize)| Run {
            start: s.start,
            len: s.len,
            position,
        };
        let sequences = pieces.iter().zip(positions).map(run).collect();
        Ok(Self { inv_freq, layout, sequences, inverse: false })
    }

    /// Of a contiguous f32 or f64 x.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (guard, at) = x.storage_and_layout();
        let y = match x.dtype() {
            DType::F64 => cpu::rotate::<f64>(self, x.dims(), &guard, at)?,
            _ => cpu::rotate::<f32>(self, x.dims(), &guard, at)?,
        };
        drop(guard);
        let mut outputs = tape::record(self.clone(), &[Some(x)], vec![(y, x.shape().clone())])?;
        Ok(outputs.swap_remove(0))
    }
}

impl tape::Backward for Rotation {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn backward(
        &self,
        _: &[Option<Tensor>],
        _: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = grads.first().and_then(Option::as_ref) else { bail!("rotary: no gradient came in") };
        Ok(vec![Some(Self { inverse: !self.inverse, ..self.clone() }.apply(dy)?)])
    }
}
