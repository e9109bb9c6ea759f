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
}

/// The sequences in runs; none for empty sequences.
fn runs(dims: &Dims) -> Vec<Run> {
    let mut runs = Vec::new();
    for (sequence, segment) in dims.segments.iter().enumerate() {
        let end = segment.start + segment.len;
        let starts = (segment.start..end).step_by(RUN);
        runs.extend(starts.map(|start| Run { sequence, tokens: start..end.min(start + RUN) }));
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

    /// What token `t` adds to the `j`-th mix.
    #[inline(always)]
    fn data(&self, j: usize, t: usize) -> Option<&'a [T]> {
        self.data.get(j).map(|data| data.row(t))
    }

    #[inline(always)]
    fn mix(&self, dims: &Dims, j: usize) -> &'a [T] {
        &self.mix[j * dims.d..][..dims.d]
    }
}

/// The mixes, (tokens, d) each, and the last tokens (sequences, d).
pub(super) fn forward<T: Real>(v: &Views<T>, dims: &Dims) -> (Vec<Vec<T>>, Vec<T>) {
    let d = dims.d;
    let mut y: Vec<Vec<T>> = (0..dims.m).map(|_| host::zeros(dims.b * dims.l * d)).collect();
    let zeros = vec![T::ZERO; d];
    let (runs, out) = (runs(dims), disjoint(&mut y));
    host::spinning(runs.len(), (4096 / (RUN * d)).max(1), |range| {
        vectorized(
            #[inline(always)]
            || {
                for run in &runs[range] {
                    for t in run.tokens.clone() {
                        let rows = (v.x.row(t), v.before(dims, run, t, &zeros));
                        for (j, out) in out.iter().enumerate() {
                            // SAFETY: each token belongs to one run.
                            let y = unsafe { out.slice(t * d, d) };
                            blend(rows, v.mix(dims, j), v.data(j, t), y);
                        }
                    }
                }
            },
        );
    });
    (y, last(v, dims))
}

fn disjoint<T>(buffers: &mut [Vec<T>]) -> Vec<Disjoint<T>> {
    buffers.iter_mut().map(|buffer| Disjoint::new(buffer)).collect()
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

/// Gradients in the order of the inputs, from those of the mixes (`None` for zero) and of the last tokens.
pub(super) fn backward<T: Real>(
    v: &Views<T>,
    dims: &Dims,
    gy: &[Option<&[T]>],
    glast: Option<&[T]>,
) -> Vec<Vec<T>> {
    let (d, tokens, runs) = (dims.d, dims.b * dims.l, runs(dims));
    let mut gx = host::zeros::<T>(tokens * d);
    let mut gmix = host::zeros::<T>(runs.len() * dims.m * d);
    let mut gdata: Vec<Vec<T>> = v.data.iter().map(|_| host::zeros(tokens * d)).collect();
    let mut gstate = glast.map_or_else(|| vec![T::ZERO; dims.segments.len() * d], <[T]>::to_vec);
    let zeros = vec![T::ZERO; d];
    let sinks = Sinks {
        x: Disjoint::new(&mut gx),
        mix: Disjoint::new(&mut gmix),
        state: Disjoint::new(&mut gstate),
        data: disjoint(&mut gdata),
    };
    host::parallel(runs.len(), |i| {
        vectorized(
            #[inline(always)]
            || run_back((v, dims, &zeros), (i, &runs[i]), (gy, glast), &sinks),
        );
    });
    let mut all = vec![gx, parts::sum(gmix, dims.m * d), gstate];
    all.append(&mut gdata);
    all
}

/// Where the runs leave gradients: those of the mixes in sums of their own.
struct Sinks<T> {
    x: Disjoint<T>,
    mix: Disjoint<T>,
    state: Disjoint<T>,
    data: Vec<Disjoint<T>>,
}

#[inline(always)]
fn run_back<T: Real>(
    (v, dims, zeros): (&Views<T>, &Dims, &[T]),
    (i, run): (usize, &Run),
    (gy, glast): (&[Option<&[T]>], Option<&[T]>),
    sinks: &Sinks<T>,
) {
    let (d, segment) = (dims.d, dims.segments[run.sequence]);
    let grads =
        |t: usize| gy.iter().enumerate().filter_map(move |(j, gy)| gy.map(|gy| (j, &gy[t * d..][..d])));
    for t in run.tokens.clone() {
        let rows = (v.x.row(t), v.before(dims, run, t, zeros));
        // SAFETY: each token belongs to one run, and each run has sums of its own.
        let gx = unsafe { sinks.x.slice(t * d, d) };
        for (j, grad) in grads(t) {
            // SAFETY: as above.
            let gmix = unsafe { sinks.mix.slice((i * dims.m + j) * d, d) };
            let gdata: &mut [T] = match sinks.data.get(j) {
                // SAFETY: as above.
                Some(data) => unsafe { data.slice(t * d, d) },
                None => &mut [],
            };
            own(grad, rows, (v.mix(dims, j), v.data(j, t)), (&mut *gx, gmix, gdata));
        }
        if t + 1 < segment.start + segment.len {
            for (j, grad) in grads(t + 1) {
                share(grad, v.mix(dims, j), v.data(j, t + 1), gx);
            }
        } else if let Some(last) = glast {
            gx.iter_mut().zip(&last[run.sequence * d..]).for_each(|(g, &l)| *g += l);
        }
    }
    if run.tokens.start == segment.start {
        // SAFETY: one run begins a sequence.
        let gstate = unsafe { sinks.state.slice(run.sequence * d, d) };
        gstate.fill(T::ZERO);
        for (j, grad) in grads(segment.start) {
            share(grad, v.mix(dims, j), v.data(j, segment.start), gstate);
        }
    }
}

/// What a token's own mix adds to the gradients of the token (`1 - mix` of it), of the mix and of its data.
#[inline(always)]
fn own<T: Real>(
    grad: &[T],
    (x, before): (&[T], &[T]),
    (mix, data): (&[T], Option<&[T]>),
    (gx, gmix, gdata): (&mut [T], &mut [T], &mut [T]),
) {
    let d = grad.len();
    let (x, before, mix) = (&x[..d], &before[..d], &mix[..d]);
    let (gx, gmix) = (&mut gx[..d], &mut gmix[..d]);
    for i in 0..d {
        gx[i] += grad[i] * (T::ONE + -mix[i]);
        gmix[i] = grad[i].mul_add(before[i] - x[i], gmix[i]);
    }
    if let Some(data) = data {
        let (data, gdata) = (&data[..d], &mut gdata[..d]);
        for i in 0..d {
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
