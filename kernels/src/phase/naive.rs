//! The definitions in tensor operations that autograd differentiates, without reduction of the angles.

use candle_core::{D, Result, Tensor};

use super::{Turn, check_scan};
use crate::host::state_dtype;
use crate::rotary::RotaryLayout;

/// [`phase_scan`](super::phase_scan) token by token.
///
/// # Errors
/// As the fast one.
pub fn phase_scan(
    delta: &Tensor,
    initial: Option<&Tensor>,
    cu_seqlens: Option<&[usize]>,
) -> Result<(Tensor, Tensor)> {
    let segments = check_scan(delta, initial, cu_seqlens)?;
    let work = state_dtype(delta.dtype());
    let delta = delta.to_dtype(work)?;
    let tokens = delta.flatten(0, 1)?;
    let (mut sums, mut last) = (Vec::new(), Vec::new());
    for (k, segment) in segments.iter().enumerate() {
        let mut angle = match initial {
            Some(initial) => initial.get(k)?.to_dtype(work)?,
            None => Tensor::zeros(&delta.dims()[2..], work, delta.device())?,
        };
        for t in segment.start..segment.start + segment.len {
            angle = (angle + tokens.get(t)?)?;
            sums.push(angle.clone());
        }
        last.push(angle);
    }
    let sums = if sums.is_empty() { delta.zeros_like()? } else { Tensor::stack(&sums, 0)? };
    Ok((sums.reshape(delta.dims())?, Tensor::stack(&last, 0)?))
}

/// [`turn_by_phase`](super::turn_by_phase) pair by pair.
///
/// # Errors
/// As the fast one.
pub fn turn_by_phase(
    x: &Tensor,
    bias: Option<&Tensor>,
    phase: &Tensor,
    layout: RotaryLayout,
) -> Result<Tensor> {
    let turn = Turn::new(x, bias, phase, layout)?;
    let work = state_dtype(x.dtype());
    let (b, l, r, g, n) = x.dims5()?;
    let wide = x.to_dtype(work)?.unsqueeze(4)?.broadcast_as((b, l, r, g, turn.h / g, n))?;
    let mut features = wide.reshape((b, l, r, turn.h, n))?;
    if let Some(bias) = bias {
        features = features.broadcast_add(&bias.to_dtype(work)?.transpose(0, 1)?)?;
    }
    let phase = phase.to_dtype(work)?.unsqueeze(2)?;
    let mut out: Vec<Tensor> =
        (0..turn.n).map(|i| features.narrow(D::Minus1, i, 1)).collect::<Result<_>>()?;
    for j in 0..turn.s {
        let angle = phase.narrow(D::Minus1, j, 1)?;
        let (sin, cos) = (angle.sin()?, angle.cos()?);
        let (a, b) = turn.pair(j);
        let (x, y) = (out[a].clone(), out[b].clone());
        out[a] = (x.broadcast_mul(&cos)? - y.broadcast_mul(&sin)?)?;
        out[b] = (x.broadcast_mul(&sin)? + y.broadcast_mul(&cos)?)?;
    }
    Tensor::cat(&out, D::Minus1)?.to_dtype(x.dtype())
}
