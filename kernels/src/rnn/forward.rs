//! The recurrence on the CPU: a product with U for all sequences that have a token, then the cell, token after token.

use candle_core::{Result, Tensor, bail};

use super::OP;
use super::args::{Dims, INPUTS};
use super::cell::{self, Token};
use crate::host::{self, Disjoint, Rows};
use crate::linear;
use crate::linear::stored::{Register, Stored};
use crate::simd::vectorized;

/// Numbers that a thread takes at least.
pub(super) const GRAIN: usize = 2048;

/// Outputs, states after the last tokens, and what the backward pass asks for.
pub(super) struct Found<T> {
    pub(super) y: Vec<T>,
    pub(super) state: Vec<T>,
    pub(super) saved: Vec<T>,
}

pub(super) fn run<T: Register + Stored<T>>(
    dims: &Dims,
    [x, weight, bias, initial]: &[Option<Tensor>; INPUTS],
    keep: bool,
) -> Result<Found<T>> {
    let (Some(x), Some(weight)) = (x, weight) else { bail!("{OP}: x and weight_hh are needed") };
    let (x, weight) = (x.storage_and_layout(), weight.storage_and_layout());
    let (x, weight) = (Rows::<T>::new(&x.0, x.1, 2)?, host::slice::<T>(&weight.0, weight.1)?);
    let bias = bias.as_ref().map(Tensor::storage_and_layout);
    let bias = bias.as_ref().map(|(storage, layout)| host::slice::<T>(storage, layout)).transpose()?;
    let (h, width, cell) = (dims.h, dims.width(), dims.cell);
    let (size, kept) = (cell.states() * h, if keep { cell.saved() * h } else { 0 });
    let order = dims.order();
    let initial = initial.as_ref().map(Tensor::storage_and_layout);
    let initial = initial.as_ref().map(|(storage, layout)| host::slice::<T>(storage, layout)).transpose()?;
    let mut states = sorted(&order, initial, size);
    let mut y = vec![T::ZERO; dims.b * dims.l * h];
    let mut saved = host::zeros(dims.b * dims.l * kept);
    let mut hidden = vec![T::ZERO; order.len() * h];
    for t in 0..dims.longest() {
        let active = dims.active(&order, t);
        for (hidden, state) in hidden.chunks_exact_mut(h).zip(states.chunks_exact(size)) {
            hidden.copy_from_slice(&state[..h]);
        }
        let q = linear::product(Rows::dense(&hidden[..active * h], h), weight, bias, width);
        let (ys, kepts, rows) =
            (Disjoint::new(&mut y), Disjoint::new(&mut saved), Disjoint::new(&mut states));
        host::spinning(active, GRAIN.div_ceil(width), |range| {
            vectorized(
                #[inline(always)]
                || {
                    for row in range {
                        let at = dims.segments[order[row]].start + t;
                        // SAFETY: a sequence, and thus its tokens and its state, belongs to one range.
                        let (state, y, saved) = unsafe {
                            (rows.slice(row * size, size), ys.slice(at * h, h), kepts.slice(at * kept, kept))
                        };
                        let q = &q[row * width..][..width];
                        cell::forward(cell, h, Token { x: x.row(at), q, state, y, saved });
                    }
                },
            );
        });
    }
    Ok(Found { y, state: unsorted(&order, &states, size), saved })
}

/// The states in the order of the sequences' lengths; zero if there are none.
pub(super) fn sorted<T: Register>(order: &[usize], states: Option<&[T]>, size: usize) -> Vec<T> {
    match states {
        Some(states) => order.iter().flat_map(|&k| &states[k * size..][..size]).copied().collect(),
        None => vec![T::ZERO; order.len() * size],
    }
}

/// Undoes [`sorted`].
pub(super) fn unsorted<T: Register>(order: &[usize], states: &[T], size: usize) -> Vec<T> {
    let mut out = vec![T::ZERO; states.len()];
    for (&k, state) in order.iter().zip(states.chunks_exact(size)) {
        out[k * size..][..size].copy_from_slice(state);
    }
    out
}
