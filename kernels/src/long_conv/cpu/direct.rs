//! The sums as they stand, for [`LANES`] channels at a time.
//!
//! Output, gradient of the inputs and gradient of the filter are one and the same sum over rows of lanes,
//! `out[i] = Σ_j a[j] ⊙ b[base + i - j]`, with one of the three turned around.

use super::block::{Channels, Space, pack, sized, unpack};
use super::{FftReal, LANES, Targets, Views};
use crate::host::{Disjoint, Rows};
use crate::long_conv::args::{Dims, Span};
use crate::simd::{Real, vectorized};

/// Outputs of a tile, whose sums stay in registers.
const TILE: usize = 8;

/// y of these spans and channels.
pub(super) fn forward<T: FftReal>(
    dims: &Dims,
    v: &Views<T>,
    spans: &[Span],
    channels: Channels,
    space: &mut Space<T>,
    y: &Disjoint<T>,
) {
    let [taps, inputs, outputs, _] = &mut space.lanes;
    for span in spans {
        filter(dims, v, span, channels, taps);
        let inputs = padded(inputs, span.inputs(), channels, |i| v.input(span, i));
        let out = sized(outputs, span.len);
        convolve(out, &taps[..span.lags()], inputs, span.past + span.fore);
        unpack(out, channels, y, span.start);
    }
}

/// Gradients of these spans and channels.
pub(super) fn backward<T: FftReal>(
    dims: &Dims,
    v: &Views<T>,
    dy: &Rows<T>,
    spans: &[Span],
    channels: Channels,
    space: &mut Space<T>,
    to: &Targets<T>,
) {
    let [taps, rows, outputs, plain] = &mut space.lanes;
    for span in spans {
        filter(dims, v, span, channels, taps);
        let lags = span.lags();
        taps[..lags].reverse();
        let grad = padded(rows, span.len, channels, |t| dy.row(span.start + t));
        let out = sized(outputs, span.inputs());
        // dx[i] = Σ_m k[m] dy[i - past + m], m = behind - j.
        convolve_from(out, &taps[..lags], grad, span.behind as isize - span.past as isize);
        unpack(&out[..span.past], channels, &to.history, span.past_start);
        unpack(&out[span.past..], channels, &to.u, span.start);

        let last = span.inputs() - 1;
        let inputs = padded(rows, span.inputs(), channels, |i| v.input(span, last - i));
        let grad = sized(plain, span.len);
        pack(grad, channels, |t| dy.row(span.start + t));
        let out = sized(outputs, lags);
        // dk[m] = Σ_t dy[t] x[past + t - m]; x is turned around, m = j - fore.
        convolve(out, grad, inputs, span.len - 1 - span.fore);
        for lane in 0..channels.count {
            let first = (channels.first + lane) * dims.lk + dims.ahead - span.fore;
            // SAFETY: the channels of a block belong to one task.
            let dk = unsafe { to.k.slice(first, lags) };
            dk.iter_mut().zip(&*out).for_each(|(dk, out)| *dk += out[lane]);
        }
    }
}

/// The taps of a span's lags, bias included.
fn filter<T: FftReal>(
    dims: &Dims,
    v: &Views<T>,
    span: &Span,
    channels: Channels,
    taps: &mut Vec<[T; LANES]>,
) {
    let taps = sized(taps, span.lags());
    v.k.pack(taps, dims.ahead - span.fore, dims.lk, channels);
    for (lane, tap) in taps[span.fore].iter_mut().enumerate().take(channels.count) {
        *tap += v.bias(channels.first + lane);
    }
}

/// `count` rows with [`TILE`] rows of zeros before and after them.
fn padded<'a, 'b, T: Real>(
    buffer: &'b mut Vec<[T; LANES]>,
    count: usize,
    channels: Channels,
    row: impl Fn(usize) -> &'a [T],
) -> &'b [[T; LANES]] {
    let rows = sized(buffer, count + 2 * TILE);
    rows[..TILE].fill([T::ZERO; LANES]);
    rows[TILE + count..].fill([T::ZERO; LANES]);
    pack(&mut rows[TILE..TILE + count], channels, row);
    rows
}

fn convolve<T: Real>(out: &mut [[T; LANES]], a: &[[T; LANES]], b: &[[T; LANES]], base: usize) {
    convolve_from(out, a, b, base as isize);
}

/// `out[i] = Σ_j a[j] ⊙ b[base + i - j]`; `b` is [`padded`], and zero outside.
fn convolve_from<T: Real>(out: &mut [[T; LANES]], a: &[[T; LANES]], b: &[[T; LANES]], base: isize) {
    let rows = (b.len() - 2 * TILE) as isize;
    vectorized(
        #[inline(always)]
        || {
            for (tile, out) in out.chunks_mut(TILE).enumerate() {
                let at = base + (tile * TILE) as isize; // of b, for the first output and j = 0
                let first = (at - (rows - 1)).max(0);
                let last = (at + TILE as isize).clamp(first, (a.len() as isize).max(first));
                let mut sums = [[T::ZERO; LANES]; TILE];
                let [s0, s1, s2, s3, s4, s5, s6, s7] = &mut sums;
                for j in first..last {
                    let start = (at - j + TILE as isize) as usize;
                    let Some(Ok(b)) = b.get(start..start + TILE).map(<&[[T; LANES]; TILE]>::try_from) else {
                        continue;
                    };
                    let a = &a[j as usize];
                    // Written out: as a loop over the tile it would not stay in registers.
                    add(s0, a, &b[0]);
                    add(s1, a, &b[1]);
                    add(s2, a, &b[2]);
                    add(s3, a, &b[3]);
                    add(s4, a, &b[4]);
                    add(s5, a, &b[5]);
                    add(s6, a, &b[6]);
                    add(s7, a, &b[7]);
                }
                out.copy_from_slice(&sums[..out.len()]);
            }
        },
    );
}

/// `sum += a ⊙ b`
#[inline(always)]
fn add<T: Real>(sum: &mut [T; LANES], a: &[T; LANES], b: &[T; LANES]) {
    for c in 0..LANES {
        sum[c] = Real::mul_add(a[c], b[c], sum[c]);
    }
}
