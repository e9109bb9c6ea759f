//! The token shift on the CPU: threads over runs of tokens, channels in vector lanes.

use super::{Dims, Views};
use crate::host::{self, Disjoint};
use crate::parts;
use crate::simd::{Real, vectorized};

/// Tokens of a task.
const RUN: usize = 32;

/// Some tokens of one sequence.
struct Run {
    sequence: usize,
    tokens: std::ops::Range<usize>,
    /// Whether they end it.
    last: bool,
}

/// The sequences in runs; none for empty sequences.
fn runs(dims: &Dims) -> Vec<Run> {
    let mut runs = Vec::new();
    for (sequence, segment) in dims.segments.iter().enumerate() {
        let end = segment.start + segment.len;
        runs.extend((segment.start..end).step_by(RUN).map(|start| {
            let tokens = start..end.min(start + RUN);
            Run { sequence, last: tokens.end == end, tokens }
        }));
    }
    runs
}

impl<'a, T: Real> Views<'a, T> {
    /// The token before `t`, which belongs to `run`.
    #[inline(always)]
    fn before(&self, dims: &Dims, run: &Run, t: usize, zeros: &'a [T]) -> &'a [T] {
        if t > dims.segments[run.sequence].start {
            return self.x.row(t - 1);
        }
        self.state.map_or(zeros, |state| &state[run.sequence * dims.d..][..dims.d])
    }

    /// The `j`-th mix of token `t` where it depends on the token.
    #[inline(always)]
    fn data(&self, dims: &Dims, j: usize, t: usize) -> Option<&'a [T]> {
        self.data.map(|data| data.row(j * dims.b * dims.l + t))
    }

    #[inline(always)]
    fn mix(&self, dims: &Dims, j: usize) -> &'a [T] {
        &self.mix[j * dims.d..][..dims.d]
    }
}

/// The mixes (m, tokens, d) and the last tokens (sequences, d).
pub(super) fn forward<T: Real>(v: &Views<T>, dims: &Dims) -> (Vec<T>, Vec<T>) {
    let (d, tokens) = (dims.d, dims.b * dims.l);
    let mut y = host::zeros(dims.m * tokens * d);
    let zeros = vec![T::ZERO; d];
    let (runs, out) = (runs(dims), Disjoint::new(&mut y));
    host::spinning(runs.len(), (4096 / (RUN * d)).max(1), |range| {
        vectorized(
            #[inline(always)]
            || {
                for run in &runs[range] {
                    for (t, j) in run.tokens.clone().flat_map(|t| (0..dims.m).map(move |j| (t, j))) {
                        let rows = (v.x.row(t), v.before(dims, run, t, &zeros));
                        // SAFETY: each token belongs to one run.
                        let y = unsafe { out.slice((j * tokens + t) * d, d) };
                        blend(rows, v.mix(dims, j), v.data(dims, j, t), y);
                    }
                }
            },
        );
    });
    (y, last(v, dims))
}

/// `x + (before - x)(mix + data)`
#[inline(always)]
fn blend<T: Real>((x, before): (&[T], &[T]), mix: &[T], data: Option<&[T]>, y: &mut [T]) {
    let rows = y.iter_mut().zip(x).zip(before).zip(mix);
    match data {
        Some(data) => {
            for ((((y, &x), &before), &mix), &data) in rows.zip(data) {
                *y = (before - x).mul_add(mix + data, x);
            }
        }
        None => {
            for (((y, &x), &before), &mix) in rows {
                *y = (before - x).mul_add(mix, x);
            }
        }
    }
}

/// The state after each sequence; that before it where it is empty.
fn last<T: Real>(v: &Views<T>, dims: &Dims) -> Vec<T> {
    let mut last = vec![T::ZERO; dims.segments.len() * dims.d];
    for (i, (segment, row)) in dims.segments.iter().zip(last.chunks_exact_mut(dims.d)).enumerate() {
        match (segment.len, v.state) {
            (0, Some(state)) => row.copy_from_slice(&state[i * dims.d..][..dims.d]),
            (0, None) => {}
            (len, _) => row.copy_from_slice(v.x.row(segment.start + len - 1)),
        }
    }
    last
}

/// Gradients in the order of the inputs, from those of the mixes and of the last tokens.
pub(super) fn backward<T: Real>(v: &Views<T>, dims: &Dims, gy: &[T], glast: Option<&[T]>) -> [Vec<T>; 4] {
    let (d, tokens, runs) = (dims.d, dims.b * dims.l, runs(dims));
    let mut gx = host::zeros::<T>(tokens * d);
    let mut gmix = host::zeros::<T>(runs.len() * dims.m * d);
    let mut gdata = host::zeros::<T>(if v.data.is_some() { dims.m * tokens * d } else { 0 });
    let mut gstate = glast.map_or_else(|| vec![T::ZERO; dims.segments.len() * d], <[T]>::to_vec);
    let zeros = vec![T::ZERO; d];
    let (x_out, mix_out, data_out) =
        (Disjoint::new(&mut gx), Disjoint::new(&mut gmix), Disjoint::new(&mut gdata));
    let state_out = Disjoint::new(&mut gstate);
    host::parallel(runs.len(), |i| {
        let run = &runs[i];
        let segment = dims.segments[run.sequence];
        // SAFETY: each token belongs to one run, each run has sums of its own, and one run begins each sequence.
        let (gx, gmix) = unsafe {
            let first = run.tokens.start * d;
            (x_out.slice(first, run.tokens.len() * d), mix_out.slice(i * dims.m * d, dims.m * d))
        };
        vectorized(
            #[inline(always)]
            || {
                for (t, gx) in run.tokens.clone().zip(gx.chunks_exact_mut(d)) {
                    let (x, before) = (v.x.row(t), v.before(dims, run, t, &zeros));
                    for (j, gmix) in gmix.chunks_exact_mut(d).enumerate() {
                        let grad = &gy[(j * tokens + t) * d..][..d];
                        let gdata: &mut [T] = match v.data {
                            // SAFETY: as above.
                            Some(_) => unsafe { data_out.slice((j * tokens + t) * d, d) },
                            None => &mut [],
                        };
                        own(grad, (x, before), (v.mix(dims, j), v.data(dims, j, t)), (gx, gmix, gdata));
                        if t + 1 < segment.start + segment.len {
                            let grad = &gy[(j * tokens + t + 1) * d..][..d];
                            share(grad, v.mix(dims, j), v.data(dims, j, t + 1), gx);
                        }
                    }
                    if let (true, Some(last)) = (run.last && t + 1 == run.tokens.end, glast) {
                        gx.iter_mut().zip(&last[run.sequence * d..]).for_each(|(g, &l)| *g += l);
                    }
                }
                if run.tokens.start == segment.start {
                    // SAFETY: as above.
                    let gstate = unsafe { state_out.slice(run.sequence * d, d) };
                    gstate.fill(T::ZERO);
                    for j in 0..dims.m {
                        let grad = &gy[(j * tokens + segment.start) * d..][..d];
                        share(grad, v.mix(dims, j), v.data(dims, j, segment.start), gstate);
                    }
                }
            },
        );
    });
    [gx, parts::sum(gmix, dims.m * d), gdata, gstate]
}

/// What a token's own mix adds to the gradients of the token (`1 - mix` of it), of the mix and of its data.
#[inline(always)]
fn own<T: Real>(
    grad: &[T],
    (x, before): (&[T], &[T]),
    (mix, data): (&[T], Option<&[T]>),
    (gx, gmix, gdata): (&mut [T], &mut [T], &mut [T]),
) {
    for i in 0..grad.len() {
        gx[i] += grad[i] * (T::ONE + -mix[i]);
        gmix[i] = grad[i].mul_add(before[i] - x[i], gmix[i]);
    }
    if let Some(data) = data {
        for i in 0..grad.len() {
            gx[i] += -(grad[i] * data[i]);
            gdata[i] = grad[i] * (before[i] - x[i]);
        }
    }
}

/// What the mix of a token adds to the gradient of the token before it.
#[inline(always)]
fn share<T: Real>(grad: &[T], mix: &[T], data: Option<&[T]>, g: &mut [T]) {
    for ((g, &grad), &mix) in g.iter_mut().zip(grad).zip(mix) {
        *g = grad.mul_add(mix, *g);
    }
    if let Some(data) = data {
        for ((g, &grad), &data) in g.iter_mut().zip(grad).zip(data) {
            *g = grad.mul_add(data, *g);
        }
    }
}
