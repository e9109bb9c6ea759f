//! How a scan is shared among threads.
//!
//! Sequences and channels are independent of each other: where there are enough of them, each thread walks its own
//! through all tokens, and nothing is computed twice. Where there are not (few channels, one long sequence), the
//! sequence itself is cut into blocks, by the associativity of `(a, x) ∘ (a', x') = (a' a, a' x + x')`:
//!
//! 1. every block from zero: its last state, and the product of its decays; the first block, whose start is known,
//!    is done with;
//! 2. one after the other, the state before each block;
//! 3. every block again from there, writing.
//!
//! Blocks go through these in groups that stay in the caches, so that memory is read once. The work is at most twice
//! that of one thread, the depth that of one block.

use super::args::Dims;
use super::lanes::{Channels, Lanes, load, mul_add, store};
use crate::host::{self, Disjoint};
use crate::parts::parts;
use crate::simd::{Real, vectorized};

/// Channels side by side, and for what is left of them.
const WIDE: usize = 32;
const NARROW: usize = 16;

/// Bytes of input that a block of a sequence holds: small enough to stay in a core's cache between two passes.
const BLOCK_BYTES: usize = 64 << 10;
/// Blocks for each thread between two meetings of all threads.
const BLOCKS_PER_THREAD: usize = 8;
/// Numbers below which a scan is not worth waking a thread for.
const SMALL: usize = 1 << 13;

/// Tokens of one sequence, lying one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stretch {
    pub(crate) segment: usize,
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Stretch {
    /// The tokens in the order of the walk.
    #[inline(always)]
    pub(crate) fn tokens(self, backwards: bool) -> impl Iterator<Item = usize> {
        (0..self.len).map(move |i| if backwards { self.start + self.len - 1 - i } else { self.start + i })
    }

    /// Pieces of at most `len` tokens, in the order of the walk.
    fn pieces(self, len: usize, backwards: bool) -> impl Iterator<Item = Self> {
        (0..self.len.div_ceil(len)).map(move |k| {
            let (offset, len) = (k * len, len.min(self.len - k * len));
            let start = if backwards { self.start + self.len - offset - len } else { self.start + offset };
            Self { start, len, ..self }
        })
    }
}

/// What is done at each token, for some channels, with a state that is carried along.
pub(crate) trait Walk<T: Real>: Sync {
    /// Whether tokens are walked from the last to the first.
    fn backwards(&self) -> bool;

    /// The factors of the carried state if they are the same at every token, and whether they are conjugated.
    fn fixed(&self) -> Option<(&[T], bool)> {
        None
    }

    /// Carries the state through the stretch and writes what is to be written. Walks of the same `slot` and channels
    /// follow each other.
    fn walk<const C: usize, const W: usize>(
        &self,
        stretch: Stretch,
        channels: Channels,
        slot: usize,
        carry: &mut Lanes<T, C, W>,
    );

    /// Carries the state alone; `product` is multiplied by the factors if they vary.
    fn reduce<const C: usize, const W: usize>(
        &self,
        stretch: Stretch,
        channels: Channels,
        carry: &mut Lanes<T, C, W>,
        product: &mut Lanes<T, C, W>,
    );
}

/// Who takes what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Tasks of sequences and channels, in parts of a multiple of so many.
    Channels { grain: usize },
    /// One sequence after the other, in groups of so many blocks of so many tokens.
    Blocks { blocks: usize, tokens: usize },
}

impl Plan {
    pub(crate) fn new<T>(dims: &Dims) -> Self {
        let threads = host::threads();
        if dims.b * dims.l * dims.width() < SMALL {
            return Self::Channels { grain: dims.p };
        }
        let tokens = (BLOCK_BYTES / (dims.width() * size_of::<T>())).max(16);
        let tasks = dims.segments.len() * dims.p.div_ceil(NARROW);
        let longest = dims.segments.iter().map(|s| s.len).max().unwrap_or(0);
        if tasks >= threads || longest < 4 * tokens {
            return Self::Channels { grain: NARROW };
        }
        Self::Blocks { blocks: BLOCKS_PER_THREAD * threads, tokens }
    }

    /// How many slots [`Walk::walk`] may be given.
    pub(crate) fn slots(self, dims: &Dims) -> usize {
        match self {
            Self::Channels { .. } => dims.segments.len(),
            Self::Blocks { blocks, .. } => blocks,
        }
    }
}

/// Walks all sequences. `carries` holds a row a sequence: the states to begin with, and then those at the end.
pub(crate) fn run<T: Real>(walk: &impl Walk<T>, dims: &Dims, plan: Plan, carries: &mut [T]) {
    match dims.planes {
        1 => planes::<T, 1>(walk, dims, plan, carries),
        _ => planes::<T, 2>(walk, dims, plan, carries),
    }
}

fn planes<T: Real, const C: usize>(walk: &impl Walk<T>, dims: &Dims, plan: Plan, carries: &mut [T]) {
    let width = dims.width();
    let stretch = |segment: usize| {
        let s = dims.segments[segment];
        Stretch { segment, start: s.start, len: s.len }
    };
    match plan {
        Plan::Channels { grain } => {
            let carries = Disjoint::new(carries);
            let (tasks, _) = parts(dims.segments.len(), 1, dims.p, grain);
            host::parallel(tasks.len(), |i| {
                let part = tasks[i];
                let channels = Channels { first: part.start, len: part.len };
                // SAFETY: this task alone has these channels of this sequence.
                unsafe {
                    sweep::<T, C>(
                        walk,
                        dims.p,
                        stretch(part.segment),
                        channels,
                        part.segment,
                        (&carries, part.segment * width),
                    );
                }
            });
        }
        Plan::Blocks { blocks, tokens } => {
            for (segment, carry) in carries.chunks_exact_mut(width).enumerate() {
                let pieces: Vec<Stretch> = stretch(segment).pieces(tokens, walk.backwards()).collect();
                for group in pieces.chunks(blocks) {
                    self::group::<T, C>(walk, dims.p, group, carry);
                }
            }
        }
    }
}

/// Blocks that follow each other, from `carry` on.
fn group<T: Real, const C: usize>(walk: &impl Walk<T>, p: usize, blocks: &[Stretch], carry: &mut [T]) {
    let (n, width) = (blocks.len(), carry.len());
    let all = Channels { first: 0, len: p };
    // Row k: the state before block k, in the end; the last row is the state after all of them.
    let mut states = vec![T::ZERO; (n + 1) * width];
    let mut products = vec![T::ONE; n * width];
    if C == 2 {
        products.chunks_exact_mut(p).skip(1).step_by(2).for_each(|im| im.fill(T::ZERO));
    }
    states[..width].copy_from_slice(carry);
    {
        let (states, products) = (Disjoint::new(&mut states), Disjoint::new(&mut products));
        // The last block's end is not needed before it is walked.
        host::parallel(n.saturating_sub(1), |k| {
            // SAFETY: row k + 1 and product k belong to this task; row 0 is read by the first task alone.
            unsafe {
                if k == 0 {
                    states.slice(width, width).copy_from_slice(states.slice(0, width));
                    sweep::<T, C>(walk, p, blocks[0], all, 0, (&states, width));
                } else {
                    collect::<T, C>(walk, p, blocks[k], (&states, (k + 1) * width), (&products, k * width));
                }
            }
        });
    }
    for k in 1..n.saturating_sub(1) {
        if let Some((a, conjugate)) = walk.fixed() {
            power(a, p, blocks[k].len, conjugate, &mut products[k * width..][..width]);
        }
        let (before, after) = states.split_at_mut((k + 1) * width);
        apply::<T, C>(&products[k * width..][..width], &before[k * width..], &mut after[..width], p);
    }
    {
        let last = n.saturating_sub(1);
        let ends = Disjoint::new(&mut states);
        // A lone block has not been walked yet; of several, the first has.
        let walked = usize::from(n > 1);
        let mut starts = vec![T::ZERO; n * width];
        // SAFETY: no task runs.
        starts.copy_from_slice(unsafe { ends.slice(0, n * width) });
        let starts = Disjoint::new(&mut starts);
        host::parallel(n - walked, |i| {
            let k = i + walked;
            // SAFETY: start k and, for the last block, the last row belong to this task.
            unsafe {
                sweep::<T, C>(walk, p, blocks[k], all, k, (&starts, k * width));
                if k == last {
                    ends.slice(n * width, width).copy_from_slice(starts.slice(k * width, width));
                }
            }
        });
    }
    carry.copy_from_slice(&states[n * width..]);
}

/// Walks a stretch for some channels, from the state in the row of `carry` on, which becomes the one after it.
///
/// # Safety
/// Nobody else uses these channels of that row, nor what the walk writes for them.
unsafe fn sweep<T: Real, const C: usize>(
    walk: &impl Walk<T>,
    p: usize,
    stretch: Stretch,
    channels: Channels,
    slot: usize,
    carry: (&Disjoint<T>, usize),
) {
    // A few rows at a time: all channels of a token are used before its cache lines are gone.
    let tokens = (BLOCK_BYTES / (channels.len * C * size_of::<T>())).max(8);
    vectorized(
        #[inline(always)]
        || {
            for piece in stretch.pieces(tokens, walk.backwards()) {
                // SAFETY: the caller's promise.
                unsafe {
                    lane_groups::<T, C>(channels, &mut Wanderer { walk, p, piece, slot, carry });
                }
            }
        },
    );
}

/// The state after a stretch walked from zero, and the product of its factors, for all channels.
///
/// # Safety
/// Nobody else uses these rows.
unsafe fn collect<T: Real, const C: usize>(
    walk: &impl Walk<T>,
    p: usize,
    stretch: Stretch,
    carry: (&Disjoint<T>, usize),
    product: (&Disjoint<T>, usize),
) {
    vectorized(
        #[inline(always)]
        || {
            // SAFETY: the caller's promise.
            unsafe {
                lane_groups::<T, C>(
                    Channels { first: 0, len: p },
                    &mut Collector { walk, p, piece: stretch, carry, product },
                );
            }
        },
    );
}

/// What is done for each group of lanes.
trait Group<T: Real> {
    /// # Safety
    /// As the caller of [`lane_groups`] promised.
    unsafe fn run<const C: usize, const W: usize>(&mut self, channels: Channels);
}

/// Channels in wide groups of lanes, and what is left in narrow ones.
///
/// # Safety
/// As the group asks for.
#[inline(always)]
unsafe fn lane_groups<T: Real, const C: usize>(channels: Channels, group: &mut impl Group<T>) {
    let end = channels.first + channels.len;
    let mut first = channels.first;
    while first + WIDE <= end {
        // SAFETY: the caller's promise.
        unsafe { group.run::<C, WIDE>(Channels { first, len: WIDE }) };
        first += WIDE;
    }
    while first < end {
        let len = NARROW.min(end - first);
        // SAFETY: as above.
        unsafe { group.run::<C, NARROW>(Channels { first, len }) };
        first += len;
    }
}

struct Wanderer<'a, T, K> {
    walk: &'a K,
    p: usize,
    piece: Stretch,
    slot: usize,
    carry: (&'a Disjoint<T>, usize),
}

impl<T: Real, K: Walk<T>> Group<T> for Wanderer<'_, T, K> {
    #[inline(always)]
    unsafe fn run<const C: usize, const W: usize>(&mut self, channels: Channels) {
        let (row, at) = self.carry;
        // SAFETY: these channels of the row are this task's.
        unsafe {
            let mut carry = gather::<T, C, W>(row, at, self.p, channels);
            self.walk.walk::<C, W>(self.piece, channels, self.slot, &mut carry);
            store(&carry, row, at, self.p, channels);
        }
    }
}

struct Collector<'a, T, K> {
    walk: &'a K,
    p: usize,
    piece: Stretch,
    carry: (&'a Disjoint<T>, usize),
    product: (&'a Disjoint<T>, usize),
}

impl<T: Real, K: Walk<T>> Group<T> for Collector<'_, T, K> {
    #[inline(always)]
    unsafe fn run<const C: usize, const W: usize>(&mut self, channels: Channels) {
        // SAFETY: these rows are this task's.
        unsafe {
            let mut carry = [[T::ZERO; W]; C];
            let mut product = gather::<T, C, W>(self.product.0, self.product.1, self.p, channels);
            self.walk.reduce::<C, W>(self.piece, channels, &mut carry, &mut product);
            store(&carry, self.carry.0, self.carry.1, self.p, channels);
            store(&product, self.product.0, self.product.1, self.p, channels);
        }
    }
}

/// [`load`] from a shared row.
///
/// # Safety
/// As of [`store`].
#[inline(always)]
pub(crate) unsafe fn gather<T: Real, const C: usize, const W: usize>(
    from: &Disjoint<T>,
    at: usize,
    p: usize,
    Channels { first, len }: Channels,
) -> Lanes<T, C, W> {
    let mut out = [[T::ZERO; W]; C];
    for (plane, out) in out.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        out[..len].copy_from_slice(unsafe { from.slice(at + plane * p + first, len) });
    }
    out
}

/// `end ← product · before + end`, whole rows.
fn apply<T: Real, const C: usize>(product: &[T], before: &[T], end: &mut [T], p: usize) {
    let ends = Disjoint::new(end);
    for first in (0..p).step_by(NARROW) {
        let channels = Channels { first, len: NARROW.min(p - first) };
        let (a, h) = (load::<T, C, NARROW>(product, p, channels), load(before, p, channels));
        // SAFETY: one thread.
        unsafe {
            let x = gather::<T, C, NARROW>(&ends, 0, p, channels);
            store(&mul_add(&a, &h, &x), &ends, 0, p, channels);
        }
    }
}

/// The `n`-th powers of a row of factors, by squaring in f64: rounding errors of squares double with each further one.
fn power<T: Real>(a: &[T], p: usize, n: usize, conjugate: bool, out: &mut [T]) {
    let complex = a.len() > p;
    let sign = if conjugate { -1.0 } else { 1.0 };
    for i in 0..p {
        let mut square = (a[i].to_f64(), if complex { sign * a[p + i].to_f64() } else { 0.0 });
        let times = |x: (f64, f64), y: (f64, f64)| (x.0 * y.0 - x.1 * y.1, x.0 * y.1 + x.1 * y.0);
        let (mut result, mut n) = ((1.0, 0.0), n);
        while n > 0 {
            if n & 1 == 1 {
                result = times(result, square);
            }
            square = times(square, square);
            n >>= 1;
        }
        out[i] = T::real(result.0);
        if complex {
            out[p + i] = T::real(result.1);
        }
    }
}
