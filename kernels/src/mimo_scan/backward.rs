//! Gradients: the blocks from the last to the first, each with its states computed again.
//!
//! ```text
//! g_t = Cᵀ ∂y_t + conj(a) g_{t+1}      ∂u_t = Bᵀ g_t + D ∂y_t      ∂a = Σ g_t conj(h_{t-1})      ∂h_0 = conj(a) g_1
//! ∂B = Σ g_t u_tᵀ                      ∂C = Σ ∂y_t h_tᵀ            ∂D = Σ ∂y_t u_t
//! ```

use candle_core::{Result, Tensor, bail};

use super::args::{Block, Dims, INPUTS, Views, with_views};
use super::forward::turned;
use super::relay::{self, Turns};
use super::rows::{self, Adjoint, Decay};
use super::{OP, Scan};
use crate::diagonal_scan::lanes::Channels;
use crate::host::{self, Disjoint, Rows, Unwritten};
use crate::parts;
use crate::simd::{Real, vectorized};

/// Sums over blocks that are made side by side, whatever the threads; block i belongs to sum i mod this.
const SUMS: usize = 4;

/// Gradients of u, a, B, C, D and the initial state.
pub(super) fn gradients<T: Real>(
    node: &Scan,
    inputs: &[Option<Tensor>],
    grads: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let dims = &node.dims;
    let [Some(dy), dstate] = grads else { bail!("{OP}: backward needs a gradient") };
    let (dy, starts) = (dy.storage_and_layout(), node.starts.storage_and_layout());
    let (dy, starts) = (host::slice::<T>(&dy.0, dy.1)?, host::slice::<T>(&starts.0, starts.1)?);
    let mut carries = match dstate {
        Some(dstate) => {
            let (storage, layout) = dstate.storage_and_layout();
            host::slice::<T>(&storage, layout)?.to_vec()
        }
        None => vec![T::ZERO; dims.segments.len() * dims.width()],
    };
    let (du, sums) = with_views::<T, _>(inputs, |v| {
        let blocks = dims.blocks();
        Walk { v, dims, blocks: &blocks, wanted: node.wanted, dy, starts }.run(&mut carries)
    })?;
    let [da, db, dc, dd] = sums;
    let all = [du, da, db, dc, dd, carries];
    let shaped = |(values, input): (Vec<T>, &Option<Tensor>)| {
        input.as_ref().filter(|t| values.len() == t.elem_count()).map(|t| host::tensor(values, t.shape()))
    };
    Ok(all.into_iter().zip(inputs).map(shaped).collect())
}

struct Walk<'a, T> {
    v: &'a Views<'a, T>,
    dims: &'a Dims,
    blocks: &'a [Block],
    wanted: [bool; INPUTS],
    dy: &'a [T],
    /// The state before each block.
    starts: &'a [T],
}

/// What a thread works in: states and their gradients of a block, a state, sums for a.
struct Space<T> {
    states: Vec<T>,
    grads: Vec<T>,
    state: Vec<T>,
    decay: Vec<T>,
}

impl<T: Real> Walk<'_, T> {
    /// The gradients of u, and of a, B, C and D; `carries` goes from the final states' gradients to the initial ones'.
    fn run(&self, carries: &mut [T]) -> (Vec<T>, [Vec<T>; 4]) {
        let (dims, n, width) = (self.dims, self.blocks.len(), self.dims.width());
        let lens = [width, width * dims.d, dims.outputs * width, dims.outputs];
        let asked = [self.wanted[1], self.wanted[2], self.wanted[3], self.wanted[4]];
        let mut sums: [Vec<T>; 4] =
            std::array::from_fn(|k| vec![T::ZERO; if asked[k] { SUMS.min(n.max(1)) * lens[k] } else { 0 }]);
        let places = sums.each_mut().map(|sum| Disjoint::new(sum));
        let (walked, summed) = (Turns::new(dims.segments.len()), Turns::new(SUMS));
        let mut counts = vec![0; dims.segments.len()];
        self.blocks.iter().for_each(|b| counts[b.segment] += 1);
        let longest = self.blocks.iter().map(|b| b.len).max().unwrap_or(0);
        let space = || Space {
            states: vec![T::ZERO; longest * width],
            grads: vec![T::ZERO; longest * width],
            state: vec![T::ZERO; width],
            decay: vec![T::ZERO; width],
        };
        let input = turned(self.v.input, dims.d);
        let carries = Disjoint::new(carries);
        let mut du = Unwritten::new(dims.b * dims.l * dims.d);
        let du_places = du.places();
        relay::run(n, &[&walked, &summed], space, |k, space| {
            let i = n - 1 - k;
            let block = self.blocks[i];
            self.make_states(i, &input, space);
            walked.take(block.segment, counts[block.segment] - 1 - block.turn, || {
                // SAFETY: the turns of a sequence follow each other.
                let carry = unsafe { carries.slice(block.segment * width, width) };
                self.adjoint(i, carry, space);
            });
            // SAFETY: the tokens of a block are its task's.
            self.inputs(block, space, unsafe { du_places.slice(block.start * dims.d, block.len * dims.d) });
            summed.take(k % SUMS, k / SUMS, || {
                let sum = |which: usize| {
                    let at = (k % SUMS) * lens[which];
                    // SAFETY: the turns of a sum follow each other.
                    asked[which].then(|| unsafe { places[which].slice(at, lens[which]) })
                };
                self.add(block, space, [sum(0), sum(1), sum(2), sum(3)]);
            });
        });
        let mut k = 0;
        let total = |sum: Vec<T>| {
            k += 1;
            if asked[k - 1] { parts::sum(sum, lens[k - 1]) } else { sum }
        };
        // SAFETY: every token lies in a block.
        (unsafe { du.written() }, sums.map(total))
    }

    /// The tokens of a block: of u, and the gradient of y.
    fn tokens(&self, Block { start, len, .. }: Block) -> (&[T], (usize, usize), &[T]) {
        let outputs = self.dims.outputs;
        let dy = &self.dy[start * outputs..][..len * outputs];
        (self.v.u.tail(start, 0), (self.v.u.stride(), 1), dy)
    }

    /// The states of a block, and their gradients through its outputs.
    fn make_states(&self, i: usize, input: &[T], space: &mut Space<T>) {
        let Dims { d, p, outputs, reverse, .. } = *self.dims;
        let (block, width) = (self.blocks[i], self.dims.width());
        let (u, strides, dy) = self.tokens(block);
        let (h, g) = (&mut space.states[..block.len * width], &mut space.grads[..block.len * width]);
        host::gemm((block.len, d, width), u, strides, input, (width, 1), h, (width, 1), false);
        space.state.copy_from_slice(&self.starts[i * width..][..width]);
        let (decay, all) = (Decay { a: self.v.a, p, backwards: reverse }, Channels { first: 0, len: p });
        let (rows, carry) = (Disjoint::new(h), Disjoint::new(&mut space.state));
        // SAFETY: all this thread's own.
        unsafe { rows::scan(decay, (&rows, 0), block.len, (&carry, 0), all) };
        host::gemm(
            (block.len, outputs, width),
            dy,
            (outputs, 1),
            self.v.output,
            (width, 1),
            g,
            (width, 1),
            false,
        );
    }

    /// The gradients of the states through everything.
    fn adjoint(&self, i: usize, carry: &mut [T], space: &mut Space<T>) {
        let Dims { p, reverse, .. } = *self.dims;
        let (numbers, width) = (self.blocks[i].len * self.dims.width(), self.dims.width());
        space.decay.fill(T::ZERO);
        let block = Adjoint {
            states: &space.states[..numbers],
            before: &self.starts[i * width..][..width],
            grads: &mut space.grads[..numbers],
            carry,
            decay: &mut space.decay,
        };
        rows::adjoint(Decay { a: self.v.a, p, backwards: reverse }, block);
    }

    /// The gradient of a block's inputs.
    fn inputs(&self, block: Block, space: &Space<T>, du: &mut [T]) {
        let (d, width) = (self.dims.d, self.dims.width());
        let (_, _, dy) = self.tokens(block);
        if let Some(skip) = self.v.skip {
            vectorized(
                #[inline(always)]
                || {
                    for (du, dy) in du.chunks_exact_mut(d).zip(dy.chunks_exact(skip.len())) {
                        du.fill(T::ZERO);
                        for (dy, skip) in dy.chunks_exact(d).zip(skip.chunks_exact(d)) {
                            for ((du, &dy), &skip) in du.iter_mut().zip(dy).zip(skip) {
                                *du = Real::mul_add(dy, skip, *du);
                            }
                        }
                    }
                },
            );
        }
        let g = &space.grads[..block.len * width];
        let skips = self.v.skip.is_some();
        host::gemm((block.len, width, d), g, (width, 1), self.v.input, (d, 1), du, (d, 1), skips);
    }

    /// Adds a block's share to the sums for a, B, C and D.
    fn add(&self, block: Block, space: &Space<T>, [a, input, output, skip]: [Option<&mut [T]>; 4]) {
        let Dims { d, outputs, .. } = *self.dims;
        let (len, width) = (block.len, self.dims.width());
        let (u, strides, dy) = self.tokens(block);
        let (h, g) = (&space.states[..len * width], &space.grads[..len * width]);
        if let Some(a) = a {
            a.iter_mut().zip(&space.decay).for_each(|(a, &d)| *a += d);
        }
        if let Some(input) = input {
            host::gemm((width, len, d), g, (1, width), u, strides, input, (d, 1), true);
        }
        if let Some(output) = output {
            host::gemm((outputs, len, width), dy, (1, outputs), h, (width, 1), output, (width, 1), true);
        }
        if let Some(skip) = skip {
            add_products(skip, dy, self.v.u, block.start);
        }
    }
}

/// Adds `Σ_t ∂y_t ⊙ u_t`, outputs in rows of inputs.
fn add_products<T: Real>(sum: &mut [T], dy: &[T], u: Rows<T>, start: usize) {
    vectorized(
        #[inline(always)]
        || {
            for (t, dy) in dy.chunks_exact(sum.len()).enumerate() {
                let u = u.row(start + t);
                for (sum, dy) in sum.chunks_exact_mut(u.len()).zip(dy.chunks_exact(u.len())) {
                    for ((sum, &dy), &u) in sum.iter_mut().zip(dy).zip(u) {
                        *sum = Real::mul_add(dy, u, *sum);
                    }
                }
            }
        },
    );
}
