//! Back through time: cells and products with Uᵀ token by token; the gradient of U is one product at the end.

use candle_core::{Result, Tensor, bail};

use super::OP;
use super::args::{Cell, Dims};
use super::cell::{self, Gradients};
use super::forward::{GRAIN, sorted, unsorted};
use crate::host::{self, Disjoint, Rows};
use crate::linear;
use crate::linear::stored::{Register, Stored};
use crate::simd::vectorized;

/// Gradients of x, the weight, the bias and the initial state.
pub(super) fn gradients<T: Register + Stored<T>>(
    dims: &Dims,
    saved: &[T],
    inputs: &[Option<Tensor>],
    y: &Tensor,
    grads: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let [_, Some(weight), bias, initial] = inputs else { bail!("{OP}: weight_hh is needed") };
    let [Some(dy), dstate] = grads else { bail!("{OP}: backward needs a gradient") };
    let (h, width, size) = (dims.h, dims.width(), dims.cell.states() * dims.h);
    let (ws, ys, dys) = (weight.storage_and_layout(), y.storage_and_layout(), dy.storage_and_layout());
    let weight = host::slice::<T>(&ws.0, ws.1)?;
    let initial_state = initial.as_ref().map(Tensor::storage_and_layout);
    let initial_state =
        initial_state.as_ref().map(|(storage, layout)| host::slice::<T>(storage, layout)).transpose()?;
    let dstate = dstate.as_ref().map(Tensor::storage_and_layout);
    let dstate = dstate.as_ref().map(|(storage, layout)| host::slice::<T>(storage, layout)).transpose()?;
    let past = Past {
        dims,
        saved,
        y: host::slice::<T>(&ys.0, ys.1)?,
        initial: initial_state,
        zeros: vec![T::ZERO; size],
    };
    let order = dims.order();
    let mut carry = sorted(&order, dstate, size);
    let (dx, dq) = past.walk(&order, host::slice::<T>(&dys.0, dys.1)?, weight, &mut carry);
    let dq = dq.as_deref().unwrap_or(&dx);

    let tokens = dims.b * dims.l;
    let mut dweight = vec![T::ZERO; width * h];
    if tokens > 0 {
        let before = past.outputs_before();
        let sizes = (width, tokens, h);
        host::gemm_parallel(sizes, dq, (1, width), &before, (h, 1), &mut dweight, (h, 1), false);
    }
    let dbias = bias.as_ref().map(|_| {
        let mut sum = vec![T::ZERO; width];
        for row in dq.chunks_exact(width) {
            sum.iter_mut().zip(row).for_each(|(sum, &d)| *sum += d);
        }
        host::tensor(sum, width)
    });
    let dinitial = initial.as_ref().map(|t| host::tensor(unsorted(&order, &carry, size), t.shape()));
    Ok(vec![
        Some(host::tensor(dx, (dims.b, dims.l, width))),
        Some(host::tensor(dweight, (width, h))),
        dbias,
        dinitial,
    ])
}

/// What the forward pass left.
struct Past<'a, T> {
    dims: &'a Dims,
    saved: &'a [T],
    y: &'a [T],
    initial: Option<&'a [T]>,
    /// A state of zeros.
    zeros: Vec<T>,
}

impl<T: Register + Stored<T>> Past<'_, T> {
    /// h and c before token `t` of a sequence.
    fn before(&self, sequence: usize, t: usize) -> (&[T], &[T]) {
        let (h, cell) = (self.dims.h, self.dims.cell);
        if t > 0 {
            let at = self.dims.segments[sequence].start + t - 1;
            let kept = cell.saved() * h;
            let c = if cell == Cell::Lstm { &self.saved[at * kept + 4 * h..][..h] } else { &[] };
            return (&self.y[at * h..][..h], c);
        }
        let size = self.zeros.len();
        self.initial.map_or(&self.zeros[..], |s| &s[sequence * size..][..size]).split_at(h)
    }

    /// h before every token, (b l, h).
    fn outputs_before(&self) -> Vec<T> {
        let h = self.dims.h;
        let mut all = vec![T::ZERO; self.y.len()];
        for (k, segment) in self.dims.segments.iter().enumerate().filter(|(_, s)| s.len > 0) {
            let rows = &mut all[segment.start * h..][..segment.len * h];
            rows[..h].copy_from_slice(self.before(k, 0).0);
            rows[h..].copy_from_slice(&self.y[segment.start * h..][..(segment.len - 1) * h]);
        }
        all
    }

    /// Gradients of the inputs' side, and of the state's where that is another (the GRU). `carry` holds the gradients of
    /// the last states, and in the end those of the first ones.
    fn walk(&self, order: &[usize], dy: &[T], weight: &[T], carry: &mut [T]) -> (Vec<T>, Option<Vec<T>>) {
        let dims = self.dims;
        let (h, width, cell) = (dims.h, dims.width(), dims.cell);
        let (size, kept) = (cell.states() * h, cell.saved() * h);
        let turned: Vec<T> = (0..h).flat_map(|k| (0..width).map(move |g| weight[g * h + k])).collect();
        let mut dx = host::zeros(dims.b * dims.l * width);
        let mut dq = (cell == Cell::Gru).then(|| host::zeros(dims.b * dims.l * width));
        let mut pre = vec![T::ZERO; order.len() * width];
        for t in (0..dims.longest()).rev() {
            let active = dims.active(order, t);
            {
                let (pres, carries) = (Disjoint::new(&mut pre), Disjoint::new(carry));
                let (dxs, dqs) = (Disjoint::new(&mut dx), dq.as_mut().map(|dq| Disjoint::new(dq)));
                host::spinning(active, GRAIN.div_ceil(width), |range| {
                    vectorized(
                        #[inline(always)]
                        || {
                            for row in range {
                                let at = dims.segments[order[row]].start + t;
                                let (h_before, c_before) = self.before(order[row], t);
                                // SAFETY: a sequence belongs to one range.
                                let (dstate, dx, pre) = unsafe {
                                    (
                                        carries.slice(row * size, size),
                                        dxs.slice(at * width, width),
                                        pres.slice(row * width, width),
                                    )
                                };
                                let (saved, y) = (&self.saved[at * kept..][..kept], &self.y[at * h..][..h]);
                                let dy = &dy[at * h..][..h];
                                let dq = &mut *pre;
                                let token = Gradients { saved, y, h_before, c_before, dy, dstate, dx, dq };
                                cell::backward(cell, h, token);
                                if let Some(dqs) = &dqs {
                                    // SAFETY: as above.
                                    unsafe { dqs.slice(at * width, width) }.copy_from_slice(pre);
                                }
                            }
                        },
                    );
                });
            }
            let through = linear::product(Rows::dense(&pre[..active * width], width), &turned, None, h);
            for (state, through) in carry.chunks_exact_mut(size).zip(through.chunks_exact(h)) {
                state.iter_mut().zip(through).for_each(|(s, &d)| *s += d);
            }
        }
        (dx, dq)
    }
}
