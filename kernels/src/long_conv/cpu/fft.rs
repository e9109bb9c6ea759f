//! The convolution as a product of spectra, one channel after the other; outputs by packed transforms, gradients by real
//! ones (see `plan.rs`).
//!
//! A transform of n points wraps around: of lags from `-fore` to `behind` and inputs `0..inputs`, of which the last `len`
//! have outputs, nothing wraps into an output if `n ≥ len + behind` and `n ≥ inputs + fore`; the gradients need the same.

use realfft::num_complex::Complex;

use super::block::{Channels, Space, gather, scatter, sized, stride};
use super::plan::{Plan, correlate, fast_length, reals};
use super::{FftReal, Filter, LANES, Targets, Views};
use crate::host::{Disjoint, Rows};
use crate::long_conv::args::{Dims, Span};
use crate::simd::{Real, vectorized};

/// Spans that share the filter's spectrum.
pub(super) struct Group<T> {
    plan: Plan<T>,
    spans: Vec<Span>,
}

/// Fewest points of the transform.
pub(super) fn least(span: &Span) -> usize {
    (span.len + span.behind).max(span.inputs() + span.fore)
}

/// Spans of the same lags and transform together.
pub(super) fn groups<T: FftReal>(spans: &[Span]) -> Vec<Group<T>> {
    let mut groups: Vec<Group<T>> = Vec::new();
    for span in spans {
        let n = fast_length(least(span));
        let same = |g: &&mut Group<T>| {
            let other = &g.spans[0];
            (g.plan.n, other.behind, other.fore) == (n, span.behind, span.fore)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.spans.push(*span),
            None => groups.push(Group { plan: Plan::of(n), spans: vec![*span] }),
        }
    }
    groups
}

impl<T: FftReal> Group<T> {
    /// Number of spectra kept at a time: those of all channels where several spans use them, else one.
    fn kept(&self) -> usize {
        if self.spans.len() > 1 { LANES } else { 1 }
    }

    /// Where the spectrum, of so many numbers, of this channel of a block is kept.
    fn slot(&self, channel: usize, numbers: usize) -> std::ops::Range<usize> {
        let start = (channel % self.kept()) * numbers;
        start..start + numbers
    }
}

/// The filter of a group, and what of it is known so far.
struct Spectra<'a, 'b, T> {
    dims: &'a Dims,
    v: &'a Views<'b, T>,
    group: &'a Group<T>,
    channels: Channels,
}

impl<T: FftReal> Spectra<'_, '_, T> {
    /// The taps as rows of channels, where the filter does not lie so.
    fn prepare(&self, taps: &mut Vec<T>) {
        let Filter::Taps(rows) = &self.v.k else { return };
        let span = &self.group.spans[0];
        let (first, stride) = (self.dims.ahead - span.fore, stride(span.lags()));
        let taps = sized(taps, self.channels.count * stride);
        gather(taps, (stride, 0), self.channels, span.lags(), |j| rows.row(first + j));
    }

    /// The filter of one channel, times `scale`, around lag 0 of `signal`.
    fn load(&self, channel: usize, taps: &[T], signal: &mut [T], scale: f64) {
        let Self { dims, v, group, channels } = self;
        let (span, n) = (&group.spans[0], group.plan.n);
        let (fore, lags, first) = (span.fore, span.lags(), dims.ahead - span.fore);
        let taps = match &v.k {
            Filter::Channels(k) => &k[(channels.first + channel) * dims.lk + first..][..lags],
            Filter::Taps(_) => &taps[channel * stride(lags)..][..lags],
        };
        let scale = T::real(scale);
        let scaled = |to: &mut [T], from: &[T]| {
            vectorized(
                #[inline(always)]
                || to.iter_mut().zip(from).for_each(|(to, &k)| *to = k * scale),
            );
        };
        scaled(signal, &taps[fore..]);
        signal[lags - fore..n - fore].fill(T::ZERO);
        scaled(&mut signal[n - fore..], &taps[..fore]);
        signal[0] += v.bias(channels.first + channel) * scale;
    }
}

/// Copies `from` to the head of `signal`, with zeros behind it.
fn load<T: Real>(signal: &mut [T], from: &[T]) {
    signal[..from.len()].copy_from_slice(from);
    signal[from.len()..].fill(T::ZERO);
}

/// y of these groups and channels.
pub(super) fn forward<T: FftReal>(
    dims: &Dims,
    v: &Views<T>,
    groups: &[Group<T>],
    channels: Channels,
    space: &mut Space<T>,
    y: &Disjoint<T>,
) {
    for group in groups {
        let (plan, width, points) = (&group.plan, channels.count, group.plan.packed());
        let filter = Spectra { dims, v, group, channels };
        filter.prepare(&mut space.taps);
        let [k, x, signal, _] = &mut space.spectra;
        let (k, x, signal) = (sized(k, group.kept() * points), sized(x, points), sized(signal, points));
        let scratch = sized(&mut space.scratch, plan.packed_scratch());
        for (i, span) in group.spans.iter().enumerate() {
            let stride = stride(span.inputs());
            let rows = sized(&mut space.inputs, width * stride);
            gather(rows, (stride, 0), channels, span.inputs(), |i| v.input(span, i));
            for c in 0..width {
                let k = &mut k[group.slot(c, points)];
                if i == 0 {
                    filter.load(c, &space.taps, reals(signal), 1.0 / points as f64);
                    plan.pack(signal, k, scratch);
                }
                let row = &mut rows[c * stride..][..span.inputs()];
                load(reals(signal), row);
                plan.pack(signal, x, scratch);
                plan.convolve(x, k);
                plan.unpack(x, signal, scratch);
                row[span.past..].copy_from_slice(&reals(signal)[span.past..span.inputs()]);
            }
            scatter(rows, (stride, span.past), channels, span.len, y, span.start);
        }
    }
}

/// Gradients of these groups and channels.
pub(super) fn backward<T: FftReal>(
    dims: &Dims,
    v: &Views<T>,
    dy: &Rows<T>,
    groups: &[Group<T>],
    channels: Channels,
    space: &mut Space<T>,
    to: &Targets<T>,
) {
    for group in groups {
        let (plan, width, bins) = (&group.plan, channels.count, group.plan.bins());
        let filter = Spectra { dims, v, group, channels };
        filter.prepare(&mut space.taps);
        let [k, x, g, sum] = &mut space.spectra;
        let (k, sum) = (sized(k, group.kept() * bins), sized(sum, group.kept() * bins));
        let (x, g) = (sized(x, bins), sized(g, bins));
        let (signal, scratch) = (sized(&mut space.signal, plan.n), sized(&mut space.scratch, plan.scratch()));
        for (i, span) in group.spans.iter().enumerate() {
            let (stride, grad_stride) = (stride(span.inputs()), stride(span.len));
            let rows = sized(&mut space.inputs, width * stride);
            let grads = sized(&mut space.outputs, width * grad_stride);
            gather(rows, (stride, 0), channels, span.inputs(), |i| v.input(span, i));
            gather(grads, (grad_stride, 0), channels, span.len, |t| dy.row(span.start + t));
            for c in 0..width {
                let (k, sum) = (&mut k[group.slot(c, bins)], &mut sum[group.slot(c, bins)]);
                if i == 0 {
                    filter.load(c, &space.taps, signal, 1.0 / plan.n as f64);
                    plan.forward(signal, k, scratch);
                    sum.fill(Complex::new(T::ZERO, T::ZERO));
                }
                let row = &mut rows[c * stride..][..span.inputs()];
                load(signal, row);
                plan.forward(signal, x, scratch);
                signal[..span.past].fill(T::ZERO);
                load(&mut signal[span.past..], &grads[c * grad_stride..][..span.len]);
                plan.forward(signal, g, scratch);
                correlate(g, x, k, sum);
                plan.inverse(g, signal, scratch);
                row.copy_from_slice(&signal[..span.inputs()]);
                if i + 1 == group.spans.len() {
                    plan.inverse(sum, signal, scratch);
                    add_taps(dims, span, channels.first + c, signal, to);
                }
            }
            scatter(rows, (stride, 0), channels, span.past, &to.history, span.past_start);
            scatter(rows, (stride, span.past), channels, span.len, &to.u, span.start);
        }
    }
}

/// Adds a filter's gradient, `signal` of n times its values around lag 0, to that of one channel.
fn add_taps<T: FftReal>(dims: &Dims, span: &Span, channel: usize, signal: &[T], to: &Targets<T>) {
    let (n, fore, lags) = (signal.len(), span.fore, span.lags());
    let scale = T::real(1.0 / n as f64);
    // SAFETY: the channels of a block belong to one task.
    let dk = unsafe { to.k.slice(channel * dims.lk + dims.ahead - fore, lags) };
    let lags = signal[n - fore..].iter().chain(&signal[..lags - fore]);
    dk.iter_mut().zip(lags).for_each(|(dk, &g)| *dk = Real::mul_add(g, scale, *dk));
}
