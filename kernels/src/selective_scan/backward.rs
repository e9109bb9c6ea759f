//! Gradients of the scan on the CPU, fused.
//!
//! States are computed again, chunk by chunk from the last to the first, from those at the chunks' starts; then the
//! gradient of the state runs backwards in time:
//! ```text
//! ∂h_t = C_t ∂y_t + decay_{t+1} ⊙ ∂h_{t+1}       ∂C_t = Σ_e ∂y_t h_t         ∂B_t = Σ_e ∂h_t Δ_t x_t
//! ∂Δ_t = Σ_n ∂h_t ⊙ decay_t ⊙ h_{t-1} ⊙ A + …    ∂A = Σ_t ∂h_t ⊙ decay_t ⊙ h_{t-1} Δ_t
//! ```
//! Each task owns its channels. The sums over channels (∂B, ∂C) and over sequences (∂A, ∂D, ∂bias) are taken of the
//! tasks' parts afterwards, in a fixed order: results do not depend on the threads' timing.

use candle_core::{Result, Tensor, bail};

use super::args::Dims;
use super::block::{Block, advance};
use super::cpu::{AHEAD, NARROW, WIDE, is_wide};
use super::views::{Views, with_views};
use super::{OP, Scan};
use crate::host::{self, Disjoint, Rows};
use crate::parts::{self, Part};
use crate::segments::Segment;
use crate::simd::{Real, put};

/// Tokens whose states are held at once.
const CHUNK: usize = 16;

/// Gradients in the order of the inputs.
pub(super) fn gradients<T: Real>(
    node: &Scan,
    inputs: &[Option<Tensor>],
    grads: &[Option<Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let guards: Vec<_> = grads.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let [Some((guard, layout)), state] = &guards[..] else {
        bail!("{OP}: expected gradients of two outputs")
    };
    let y = Rows::<T>::new(guard, layout, 2)?;
    let state = state.as_ref().map(|(guard, layout)| host::slice::<T>(guard, layout)).transpose()?;
    let found = with_views(inputs, 2, node.softplus, |v| match is_wide(&node.dims) {
        true => Sinks::<T>::fill::<WIDE>(v, &node.dims, y, state),
        false => Sinks::<T>::fill::<NARROW>(v, &node.dims, y, state),
    })?;
    let tensors = inputs
        .iter()
        .zip(found)
        .map(|(input, values)| input.as_ref().map(|input| host::tensor(values, input.shape().clone())));
    Ok(tensors.collect())
}

/// Where the tasks leave gradients: by token and channel, by part of a group, or by sequence.
struct Sinks<T> {
    x: Disjoint<T>,
    dt: Disjoint<T>,
    z: Disjoint<T>,
    /// (parts, tokens, g, n)
    b: Disjoint<T>,
    c: Disjoint<T>,
    /// (sequences, e, n)
    a: Disjoint<T>,
    state: Disjoint<T>,
    /// (sequences, e)
    d: Disjoint<T>,
    bias: Disjoint<T>,
}

impl<T: Real> Sinks<T> {
    fn fill<const W: usize>(v: &Views<T>, dims: &Dims, gy: Rows<T>, gstate: Option<&[T]>) -> [Vec<T>; 9] {
        let (sequences, tokens) = (dims.segments.len(), dims.b * dims.l);
        let (tasks, count) = parts::parts(sequences, dims.g, dims.e / dims.g, W);
        let zeros = host::zeros::<T>;
        let (mut x, mut dt) = (zeros(tokens * dims.e), zeros(tokens * dims.e));
        let mut z = zeros(if v.z.is_some() { tokens * dims.e } else { 0 });
        let maps = tokens * dims.g * dims.n;
        let (mut b, mut c) = (zeros(count * maps), zeros(count * maps));
        let (mut a, mut state) = (zeros(sequences * dims.e * dims.n), zeros(sequences * dims.e * dims.n));
        let (mut d, mut bias) = (zeros(sequences * dims.e), zeros(sequences * dims.e));
        let sinks = Self {
            x: Disjoint::new(&mut x),
            dt: Disjoint::new(&mut dt),
            z: Disjoint::new(&mut z),
            b: Disjoint::new(&mut b),
            c: Disjoint::new(&mut c),
            a: Disjoint::new(&mut a),
            state: Disjoint::new(&mut state),
            d: Disjoint::new(&mut d),
            bias: Disjoint::new(&mut bias),
        };
        host::parallel(tasks.len(), |i| {
            pulp::Arch::new().dispatch(Blocks::<T, W> {
                v,
                dims,
                part: &tasks[i],
                gy,
                gstate,
                sinks: &sinks,
            });
        });
        [
            x,
            dt,
            parts::sum(a, dims.e * dims.n),
            parts::sum(b, maps),
            parts::sum(c, maps),
            parts::sum(d, dims.e),
            parts::sum(bias, dims.e),
            z,
            state,
        ]
    }
}

/// The blocks of one task.
struct Blocks<'a, T, const W: usize> {
    v: &'a Views<'a, T>,
    dims: &'a Dims,
    part: &'a Part,
    gy: Rows<'a, T>,
    gstate: Option<&'a [T]>,
    sinks: &'a Sinks<T>,
}

impl<T: Real, const W: usize> pulp::WithSimd for Blocks<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { v, dims, part, .. } = self;
        let end = part.start + part.len;
        for first in (part.start..end).step_by(W) {
            let block = Block::<T, W>::new(v, dims.n, part.group, first, W.min(end - first));
            Reverse::new(v, dims, &block, part, self.gstate).run(simd, self.gy, self.sinks);
        }
    }
}

/// What the backward pass needs of a token again.
#[derive(Clone, Copy)]
struct Token<T, const W: usize> {
    raw: [T; W],
    dt: [T; W],
    x: [T; W],
    /// Output before the gate.
    y: [T; W],
}

/// One block of one sequence, backwards.
struct Reverse<'a, T, const W: usize> {
    dims: &'a Dims,
    block: &'a Block<'a, T, W>,
    part: &'a Part,
    segment: Segment,
    /// States before each chunk.
    starts: Vec<[T; W]>,
    /// States before and after each token of the chunk at hand.
    states: Vec<[T; W]>,
    decays: Vec<[T; W]>,
    tokens: Vec<Token<T, W>>,
    /// Gradients so far: of the state, A, D, the bias.
    gh: Vec<[T; W]>,
    ga: Vec<[T; W]>,
    gd: [T; W],
    gbias: [T; W],
}

impl<'a, T: Real, const W: usize> Reverse<'a, T, W> {
    #[inline(always)]
    fn new(
        v: &Views<T>,
        dims: &'a Dims,
        block: &'a Block<'a, T, W>,
        part: &'a Part,
        gstate: Option<&[T]>,
    ) -> Self {
        let size = dims.e * dims.n;
        let zero = [T::ZERO; W];
        let segment = dims.segments[part.segment];
        let token = Token { raw: zero, dt: zero, x: zero, y: zero };
        let mut this = Self {
            dims,
            block,
            part,
            segment,
            starts: Vec::with_capacity(segment.len.div_ceil(CHUNK) * dims.n),
            states: vec![zero; (CHUNK + 1) * dims.n],
            decays: vec![zero; CHUNK * dims.n],
            tokens: vec![token; CHUNK],
            gh: block.load_state(gstate.map(|s| &s[part.segment * size..][..size])),
            ga: vec![zero; dims.n],
            gd: zero,
            gbias: zero,
        };
        this.find_starts(block.load_state(v.state.map(|s| &s[part.segment * size..][..size])));
        this
    }

    #[inline(always)]
    fn find_starts(&mut self, mut h: Vec<[T; W]>) {
        let Segment { start, len } = self.segment;
        for k in 0..len {
            if k % CHUNK == 0 {
                self.starts.extend_from_slice(&h);
            }
            let t = start + k;
            self.block.prefetch(t + AHEAD);
            let dt = self.block.steps(&self.block.raw_steps(t));
            let (mut u, mut unused) = (self.block.x(t), [T::ZERO; W]);
            for i in 0..W {
                u[i] *= dt[i];
            }
            let (b, _) = self.block.maps(t);
            for ((h, a), &b) in h.iter_mut().zip(&self.block.a).zip(b) {
                advance(h, &mut unused, a, (&dt, &u), (b, T::ZERO));
            }
        }
    }

    #[inline(always)]
    fn run<S: pulp::Simd>(mut self, simd: S, gy: Rows<T>, sinks: &Sinks<T>) {
        let Segment { start, len } = self.segment;
        for chunk in (0..len.div_ceil(CHUNK)).rev() {
            let first = start + chunk * CHUNK;
            let last = (first + CHUNK).min(start + len);
            self.recompute(chunk, first..last);
            for t in (first..last).rev() {
                if let Some(earlier) = t.checked_sub(AHEAD) {
                    gy.prefetch(earlier, self.block.first..self.block.first + self.block.len);
                }
                self.token(simd, t, t - first, self.block.load(gy.row(t)), sinks);
            }
        }
        let (e, n) = (self.dims.e, self.dims.n);
        let at = self.part.segment * e + self.block.first;
        let len = self.block.len;
        // SAFETY: this task alone holds these channels of this sequence.
        unsafe {
            self.block.store_state(&self.gh, sinks.state.slice(at * n, len * n));
            self.block.store_state(&self.ga, sinks.a.slice(at * n, len * n));
            sinks.d.slice(at, len).copy_from_slice(&self.gd[..len]);
            sinks.bias.slice(at, len).copy_from_slice(&self.gbias[..len]);
        }
    }

    /// States, decays and outputs of a chunk's tokens.
    #[inline(always)]
    fn recompute(&mut self, chunk: usize, tokens: std::ops::Range<usize>) {
        let n = self.dims.n;
        self.states[..n].copy_from_slice(&self.starts[chunk * n..][..n]);
        for (k, t) in tokens.enumerate() {
            self.block.prefetch(t + AHEAD);
            let raw = self.block.raw_steps(t);
            let (dt, x) = (self.block.steps(&raw), self.block.x(t));
            let (mut u, mut y) = ([T::ZERO; W], [T::ZERO; W]);
            for i in 0..W {
                u[i] = x[i] * dt[i];
                y[i] = x[i] * self.block.d[i];
            }
            let (b, c) = self.block.maps(t);
            let (before, after) = self.states[k * n..].split_at_mut(n);
            for j in 0..n {
                let (decay, a) = (&mut self.decays[k * n + j], &self.block.a[j]);
                for i in 0..W {
                    decay[i] = (dt[i] * a[i]).exp2();
                    let next = decay[i].mul_add(before[j][i], u[i] * b[j]);
                    after[j][i] = next;
                    y[i] = next.mul_add(c[j], y[i]);
                }
            }
            self.tokens[k] = Token { raw, dt, x, y };
        }
    }

    /// One token back in time: token `t`, the `k`-th of its chunk.
    #[inline(always)]
    fn token<S: pulp::Simd>(&mut self, simd: S, t: usize, k: usize, mut gy: [T; W], sinks: &Sinks<T>) {
        let (block, n) = (self.block, self.dims.n);
        let Token { raw, dt, x, y } = self.tokens[k];
        if let Some(z) = block.z(t) {
            let mut gz = [T::ZERO; W];
            for i in 0..W {
                gz[i] = gy[i] * y[i] * z[i].silu_grad();
                gy[i] *= z[i].silu();
            }
            self.store(&sinks.z, t, &gz);
        }
        let (mut u, mut gu, mut gdt) = ([T::ZERO; W], [T::ZERO; W], [T::ZERO; W]);
        for i in 0..W {
            u[i] = x[i] * dt[i];
        }
        let (b, c) = block.maps(t);
        let at = ((self.part.index * self.dims.b * self.dims.l + t) * self.dims.g + self.part.group) * n;
        // SAFETY: this task alone holds this part of the group on these tokens.
        let (gb, gc) = unsafe { (sinks.b.slice(at, n), sinks.c.slice(at, n)) };
        for j in 0..n {
            let (before, after) = (&self.states[k * n + j], &self.states[(k + 1) * n + j]);
            let (gh, ga) = (&mut self.gh[j], &mut self.ga[j]);
            let (decay, a) = (&self.decays[k * n + j], &block.a[j]);
            let mut g = [T::ZERO; W];
            for i in 0..W {
                g[i] = gy[i].mul_add(c[j], gh[i]);
                gu[i] = g[i].mul_add(b[j], gu[i]);
                gh[i] = g[i] * decay[i];
                let rate = gh[i] * before[i]; // gradient of Δ A
                gdt[i] = rate.mul_add(a[i], gdt[i]);
                ga[i] = rate.mul_add(dt[i], ga[i]);
            }
            gb[j] += T::dot(simd, &g, &u);
            gc[j] += T::dot(simd, &gy, after);
        }
        let mut gx = [T::ZERO; W];
        let ln_2 = T::ONE / T::LOG2_E; // the block's rates are A log2 e
        for i in 0..W {
            gx[i] = gu[i].mul_add(dt[i], gy[i] * block.d[i]);
            gdt[i] = gdt[i].mul_add(ln_2, gu[i] * x[i]);
            self.gd[i] = gy[i].mul_add(x[i], self.gd[i]);
        }
        block.raw_grad(&raw, &mut gdt);
        self.gbias.iter_mut().zip(&gdt).for_each(|(sum, &g)| *sum += g);
        self.store(&sinks.x, t, &gx);
        self.store(&sinks.dt, t, &gdt);
    }

    /// Writes this block's channels of token `t`.
    #[inline(always)]
    fn store(&self, sink: &Disjoint<T>, t: usize, values: &[T; W]) {
        // SAFETY: this task alone holds these channels of this sequence.
        let row = unsafe { sink.slice(t * self.dims.e + self.block.first, self.block.len) };
        put(row, values);
    }
}
