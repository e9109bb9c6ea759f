//! Rotation on the CPU: runs of tokens in parallel, cosines and sines by a recurrence that is restarted for each run.

use candle_core::{Layout, Result, Storage};

use super::{RotaryLayout, Rotation};
use crate::host::{self, Disjoint};
use crate::simd::{Real, vectorized};

/// Tokens between two evaluations of the library's sine: the recurrence in f64 then errs by some 1e-14.
const RUN: usize = 32;

/// `x` (.., h, p) contiguous, turned.
pub(super) fn rotate<T: Real>(
    rotation: &Rotation,
    dims: &[usize],
    storage: &Storage,
    layout: &Layout,
) -> Result<Storage> {
    let x = host::slice::<T>(storage, layout)?;
    let &[_, _, h, p] = dims else { candle_core::bail!("rotary: expected rank 4, got {dims:?}") };
    if x.is_empty() {
        return Ok(host::storage(Vec::<T>::new()));
    }
    let mut runs = Vec::new();
    for s in &rotation.sequences {
        for offset in (0..s.len).step_by(RUN) {
            runs.push((s.start + offset, RUN.min(s.len - offset), (s.position + offset) as f64));
        }
    }
    let mut y = vec![T::ZERO; x.len()];
    let out = Disjoint::new(&mut y);
    host::parallel(runs.len(), |i| {
        let (start, len, position) = runs[i];
        // SAFETY: the runs are disjoint pieces of the line of tokens.
        let y = unsafe { out.slice(start * h * p, len * h * p) };
        turn_run(rotation, position, p, h, &x[start * h * p..(start + len) * h * p], y);
    });
    Ok(host::storage(y))
}

fn turn_run<T: Real>(rotation: &Rotation, position: f64, p: usize, h: usize, x: &[T], y: &mut [T]) {
    let pairs = rotation.inv_freq.len();
    let sign = if rotation.inverse { -1.0 } else { 1.0 };
    // In f64: (cos, sin) of the angle, and of the step to the next position.
    let mut angle: Vec<[f64; 2]> = Vec::with_capacity(pairs);
    let mut step: Vec<[f64; 2]> = Vec::with_capacity(pairs);
    for &f in &rotation.inv_freq {
        let (sin, cos) = (sign * position * f).sin_cos();
        angle.push([cos, sin]);
        let (sin, cos) = (sign * f).sin_cos();
        step.push([cos, sin]);
    }
    let (mut cos, mut sin) = (vec![T::ZERO; pairs], vec![T::ZERO; pairs]);
    vectorized(
        #[inline(always)]
        || {
            for (x, y) in x.chunks_exact(h * p).zip(y.chunks_exact_mut(h * p)) {
                for i in 0..pairs {
                    let ([c, s], [dc, ds]) = (angle[i], step[i]);
                    (cos[i], sin[i]) = (T::real(c), T::real(s));
                    angle[i] = [c * dc - s * ds, s * dc + c * ds];
                }
                for (x, y) in x.chunks_exact(p).zip(y.chunks_exact_mut(p)) {
                    match rotation.layout {
                        RotaryLayout::Half => half(x, y, &cos, &sin),
                        RotaryLayout::Interleaved => interleaved(x, y, &cos, &sin),
                    }
                    y[2 * pairs..].copy_from_slice(&x[2 * pairs..]);
                }
            }
        },
    );
}

#[inline(always)]
fn half<T: Real>(x: &[T], y: &mut [T], cos: &[T], sin: &[T]) {
    let n = cos.len();
    let (xa, xb) = (&x[..n], &x[n..2 * n]);
    let (ya, yb) = y[..2 * n].split_at_mut(n);
    let sin = &sin[..n];
    for i in 0..n {
        ya[i] = xa[i] * cos[i] - xb[i] * sin[i];
        yb[i] = xa[i] * sin[i] + xb[i] * cos[i];
    }
}

#[inline(always)]
fn interleaved<T: Real>(x: &[T], y: &mut [T], cos: &[T], sin: &[T]) {
    for (((x, y), &c), &s) in x.chunks_exact(2).zip(y.chunks_exact_mut(2)).zip(cos).zip(sin) {
        y[0] = x[0] * c - x[1] * s;
        y[1] = x[0] * s + x[1] * c;
    }
}
