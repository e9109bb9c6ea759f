//! The activations on the CPU: one vectorised pass, shared by threads where it is long.

use super::Activation;
use super::function::{Erf, Exp, Function, Gelu, GeluTanh, Identity, Relu, Relu2, Sigmoid, Silu};
use crate::host::{self, Disjoint, Rows};
use crate::simd::vectorized;

/// Elements that are worth a thread.
const GRAIN: usize = 1 << 14;

/// `$body` with the type `F` standing for the function of `$act`.
macro_rules! with_function {
    ($act:expr, $body:expr) => {
        match $act {
            Activation::Identity => {
                type F = Identity;
                $body
            }
            Activation::Sigmoid => {
                type F = Sigmoid;
                $body
            }
            Activation::Silu => {
                type F = Silu;
                $body
            }
            Activation::Gelu => {
                type F = Gelu;
                $body
            }
            Activation::GeluTanh => {
                type F = GeluTanh;
                $body
            }
            Activation::Relu => {
                type F = Relu;
                $body
            }
            Activation::Relu2 => {
                type F = Relu2;
                $body
            }
            Activation::Exp => {
                type F = Exp;
                $body
            }
        }
    };
}

/// `act(gate) * value`, or `act(gate)` where there is no value.
pub(super) fn forward<T: Erf>(act: Activation, gate: Rows<T>, value: Option<Rows<T>>) -> Vec<T> {
    with_function!(act, forward_with::<T, F>(gate, value))
}

fn forward_with<T: Erf, F: Function>(gate: Rows<T>, value: Option<Rows<T>>) -> Vec<T> {
    let width = gate.width;
    let mut y = vec![T::ZERO; gate.rows * width];
    let out = Disjoint::new(&mut y);
    pieces(gate.rows, width, |row, from, len| {
        // SAFETY: pieces do not overlap.
        let y = unsafe { out.slice(row * width + from, len) };
        let gate = &gate.row(row)[from..from + len];
        let value = value.map(|v| &v.row(row)[from..from + len]);
        vectorized(
            #[inline(always)]
            || match value {
                Some(value) => {
                    for ((y, &g), &v) in y.iter_mut().zip(gate).zip(value) {
                        *y = F::value(g) * v;
                    }
                }
                None => {
                    for (y, &g) in y.iter_mut().zip(gate) {
                        *y = F::value(g);
                    }
                }
            },
        );
    });
    y
}

/// Gradients of the gate and, where there is one, of the value, from that of the result.
pub(super) fn backward<T: Erf>(
    act: Activation,
    gate: Rows<T>,
    value: Option<Rows<T>>,
    grad: &[T],
) -> (Vec<T>, Vec<T>) {
    with_function!(act, backward_with::<T, F>(gate, value, grad))
}

fn backward_with<T: Erf, F: Function>(gate: Rows<T>, value: Option<Rows<T>>, grad: &[T]) -> (Vec<T>, Vec<T>) {
    let width = gate.width;
    let mut d_gate = vec![T::ZERO; grad.len()];
    let mut d_value = vec![T::ZERO; if value.is_some() { grad.len() } else { 0 }];
    let (to_gate, to_value) = (Disjoint::new(&mut d_gate), Disjoint::new(&mut d_value));
    pieces(gate.rows, width, |row, from, len| {
        let start = row * width + from;
        let grad = &grad[start..start + len];
        let gate = &gate.row(row)[from..from + len];
        // SAFETY: pieces do not overlap.
        let d_gate = unsafe { to_gate.slice(start, len) };
        let Some(value) = value.map(|v| &v.row(row)[from..from + len]) else {
            vectorized(
                #[inline(always)]
                || {
                    for ((dg, &x), &g) in d_gate.iter_mut().zip(gate).zip(grad) {
                        *dg = g * F::slope(x);
                    }
                },
            );
            return;
        };
        // SAFETY: as above; there is a value, so this buffer is as long.
        let d_value = unsafe { to_value.slice(start, len) };
        vectorized(
            #[inline(always)]
            || {
                for ((((dg, dv), &x), &v), &g) in
                    d_gate.iter_mut().zip(d_value).zip(gate).zip(value).zip(grad)
                {
                    *dg = g * v * F::slope(x);
                    *dv = g * F::value(x);
                }
            },
        );
    });
    (d_gate, d_value)
}

/// `f(row, from, len)` for pieces that make up all rows: whole short rows, parts of long ones.
fn pieces(rows: usize, width: usize, f: impl Fn(usize, usize, usize) + Sync) {
    let parts = width.div_ceil(GRAIN);
    let part = width.div_ceil(parts.max(1));
    host::spinning(rows * parts, (GRAIN / part.max(1)).max(1), |range| {
        for i in range {
            let (row, from) = (i / parts, i % parts * part);
            f(row, from, part.min(width - from));
        }
    });
}
