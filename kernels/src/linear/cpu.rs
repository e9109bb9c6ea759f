//! The dense map on the CPU: by rows' count either the sweep of [`few`] or matrix multiplications.

use super::few;
use super::stored::{Register, Stored};
use crate::host::{self, Disjoint, Rows};
use crate::simd::{Real, vectorized};

/// Up to so many rows the sweep over the weights is faster than a matrix multiplication, which repacks them.
const FEW: usize = 32;

/// As [`FEW`], for weights that would have to be widened in memory first.
const FEW_NARROW: usize = 128;

/// Weights are widened in panels of at most so many: bounded memory for any matrix.
const PANEL: usize = 1 << 22;

/// `x wᵀ + bias`, (x.rows, outputs), for `w` (outputs, x.width).
pub(super) fn forward<T: Register, W: Stored<T>>(
    x: Rows<T>,
    w: &[W],
    bias: Option<&[T]>,
    outputs: usize,
) -> Vec<T> {
    let mut y = vec![T::ZERO; x.rows * outputs];
    forward_into(x, w, bias, &mut y, (outputs, outputs));
    y
}

/// [`forward`] into the first `outputs` of each row of `y`, whose rows are `stride` apart.
pub(super) fn forward_into<T: Register, W: Stored<T>>(
    x: Rows<T>,
    w: &[W],
    bias: Option<&[T]>,
    y: &mut [T],
    (outputs, stride): (usize, usize),
) {
    let few = if W::as_is(w).is_some() { FEW } else { FEW_NARROW };
    if x.rows <= few || x.width == 0 {
        return few::linear(x, w, bias, y, (outputs, stride));
    }
    if let Some(bias) = bias {
        y.chunks_mut(stride.max(1)).for_each(|row| row[..outputs].copy_from_slice(bias));
    }
    let (xs, x_stride) = (x.tail(0, 0), x.stride());
    panels(w, x.width, |first, w| {
        let n = w.len() / x.width;
        let sizes = (x.rows, x.width, n);
        host::gemm_parallel(
            sizes,
            xs,
            (x_stride, 1),
            w,
            (1, x.width),
            &mut y[first..],
            (stride, 1),
            bias.is_some(),
        );
    });
}

/// Gradient of x: `g w`, (rows, inputs), for `g` (rows, outputs) and `w` (outputs, inputs).
pub(super) fn grad_x<T: Register, W: Stored<T>>(g: &[T], w: &[W], rows: usize, inputs: usize) -> Vec<T> {
    let mut grad = vec![T::ZERO; rows * inputs];
    if grad.is_empty() {
        return grad;
    }
    let outputs = g.len() / rows;
    panels(w, inputs, |first, w| {
        let n = w.len() / inputs;
        let sizes = (rows, n, inputs);
        host::gemm_parallel(
            sizes,
            &g[first..],
            (outputs, 1),
            w,
            (inputs, 1),
            &mut grad,
            (inputs, 1),
            first > 0,
        );
    });
    grad
}

/// Gradient of the weight: `gᵀ x`, (outputs, x.width).
pub(super) fn grad_weight<T: Real>(g: &[T], x: Rows<T>, outputs: usize) -> Vec<T> {
    let mut grad = vec![T::ZERO; outputs * x.width];
    if !grad.is_empty() && x.rows > 0 {
        let (xs, stride) = (x.tail(0, 0), x.stride());
        let sizes = (outputs, x.rows, x.width);
        host::gemm_parallel(sizes, g, (1, outputs), xs, (stride, 1), &mut grad, (x.width, 1), false);
    }
    grad
}

/// Gradient of the bias: the sum of the rows of `g`.
pub(super) fn grad_bias<T: Real>(g: &[T], outputs: usize) -> Vec<T> {
    let mut grad = vec![T::ZERO; outputs];
    vectorized(
        #[inline(always)]
        || {
            for row in g.chunks_exact(outputs.max(1)) {
                for (sum, &g) in grad.iter_mut().zip(row) {
                    *sum += g;
                }
            }
        },
    );
    grad
}

/// `f(first row, rows)` over the rows of `w` in the arithmetic type: all at once where they are stored so, else panel
/// by panel.
fn panels<T: Register, W: Stored<T>>(w: &[W], width: usize, mut f: impl FnMut(usize, &[T]) + Send) {
    if let Some(w) = W::as_is(w) {
        return f(0, w);
    }
    let rows = (PANEL / width).max(1);
    let mut buffer = vec![T::ZERO; (rows * width).min(w.len())];
    for (i, panel) in w.chunks(rows * width).enumerate() {
        let wide = &mut buffer[..panel.len()];
        widen(panel, wide);
        f(i * rows, wide);
    }
}

fn widen<T: Register, W: Stored<T>>(from: &[W], to: &mut [T]) {
    let to = Disjoint::new(to);
    host::spinning(from.len(), 1 << 14, |range| {
        // SAFETY: ranges do not overlap.
        let to = unsafe { to.slice(range.start, range.len()) };
        vectorized(
            #[inline(always)]
            || {
                for (to, from) in to.iter_mut().zip(&from[range]) {
                    *to = from.widen();
                }
            },
        );
    });
}
