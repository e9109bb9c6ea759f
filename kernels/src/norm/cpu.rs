//! The norms on the CPU: row by row, each row staying in the first cache; threads share the rows of large inputs.

use crate::host::{self, Disjoint, Rows};
use crate::simd::{Real, vectorized};

/// Where the gate `silu(z)` acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    None,
    Input,
    Output,
}

/// Which norm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) eps: f64,
    /// Features that share one statistic.
    pub(super) group: usize,
    /// Whether their mean is taken off first.
    pub(super) centred: bool,
    pub(super) gate: Gate,
}

/// x and z are (rows, features), weight and bias (features).
#[derive(Clone, Copy)]
pub(super) struct Args<'a, T> {
    pub(super) x: Rows<'a, T>,
    pub(super) z: Option<Rows<'a, T>>,
    pub(super) weight: Option<&'a [T]>,
    pub(super) bias: Option<&'a [T]>,
}

/// Elements that are worth a thread.
const GRAIN: usize = 1 << 14;

/// The norm of every row.
pub(super) fn forward<T: Real>(kind: Kind, args: Args<T>) -> Vec<T> {
    let width = args.x.width;
    let mut y = vec![T::ZERO; args.x.rows * width];
    let out = Disjoint::new(&mut y);
    host::spinning(args.x.rows, (GRAIN / width).max(1), |rows| {
        // SAFETY: ranges of rows do not overlap.
        let y = unsafe { out.slice(rows.start * width, rows.len() * width) };
        vectorized(
            #[inline(always)]
            || {
                for (i, y) in rows.zip(y.chunks_exact_mut(width)) {
                    forward_row(kind, args, i, y);
                }
            },
        );
    });
    y
}

#[inline(always)]
fn forward_row<T: Real>(kind: Kind, args: Args<T>, i: usize, y: &mut [T]) {
    let z = args.z.map(|z| z.row(i));
    gated_input(kind, args.x.row(i), z, y);
    for start in (0..y.len()).step_by(kind.group) {
        let y = &mut y[start..start + kind.group];
        let r = centre_and_scale(kind, y);
        for y in y.iter_mut() {
            *y *= r;
        }
    }
    if let Some(weight) = args.weight {
        for (y, &w) in y.iter_mut().zip(weight) {
            *y *= w;
        }
    }
    if let Some(bias) = args.bias {
        for (y, &b) in y.iter_mut().zip(bias) {
            *y += b;
        }
    }
    if let (Gate::Output, Some(z)) = (kind.gate, z) {
        for (y, &z) in y.iter_mut().zip(z) {
            *y *= z.silu();
        }
    }
}

/// What is normalised: x, or x silu(z).
#[inline(always)]
fn gated_input<T: Real>(kind: Kind, x: &[T], z: Option<&[T]>, u: &mut [T]) {
    match (kind.gate, z) {
        (Gate::Input, Some(z)) => {
            for ((u, &x), &z) in u.iter_mut().zip(x).zip(z) {
                *u = x * z.silu();
            }
        }
        _ => u.copy_from_slice(x),
    }
}

/// Takes the mean off a group where asked, and returns `1 / sqrt(mean square + eps)`.
#[inline(always)]
fn centre_and_scale<T: Real>(kind: Kind, u: &mut [T]) -> T {
    let n = T::real(u.len() as f64);
    if kind.centred {
        // Twice: the first mean is rounded as coarsely as the values are large, what it leaves is small.
        for _ in 0..2 {
            let mean = sum(u) / n;
            for u in u.iter_mut() {
                *u += -mean;
            }
        }
    }
    T::ONE / (dot(u, u) / n + T::real(kind.eps)).sqrt()
}

/// Gradients of the inputs; those of z, weight and bias are empty where there is no such input.
pub(super) struct Gradients<T> {
    pub(super) x: Vec<T>,
    pub(super) z: Vec<T>,
    pub(super) weight: Vec<T>,
    pub(super) bias: Vec<T>,
}

/// Gradients from that of the output, (rows, features).
pub(super) fn backward<T: Real>(kind: Kind, args: Args<T>, g: &[T]) -> Gradients<T> {
    let (rows, width) = (args.x.rows, args.x.width);
    // Sums over rows are kept for fixed chunks of rows and added in order: the same whatever the threads do.
    let chunk = (4 * GRAIN / width).max(1);
    let chunks = rows.div_ceil(chunk).max(1);
    let mut x = vec![T::ZERO; g.len()];
    let mut z = vec![T::ZERO; if args.z.is_some() { g.len() } else { 0 }];
    let mut weight = vec![T::ZERO; if args.weight.is_some() { chunks * width } else { 0 }];
    let mut bias = vec![T::ZERO; if args.bias.is_some() { chunks * width } else { 0 }];
    let buffers = [&mut x, &mut z, &mut weight, &mut bias].map(|v| Disjoint::new(v));
    host::parallel(chunks, |c| {
        let mut scratch = vec![T::ZERO; 2 * width];
        let here = |b: usize, i: usize, given: bool| {
            // SAFETY: rows, and sums of chunks, belong to the one task that has this chunk.
            if given { unsafe { buffers[b].slice(i * width, width) } } else { &mut [][..] }
        };
        vectorized(
            #[inline(always)]
            || {
                for i in c * chunk..rows.min((c + 1) * chunk) {
                    let grads = RowGradients {
                        x: here(0, i, true),
                        z: here(1, i, args.z.is_some()),
                        weight: here(2, c, args.weight.is_some()),
                        bias: here(3, c, args.bias.is_some()),
                    };
                    backward_row(kind, args, i, &g[i * width..(i + 1) * width], grads, &mut scratch);
                }
            },
        );
    });
    Gradients { x, z, weight: total(weight, width), bias: total(bias, width) }
}

/// The sum of rows of `width`.
fn total<T: Real>(mut partial: Vec<T>, width: usize) -> Vec<T> {
    if partial.len() > width {
        let (sum, rest) = partial.split_at_mut(width);
        for row in rest.chunks_exact(width) {
            for (sum, &v) in sum.iter_mut().zip(row) {
                *sum += v;
            }
        }
        partial.truncate(width);
    }
    partial
}

struct RowGradients<'a, T> {
    x: &'a mut [T],
    z: &'a mut [T],
    /// Sums over rows, added to.
    weight: &'a mut [T],
    bias: &'a mut [T],
}

/// With u the (gated) input, n = (u - mean) r its normalised form and h the gradient of n:
/// du = r (h - mean(h) - n mean(h n)), the first mean only where u was centred.
#[inline(always)]
fn backward_row<T: Real>(
    kind: Kind,
    args: Args<T>,
    i: usize,
    g: &[T],
    grads: RowGradients<T>,
    scratch: &mut [T],
) {
    let (x, z) = (args.x.row(i), args.z.map(|z| z.row(i)));
    let (n, h) = scratch.split_at_mut(x.len());
    gated_input(kind, x, z, n);
    h.copy_from_slice(g);
    if let (Gate::Output, Some(z)) = (kind.gate, z) {
        for (h, &z) in h.iter_mut().zip(z) {
            *h *= z.silu();
        }
    }
    for (db, &h) in grads.bias.iter_mut().zip(&*h) {
        *db += h;
    }
    for start in (0..n.len()).step_by(kind.group) {
        let group = start..start + kind.group;
        let n = &mut n[group.clone()];
        let r = centre_and_scale(kind, n);
        for n in n.iter_mut() {
            *n *= r;
        }
        let h = &mut h[group.clone()];
        if let Some(weight) = args.weight {
            let sums = &mut grads.weight[group.clone()];
            for (((h, dw), &n), &w) in h.iter_mut().zip(sums).zip(&*n).zip(&weight[group.clone()]) {
                *dw = h.mul_add(n, *dw);
                *h *= w;
            }
        }
        let count = T::real(kind.group as f64);
        let mean_h = if kind.centred { sum(h) / count } else { T::ZERO };
        let mean_hn = dot(h, n) / count;
        for ((dx, &h), &n) in grads.x[group].iter_mut().zip(&*h).zip(&*n) {
            *dx = r * (h - mean_h - n * mean_hn);
        }
    }
    let Some(z) = z else { return };
    if kind.gate == Gate::Input {
        for (((dx, dz), &x), &z) in grads.x.iter_mut().zip(grads.z).zip(x).zip(z) {
            *dz = *dx * x * z.silu_grad();
            *dx *= z.silu();
        }
        return;
    }
    for (j, (((dz, &g), &n), &z)) in grads.z.iter_mut().zip(g).zip(&*n).zip(z).enumerate() {
        let y = args.weight.map_or(n, |w| n * w[j]);
        *dz = g * y * z.silu_grad();
    }
}

/// Partial sums that are independent of each other.
const LANES: usize = 32;

#[inline(always)]
fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [T::ZERO; LANES];
    for (a, b) in a.iter().zip(b) {
        for j in 0..LANES {
            sums[j] = a[j].mul_add(b[j], sums[j]);
        }
    }
    let mut sum: T = sums.iter().copied().sum();
    for (&a, &b) in a_rest.iter().zip(b_rest) {
        sum = a.mul_add(b, sum);
    }
    sum
}

#[inline(always)]
fn sum<T: Real>(values: &[T]) -> T {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut sums = [T::ZERO; LANES];
    for chunk in chunks {
        for j in 0..LANES {
            sums[j] += chunk[j];
        }
    }
    sums.iter().chain(rest).copied().sum()
}
