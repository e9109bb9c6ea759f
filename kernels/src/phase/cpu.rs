//! Sums and rotations on the CPU: sequences, or tokens, shared by threads.

use std::f64::consts::{PI, TAU};

use super::Turn;
use crate::host::{self, Disjoint};
use crate::segments::Segment;
use crate::simd::Real;

/// Angles beyond this are reduced by whole turns.
const LIMIT: f64 = 16.0 * PI;

/// Features that are worth a thread.
const GRAIN: usize = 1 << 12;

fn reduced(angle: f64) -> f64 {
    if angle.abs() > LIMIT { angle - TAU * (angle / TAU).round() } else { angle }
}

/// Sums (tokens, width) and last sums (sequences, width).
pub(super) fn sum<T: Real>(
    segments: &[Segment],
    width: usize,
    delta: &[T],
    initial: Option<&[T]>,
) -> (Vec<T>, Vec<T>) {
    let mut sums = host::zeros(delta.len());
    let mut last = vec![T::ZERO; segments.len() * width];
    let (sums_at, last_at) = (Disjoint::new(&mut sums), Disjoint::new(&mut last));
    host::parallel(segments.len(), |k| {
        let Segment { start, len } = segments[k];
        let from = |t: &[T], row: usize| t[row * width..][..width].to_vec();
        let mut angle: Vec<f64> = match initial {
            Some(initial) => from(initial, k).into_iter().map(Real64::wide).collect(),
            None => vec![0.0; width],
        };
        for t in start..start + len {
            // SAFETY: sequences do not overlap.
            let sums = unsafe { sums_at.slice(t * width, width) };
            for ((angle, sum), &d) in angle.iter_mut().zip(sums).zip(&delta[t * width..][..width]) {
                *angle = reduced(*angle + d.wide());
                *sum = T::real(*angle);
            }
        }
        // SAFETY: one row a sequence.
        let last = unsafe { last_at.slice(k * width, width) };
        last.iter_mut().zip(&angle).for_each(|(last, &angle)| *last = T::real(angle));
    });
    (sums, last)
}

/// Gradients of the summands and of the initial sums: sums from the end.
pub(super) fn sum_backward<T: Real>(
    segments: &[Segment],
    width: usize,
    grad: &[T],
    last: Option<&[T]>,
) -> (Vec<T>, Vec<T>) {
    let mut d = host::zeros(grad.len());
    let mut start = vec![T::ZERO; segments.len() * width];
    let (d_at, start_at) = (Disjoint::new(&mut d), Disjoint::new(&mut start));
    host::parallel(segments.len(), |k| {
        let mut total: Vec<f64> = match last {
            Some(last) => last[k * width..][..width].iter().map(|&g| g.wide()).collect(),
            None => vec![0.0; width],
        };
        for t in (segments[k].start..segments[k].start + segments[k].len).rev() {
            // SAFETY: sequences do not overlap.
            let d = unsafe { d_at.slice(t * width, width) };
            for ((total, d), &g) in total.iter_mut().zip(d).zip(&grad[t * width..][..width]) {
                *total += g.wide();
                *d = T::real(*total);
            }
        }
        // SAFETY: one row a sequence.
        let start = unsafe { start_at.slice(k * width, width) };
        start.iter_mut().zip(&total).for_each(|(start, &total)| *start = T::real(total));
    });
    (d, start)
}

/// x (tokens, r, g, n) plus bias (h, r, n), by phase (tokens, h, s): (tokens, r, h, n).
pub(super) fn turn<T: Real>(turn: &Turn, x: &[T], bias: Option<&[T]>, phase: &[T]) -> Vec<T> {
    let Turn { r: ranks, g, h, n, .. } = *turn;
    let mut y = host::zeros(x.len() / g * h);
    let tokens = x.len().checked_div(ranks * g * n).unwrap_or(0);
    let out = Disjoint::new(&mut y);
    for_each_head(turn, tokens, |token, head| {
        let angles = turns(turn, phase, token, head);
        for r in 0..ranks {
            // SAFETY: each token, copy and head has its own features.
            let y = unsafe { out.slice(feature(turn, token, r, head), n) };
            y.copy_from_slice(&x[((token * ranks + r) * g + head * g / h) * n..][..n]);
            if let Some(bias) = bias {
                y.iter_mut().zip(&bias[(head * ranks + r) * n..][..n]).for_each(|(y, &bias)| *y += bias);
            }
            for (j, &(sin, cos)) in angles.iter().enumerate() {
                let (a, b) = turn.pair(j);
                (y[a], y[b]) = (y[a] * cos - y[b] * sin, y[a] * sin + y[b] * cos);
            }
        }
    });
    y
}

/// The gradient turned back, (tokens, r, h, n), and that of the phase, `Σ_r g_b y_a - g_a y_b`.
pub(super) fn turn_backward<T: Real>(turn: &Turn, y: &[T], phase: &[T], grad: &[T]) -> (Vec<T>, Vec<T>) {
    let (mut back, mut dphase) = (host::zeros(y.len()), host::zeros(phase.len()));
    let tokens = y.len().checked_div(turn.r * turn.h * turn.n).unwrap_or(0);
    let (back_at, dphase_at) = (Disjoint::new(&mut back), Disjoint::new(&mut dphase));
    for_each_head(turn, tokens, |token, head| {
        let angles = turns(turn, phase, token, head);
        // SAFETY: each token and head has its own angles.
        let dphase = unsafe { dphase_at.slice((token * turn.h + head) * turn.s, turn.s) };
        for r in 0..turn.r {
            let at = feature(turn, token, r, head);
            let (y, g) = (&y[at..][..turn.n], &grad[at..][..turn.n]);
            // SAFETY: each token, copy and head has its own features.
            let back = unsafe { back_at.slice(at, turn.n) };
            back.copy_from_slice(g);
            for (j, &(sin, cos)) in angles.iter().enumerate() {
                let (a, b) = turn.pair(j);
                (back[a], back[b]) = (g[a] * cos + g[b] * sin, g[b] * cos - g[a] * sin);
                dphase[j] += g[b] * y[a] - g[a] * y[b];
            }
        }
    });
    (back, dphase)
}

/// Sums over the heads of a group: (tokens, r, h, n) -> (tokens, r, g, n).
pub(super) fn over_heads<T: Real>(turn: &Turn, back: Vec<T>) -> Vec<T> {
    let (of_group, n) = (turn.h / turn.g, turn.n);
    if of_group == 1 {
        return back;
    }
    let mut sums = host::zeros(back.len() / of_group);
    for (sums, heads) in sums.chunks_exact_mut(n).zip(back.chunks_exact(of_group * n)) {
        for head in heads.chunks_exact(n) {
            sums.iter_mut().zip(head).for_each(|(sum, &v)| *sum += v);
        }
    }
    sums
}

/// Sums over tokens: (tokens, r, h, n) -> (h, r, n).
pub(super) fn over_tokens<T: Real>(turn: &Turn, back: &[T]) -> Vec<T> {
    let Turn { r: ranks, h, n, .. } = *turn;
    let mut sums = vec![0.0f64; h * ranks * n];
    for token in back.chunks_exact(ranks * h * n) {
        for (i, features) in token.chunks_exact(n).enumerate() {
            let (r, head) = (i / h, i % h);
            let sums = &mut sums[(head * ranks + r) * n..][..n];
            sums.iter_mut().zip(features).for_each(|(sum, &v)| *sum += v.wide());
        }
    }
    sums.into_iter().map(T::real).collect()
}

fn feature(turn: &Turn, token: usize, r: usize, head: usize) -> usize {
    ((token * turn.r + r) * turn.h + head) * turn.n
}

/// Sine and cosine of each angle of a head.
fn turns<T: Real>(turn: &Turn, phase: &[T], token: usize, head: usize) -> Vec<(T, T)> {
    let angles = &phase[(token * turn.h + head) * turn.s..][..turn.s];
    let both = |&angle: &T| {
        let (sin, cos) = angle.wide().sin_cos();
        (T::real(sin), T::real(cos))
    };
    angles.iter().map(both).collect()
}

fn for_each_head(turn: &Turn, tokens: usize, f: impl Fn(usize, usize) + Sync) {
    host::spinning(tokens, GRAIN.div_ceil((turn.r * turn.h * turn.n).max(1)), |range| {
        range.for_each(|token| (0..turn.h).for_each(|head| f(token, head)));
    });
}

/// A number in f64.
trait Real64 {
    fn wide(self) -> f64;
}

impl<T: Real> Real64 for T {
    #[inline(always)]
    fn wide(self) -> f64 {
        self.to_f64()
    }
}
