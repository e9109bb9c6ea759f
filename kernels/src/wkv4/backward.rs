//! Gradients of the average on the CPU, fused: states are computed again chunk by chunk, from the last to the first, and
//! the gradient of the state (numerator, denominator and maximum) runs backwards in time.
//!
//! ```text
//! output:  q = ∂y / (e₁ b + e₂)    e₁, e₂ the weights of state and token      ∂a += q e₁      ∂b -= q e₁ y
//!          ∂v += q e₂      ∂(u + k) += q e₂ (v - y)      ∂m += q e₁ (a - b y)
//! update:  f₁, f₂ likewise; the larger exponent gets ∂m' - ∂a' a' - ∂b' b', the maximum being taken out of both sums
//!          ∂(m + w) += f₁ (a ∂a' + b ∂b')      ∂k += f₂ (v ∂a' + ∂b')      ∂v += f₂ ∂a'
//! ```

use candle_core::{Result, Tensor, bail};

use super::OP;
use super::args::Dims;
use super::cpu::{Block, LANES, State, advance, blocks, weights};
use super::views::{Views, with_views};
use crate::host::{self, Disjoint, Rows};
use crate::parts::{self, Part};
use crate::segments::Segment;
use crate::simd::{Real, put, vectorized};

/// Tokens whose states are held at once.
const CHUNK: usize = 32;

/// Gradients in the order of the inputs.
pub(super) fn gradients<T: Real>(
    dims: &Dims,
    inputs: &[Option<Tensor>],
    grads: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let guards: Vec<_> = grads.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let [Some((guard, layout)), state] = &guards[..] else {
        bail!("{OP}: expected gradients of two outputs")
    };
    let y = Rows::<T>::new(guard, layout, 2)?;
    let state = state.as_ref().map(|(guard, layout)| host::slice::<T>(guard, layout)).transpose()?;
    let found = with_views(inputs, 2, |v| fill(v, dims, y, state))?;
    let tensors = inputs
        .iter()
        .zip(found)
        .map(|(input, values)| input.as_ref().map(|input| host::tensor(values, input.shape().clone())));
    Ok(tensors.collect())
}

/// Where the tasks leave gradients: by token and channel, or by sequence.
struct Sinks<T> {
    k: Disjoint<T>,
    v: Disjoint<T>,
    w: Disjoint<T>,
    u: Disjoint<T>,
    state: Disjoint<T>,
}

fn fill<T: Real>(v: &Views<T>, dims: &Dims, gy: Rows<T>, gstate: Option<&[T]>) -> [Vec<T>; 5] {
    let (sequences, tokens, c) = (dims.segments.len(), dims.b * dims.l, dims.c);
    let (mut gk, mut gv) = (host::zeros::<T>(tokens * c), host::zeros::<T>(tokens * c));
    let (mut gw, mut gu) = (host::zeros::<T>(sequences * c), host::zeros::<T>(sequences * c));
    let mut start = host::zeros::<T>(sequences * 3 * c);
    let sinks = Sinks {
        k: Disjoint::new(&mut gk),
        v: Disjoint::new(&mut gv),
        w: Disjoint::new(&mut gw),
        u: Disjoint::new(&mut gu),
        state: Disjoint::new(&mut start),
    };
    let (tasks, _) = parts::parts(sequences, 1, c, LANES);
    host::parallel(tasks.len(), |i| {
        vectorized(
            #[inline(always)]
            || {
                blocks(
                    &tasks[i],
                    #[inline(always)]
                    |first, len| {
                        let block = Block::new(v, first, len);
                        Reverse::new(dims, &block, &tasks[i], gstate).run(gy, &sinks);
                    },
                );
            },
        );
    });
    [gk, gv, parts::sum(gw, c), parts::sum(gu, c), start]
}

/// One block of one sequence, backwards.
struct Reverse<'a, T> {
    c: usize,
    block: &'a Block<'a, T>,
    sequence: usize,
    segment: Segment,
    /// States before each chunk, and before each token of the chunk at hand.
    starts: Vec<State<T>>,
    states: Vec<State<T>>,
    /// Gradients so far: of the state, w, u.
    grad: State<T>,
    gw: [T; LANES],
    gu: [T; LANES],
}

impl<'a, T: Real> Reverse<'a, T> {
    #[inline(always)]
    fn new(dims: &Dims, block: &'a Block<'a, T>, part: &Part, gstate: Option<&[T]>) -> Self {
        let (c, segment, zero) = (dims.c, dims.segments[part.segment], [T::ZERO; LANES]);
        let none = State { a: zero, b: zero, max: zero };
        let mut state = block.start(part.segment, c);
        let mut starts = Vec::with_capacity(segment.len.div_ceil(CHUNK));
        for i in 0..segment.len {
            if i % CHUNK == 0 {
                starts.push(state);
            }
            let (k, v) = block.token(segment.start + i);
            advance(&mut state, (&k, &v), (&block.w, &block.u));
        }
        Self {
            c,
            block,
            sequence: part.segment,
            segment,
            starts,
            states: vec![none; CHUNK],
            grad: gstate.map_or(none, |g| block.load(&g[3 * part.segment * c..][..3 * c], c)),
            gw: zero,
            gu: zero,
        }
    }

    #[inline(always)]
    fn run(mut self, gy: Rows<T>, sinks: &Sinks<T>) {
        let Segment { start, len } = self.segment;
        let (first, width) = (self.block.first, self.block.len);
        for chunk in (0..len.div_ceil(CHUNK)).rev() {
            let tokens = start + chunk * CHUNK..start + len.min((chunk + 1) * CHUNK);
            let mut state = self.starts[chunk];
            for (before, t) in self.states.iter_mut().zip(tokens.clone()) {
                *before = state;
                let (k, v) = self.block.token(t);
                advance(&mut state, (&k, &v), (&self.block.w, &self.block.u));
            }
            for t in tokens.clone().rev() {
                let (gk, gv) = self.token(t, t - tokens.start, &self.block.part(gy.row(t)));
                // SAFETY: this task alone holds these channels of this sequence.
                unsafe {
                    put(sinks.k.slice(t * self.c + first, width), &gk);
                    put(sinks.v.slice(t * self.c + first, width), &gv);
                }
            }
        }
        let at = self.sequence * self.c + first;
        // SAFETY: as above.
        unsafe {
            put(sinks.w.slice(at, width), &self.gw);
            put(sinks.u.slice(at, width), &self.gu);
        }
        self.block.store(&self.grad, &sinks.state, self.sequence, self.c);
    }

    /// Token `t`, number `i` of its chunk: the gradients of its key and value.
    #[inline(always)]
    fn token(&mut self, t: usize, i: usize, gy: &[T; LANES]) -> ([T; LANES], [T; LANES]) {
        let ((k, v), s) = (self.block.token(t), &self.states[i]);
        let (w, u, grad) = (&self.block.w, &self.block.u, &mut self.grad);
        let (mut gk, mut gv) = ([T::ZERO; LANES], [T::ZERO; LANES]);
        for j in 0..LANES {
            let (a, b, max) = (s.a[j], s.b[j], s.max[j]);
            // The update.
            let faded = max + w[j];
            let (old, new) = weights(faded, k[j]);
            let (after_a, after_b) = (old.mul_add(a, new * v[j]), old.mul_add(b, new));
            let top = grad.max[j] + -(grad.a[j] * after_a + grad.b[j] * after_b);
            let kept = old * (grad.a[j] * a + grad.b[j] * b);
            let added = new * (grad.a[j] * v[j] + grad.b[j]);
            let (g_faded, mut g_key) = if faded >= k[j] { (kept + top, added) } else { (kept, added + top) };
            let mut g_value = new * grad.a[j];
            self.gw[j] += g_faded;
            // The output.
            let (e_old, e_new) = weights(max, u[j] + k[j]);
            let total = e_old.mul_add(b, e_new);
            let y = e_old.mul_add(a, e_new * v[j]) / total;
            let q = gy[j] / total;
            let g_first = q * e_new * (v[j] + -y);
            self.gu[j] += g_first;
            g_key += g_first;
            g_value += q * e_new;
            grad.a[j] = old.mul_add(grad.a[j], q * e_old);
            grad.b[j] = old.mul_add(grad.b[j], -(q * e_old * y));
            grad.max[j] = g_faded + q * e_old * (a + -(b * y));
            gk[j] = g_key;
            gv[j] = g_value;
        }
        (gk, gv)
    }
}
