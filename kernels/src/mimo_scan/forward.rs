//! The scan on the CPU.

use super::args::{Block, Dims, Views};
use super::relay::{self, Turns};
use super::rows::{self, Decay, NARROW};
use crate::diagonal_scan::lanes::Channels;
use crate::host::{self, Disjoint, Rows, Unwritten};
use crate::linear;
use crate::linear::stored::{Register, Stored};
use crate::parts::parts;
use crate::simd::{Real, vectorized};

/// Up to so many tokens the states of all are made at once: a product of few rows is better shared by its columns.
const FEW: usize = 512;

/// Outputs, states after the last tokens, and, if they are to be kept, those before each block.
pub(super) struct Found<T> {
    pub(super) y: Vec<T>,
    pub(super) states: Vec<T>,
    pub(super) starts: Vec<T>,
}

pub(super) fn run<T: Register + Stored<T>>(v: &Views<T>, dims: &Dims, keep: bool) -> Found<T> {
    let blocks = dims.blocks();
    let mut states =
        v.initial.map_or_else(|| vec![T::ZERO; dims.segments.len() * dims.width()], <[T]>::to_vec);
    let mut starts = vec![T::ZERO; if keep { blocks.len() * dims.width() } else { 0 }];
    let scan = Scan {
        v,
        dims,
        blocks: &blocks,
        states: Disjoint::new(&mut states),
        starts: keep.then(|| Disjoint::new(&mut starts)),
    };
    let y = if dims.b * dims.l <= FEW { scan.at_once() } else { scan.in_blocks() };
    Found { y, states, starts }
}

struct Scan<'a, T> {
    v: &'a Views<'a, T>,
    dims: &'a Dims,
    blocks: &'a [Block],
    /// The state of each sequence, as far as it has come.
    states: Disjoint<T>,
    starts: Option<Disjoint<T>>,
}

impl<T: Register + Stored<T>> Scan<'_, T> {
    /// The outputs, from the states of all tokens.
    fn at_once(&self) -> Vec<T> {
        let (v, dims, width) = (self.v, self.dims, self.dims.width());
        let mut h = linear::product(v.u, v.input, None, width);
        {
            let rows = Disjoint::new(&mut h);
            let (tasks, _) = parts(dims.segments.len(), 1, dims.p, NARROW);
            host::parallel(tasks.len(), |i| {
                let part = tasks[i];
                let channels = Channels { first: part.start, len: part.len };
                for (i, block) in self.blocks.iter().enumerate().filter(|(_, b)| b.segment == part.segment) {
                    // SAFETY: this task alone has these channels of this sequence.
                    unsafe { self.walk(i, (&rows, block.start * width), channels) };
                }
            });
        }
        let mut y = linear::product(Rows::dense(&h, width), v.output, None, dims.outputs);
        if let Some(skip) = v.skip {
            for (t, y) in y.chunks_exact_mut(dims.outputs).enumerate() {
                let u = v.u.row(t);
                for (y, skip) in y.chunks_exact_mut(dims.d).zip(skip.chunks_exact(dims.d)) {
                    y.iter_mut().zip(skip).zip(u).for_each(|((y, &d), &u)| *y = Real::mul_add(d, u, *y));
                }
            }
        }
        y
    }

    /// The outputs, block by block.
    fn in_blocks(&self) -> Vec<T> {
        let (v, dims) = (self.v, self.dims);
        let (d, width, outputs) = (dims.d, dims.width(), dims.outputs);
        let (input, output) = (turned(v.input, d), turned(v.output, width));
        let longest = self.blocks.iter().map(|b| b.len).max().unwrap_or(0);
        let turns = Turns::new(dims.segments.len());
        let mut y = Unwritten::new(dims.b * dims.l * outputs);
        let places = y.places();
        relay::run(
            self.blocks.len(),
            &[&turns],
            || vec![T::ZERO; longest * width],
            |i, buffer| {
                let Block { segment, turn, start, len } = self.blocks[i];
                let h = &mut buffer[..len * width];
                let u = (v.u.tail(start, 0), (v.u.stride(), 1));
                host::gemm((len, d, width), u.0, u.1, &input, (width, 1), h, (width, 1), false);
                turns.take(segment, turn, || {
                    let all = Channels { first: 0, len: dims.p };
                    // SAFETY: the turns of a sequence follow each other, and the rows are this thread's.
                    unsafe { self.walk(i, (&Disjoint::new(h), 0), all) };
                });
                // SAFETY: the tokens of a block are its task's.
                let y = unsafe { places.slice(start * outputs, len * outputs) };
                if let Some(skip) = v.skip {
                    begin(y, skip, v.u, start);
                }
                let skips = v.skip.is_some();
                host::gemm(
                    (len, width, outputs),
                    h,
                    (width, 1),
                    &output,
                    (outputs, 1),
                    y,
                    (outputs, 1),
                    skips,
                );
            },
        );
        // SAFETY: every token lies in a block, and the product writes a block's outputs whole.
        unsafe { y.written() }
    }

    /// Block `i`, whose inputs lie in `rows`, from its sequence's state on.
    ///
    /// # Safety
    /// Nobody else uses these channels of the rows and of this sequence meanwhile.
    unsafe fn walk(&self, i: usize, rows: (&Disjoint<T>, usize), channels: Channels) {
        let &Dims { p, planes, reverse, .. } = self.dims;
        let Block { segment, len, .. } = self.blocks[i];
        let width = self.dims.width();
        if let Some(starts) = &self.starts {
            for plane in 0..planes {
                let column = plane * p + channels.first;
                // SAFETY: the caller's promise, and a row for each block.
                unsafe {
                    let start = starts.slice(i * width + column, channels.len);
                    start.copy_from_slice(self.states.slice(segment * width + column, channels.len));
                }
            }
        }
        let decay = Decay { a: self.v.a, p, backwards: reverse };
        // SAFETY: the caller's promise.
        unsafe { rows::scan(decay, rows, len, (&self.states, segment * width), channels) };
    }
}

/// `y = D u`, for the tokens from `start` on.
fn begin<T: Real>(y: &mut [T], skip: &[T], u: Rows<T>, start: usize) {
    vectorized(
        #[inline(always)]
        || {
            for (t, y) in y.chunks_exact_mut(skip.len()).enumerate() {
                let u = u.row(start + t);
                for (y, skip) in y.chunks_exact_mut(u.len()).zip(skip.chunks_exact(u.len())) {
                    for ((y, &d), &u) in y.iter_mut().zip(skip).zip(u) {
                        *y = d * u;
                    }
                }
            }
        },
    );
}

/// A matrix of rows of `columns` numbers, transposed.
pub(super) fn turned<T: Real>(from: &[T], columns: usize) -> Vec<T> {
    const TILE: usize = 16;
    let rows = from.len() / columns;
    let mut to = vec![T::ZERO; from.len()];
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            for row in top..rows.min(top + TILE) {
                for column in left..columns.min(left + TILE) {
                    to[column * rows + row] = from[row * columns + column];
                }
            }
        }
    }
    to
}
