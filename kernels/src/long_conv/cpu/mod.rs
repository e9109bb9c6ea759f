//! The convolution on the CPU: blocks of channels, each a task, by FFT or directly.

mod block;
mod direct;
mod few;
mod fft;
mod plan;

use candle_core::{Layout, Result, Storage, bail};
pub(super) use plan::FftReal;

use super::args::{ConvMethod, Dims, Span};
use crate::host::{self, Disjoint, Rows, Unwritten};

/// Channels of a block: a cache line of f32.
const LANES: usize = 16;

/// The prepared inputs; token `t` of the flattened batch is row `t`.
pub(super) struct Views<'a, T> {
    pub(super) u: Rows<'a, T>,
    pub(super) k: Filter<'a, T>,
    pub(super) bias: Option<&'a [T]>,
    pub(super) history: Option<Rows<'a, T>>,
}

/// The filter, (d, lk), dense in either order.
pub(super) enum Filter<'a, T> {
    /// The taps of a channel side by side.
    Channels(&'a [T]),
    /// The channels of a tap side by side, in rows.
    Taps(Rows<'a, T>),
}

impl<'a, T: FftReal> Filter<'a, T> {
    pub(super) fn new(storage: &'a Storage, layout: &Layout) -> Result<Self> {
        if layout.is_contiguous() {
            return Ok(Self::Channels(host::slice(storage, layout)?));
        }
        if layout.dims().len() != 2 {
            bail!("expected a filter of two dimensions, found {:?}", layout.shape());
        }
        Ok(Self::Taps(Rows::new(storage, &layout.transpose(0, 1)?, 1)?))
    }
}

impl<'a, T: FftReal> Views<'a, T> {
    /// Input `i` of a span, counted from the first of its history.
    #[inline(always)]
    fn input(&self, span: &Span, i: usize) -> &'a [T] {
        match self.history {
            Some(history) if i < span.past => history.row(span.past_start + i),
            _ => self.u.row(span.start + i - span.past),
        }
    }

    /// What the filter's lag 0 gets on top.
    #[inline(always)]
    fn bias(&self, channel: usize) -> T {
        self.bias.map_or(T::ZERO, |bias| bias[channel])
    }
}

/// Gradients: of u (tokens, d), k (d, lk), bias (d) and the history.
pub(super) struct Grads<T> {
    pub(super) u: Vec<T>,
    pub(super) k: Vec<T>,
    pub(super) bias: Vec<T>,
    pub(super) history: Vec<T>,
}

/// y, (tokens, d).
pub(super) fn forward<T: FftReal>(dims: &Dims, v: &Views<T>) -> Vec<T> {
    let d = dims.d;
    let mut y = Unwritten::new(dims.b * dims.l * d);
    let y_rows = y.places();
    let (few, rest): (Vec<Span>, Vec<Span>) = dims.spans().into_iter().partition(|s| is_few(dims, v, s));
    for span in &few {
        // SAFETY: no task runs, and a span has its own tokens.
        few::forward(dims, v, span, unsafe { y_rows.slice(span.start * d, span.len * d) });
    }
    let (fft, direct): (Vec<Span>, Vec<Span>) = rest.into_iter().partition(|s| is_fft(dims, s));
    let groups = fft::groups::<T>(&fft);
    let spaces = block::Spaces::default();
    each_block(d, LANES, direct.is_empty(), &spaces, |channels, space| {
        direct::forward(dims, v, &direct, channels, space, &y_rows);
    });
    each_block(d, fft_width(d), groups.is_empty(), &spaces, |channels, space| {
        fft::forward(dims, v, &groups, channels, space, &y_rows);
    });
    // SAFETY: every token lies in a span, and each of these has been convolved for all channels.
    unsafe { y.written() }
}

/// The gradients from that of y.
pub(super) fn backward<T: FftReal>(dims: &Dims, v: &Views<T>, dy: &Rows<T>) -> Grads<T> {
    let d = dims.d;
    let histories = v.history.map_or(0, |_| dims.segments.len() * dims.capacity * d);
    let mut grads = Grads {
        u: host::zeros(dims.b * dims.l * d),
        k: host::zeros(d * dims.lk),
        bias: Vec::new(),
        history: host::zeros(histories),
    };
    let (fft, direct): (Vec<Span>, Vec<Span>) = dims.spans().into_iter().partition(|s| is_fft(dims, s));
    let groups = fft::groups::<T>(&fft);
    let spaces = block::Spaces::default();
    let to = Targets {
        u: Disjoint::new(&mut grads.u),
        k: Disjoint::new(&mut grads.k),
        history: Disjoint::new(&mut grads.history),
    };
    each_block(d, LANES, direct.is_empty(), &spaces, |channels, space| {
        direct::backward(dims, v, dy, &direct, channels, space, &to);
    });
    each_block(d, fft_width(d), groups.is_empty(), &spaces, |channels, space| {
        fft::backward(dims, v, dy, &groups, channels, space, &to);
    });
    // The bias acts as the tap of lag 0 does.
    grads.bias = grads.k.chunks_exact(dims.lk).map(|k| k[dims.ahead]).collect();
    grads
}

/// `f` for all blocks of `width` channels, unless there is nothing to do.
fn each_block<T: FftReal>(
    d: usize,
    width: usize,
    idle: bool,
    spaces: &block::Spaces<T>,
    f: impl Fn(block::Channels, &mut block::Space<T>) + Send + Sync,
) {
    host::parallel(if idle { 0 } else { d.div_ceil(width) }, |i| {
        let mut space = spaces.take();
        f(block::Channels::new(i, width, d), &mut space);
        spaces.give(space);
    });
}

/// Channels of a task of transforms: whole cache lines, unless that leaves threads without work.
fn fft_width(d: usize) -> usize {
    let threads = host::threads();
    // Channels that the busiest thread has.
    let most = |width: usize| (d.div_ceil(width).div_ceil(threads) * width).min(d);
    let even = |width: usize| 8 * most(width) * threads <= 9 * d;
    [LANES, LANES / 2, LANES / 4, LANES / 8].into_iter().find(|&w| even(w)).unwrap_or(1)
}

/// Where gradients go; each block of channels has its own elements.
struct Targets<T> {
    u: Disjoint<T>,
    k: Disjoint<T>,
    history: Disjoint<T>,
}

/// Whether a span has so few outputs that reading filter and inputs once, row by row, is all there is to do.
fn is_few<T>(dims: &Dims, v: &Views<T>, span: &Span) -> bool {
    const FEW: usize = 4;
    span.len <= FEW && dims.method != ConvMethod::Fft && matches!(v.k, Filter::Taps(_))
}

/// Whether the FFT is the faster way.
fn is_fft(dims: &Dims, span: &Span) -> bool {
    match dims.method {
        ConvMethod::Direct => false,
        ConvMethod::Fft => true,
        ConvMethod::Auto => {
            /// Products that take as long as one point of a transform and one of its log2 n passes.
            const PRODUCTS: usize = 20;
            let n = plan::fast_length(fft::least(span));
            span.len * span.lags() / 2 > PRODUCTS * n * n.ilog2() as usize
        }
    }
}
