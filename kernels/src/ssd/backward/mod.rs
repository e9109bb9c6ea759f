//! Gradients of the scan on the CPU, chunk by chunk from the last to the first, in matrix products.
//!
//! With the notation of the forward pass, `dt = Δ`, and `∂Y` after the gate:
//! ```text
//! P = ∂Y Xᵀ            ∂S += P ∘ L Δ          ∂X = (S ∘ L Δ)ᵀ ∂Y + w ⊙ (B ∂Hᵀ)
//! ∂C = (decay_to ⊙ ∂Y) H + ∂S B               ∂B = (w ⊙ X) ∂H + ∂Sᵀ C
//! ∂H ← decay ⊙ ∂H + (decay_to ⊙ ∂Y)ᵀ C
//! ```
//! The logarithm of a token's decay enters every path that crosses the token: with `G[i,j]` the share of the loss that
//! flows from source j (a token, or the state before) to reader i (a later token, or the state after), its gradient is
//! `Σ_{j < k ≤ i} G[i,j]`, a sum of those terms alone, without cancellation.
//!
//! Each task owns its heads; sums over the heads of a group (∂B, ∂C) and over sequences are taken of the tasks' parts
//! afterwards, in a fixed order: results do not depend on the threads' timing.

mod head;

use candle_core::{Result, Tensor, bail};

use super::args::Dims;
use super::cpu::{Task, scale_heads};
use super::views::{Steps, Views, with_views};
use super::{OP, Scan};
use crate::host::{self, Disjoint, Rows};
use crate::parts;
use crate::simd::{Real, vectorized};
use crate::tile;

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
    let found = with_views(inputs, 2, node.rule, |v| all(v, &node.dims, node.chunk, y, state))?;
    let tensors = inputs
        .iter()
        .zip(found)
        .map(|(input, values)| input.as_ref().map(|input| host::tensor(values, input.shape().clone())));
    Ok(tensors.collect())
}

/// Where the tasks leave gradients: by token and head, by part of a group, or by sequence.
struct Sinks<T> {
    x: Disjoint<T>,
    dt: Disjoint<T>,
    z: Disjoint<T>,
    /// (parts, tokens, g, n)
    b: Disjoint<T>,
    c: Disjoint<T>,
    /// (sequences, h)
    a: Disjoint<T>,
    bias: Disjoint<T>,
    /// (sequences, h, p), or (sequences, h)
    d: Disjoint<T>,
    /// (sequences, h, p, n)
    state: Disjoint<T>,
    /// (tokens, h), of given decays.
    log: Disjoint<T>,
}

fn all<T: Real>(
    v: &Views<T>,
    dims: &Dims,
    chunk: usize,
    gy: Rows<T>,
    gstate: Option<&[T]>,
) -> [Vec<T>; super::views::INPUTS] {
    let &Dims { h, p, n, g, .. } = dims;
    let (sequences, tokens) = (dims.segments.len(), dims.b * dims.l);
    let (tasks, count) = parts::parts(sequences, g, h / g, 1);
    let zeros = host::zeros::<T>;
    let (mut x, mut dt, maps) = (zeros(tokens * h * p), zeros(tokens * h), tokens * g * n);
    let mut z = zeros(if v.z.is_some() { x.len() } else { 0 });
    let mut log = zeros(if v.log_decay.is_some() { dt.len() } else { 0 });
    let (mut b, mut c) = (zeros(count * maps), zeros(count * maps));
    let (mut a, mut bias) = (zeros(sequences * h), zeros(sequences * h));
    let skips = v.d.map_or(0, <[T]>::len);
    let (mut d, mut state) = (zeros(sequences * skips), zeros(sequences * h * p * n));
    let sinks = Sinks {
        x: Disjoint::new(&mut x),
        dt: Disjoint::new(&mut dt),
        z: Disjoint::new(&mut z),
        b: Disjoint::new(&mut b),
        c: Disjoint::new(&mut c),
        a: Disjoint::new(&mut a),
        bias: Disjoint::new(&mut bias),
        d: Disjoint::new(&mut d),
        state: Disjoint::new(&mut state),
        log: Disjoint::new(&mut log),
    };
    let steps = Steps::new(v, tokens, h);
    host::parallel(tasks.len(), |i| {
        let task = Task { v, dims, steps: &steps, part: tasks[i] };
        Reverse::new(task, chunk, gstate).run(gy, &sinks);
    });
    [
        x,
        dt,
        parts::sum(a, h),
        parts::sum(b, maps),
        parts::sum(c, maps),
        parts::sum(d, skips),
        parts::sum(bias, h),
        z,
        state,
        log,
    ]
}

/// The backward pass of one task, and its scratch; (q, w) are rows of tokens by channels of all heads.
struct Reverse<'a, T> {
    task: Task<'a, T>,
    chunk: usize,
    /// States before each chunk.
    starts: Vec<T>,
    /// Gradient of the state after the chunk at hand, and whether it is still zero.
    gh: Vec<T>,
    gh_empty: bool,
    /// S, ∂S, S ∘ L Δ, P and then G; (chunk, chunk).
    scores: Vec<T>,
    gscores: Vec<T>,
    mixed: Vec<T>,
    flows: Vec<T>,
    /// ∂Y after the gate, decays × ∂Y, ∂X, weighted X, C Hᵀ, B ∂Hᵀ; (q, w).
    gy: Vec<T>,
    gy_decayed: Vec<T>,
    gx: Vec<T>,
    weighted: Vec<T>,
    from_state: Vec<T>,
    to_state: Vec<T>,
    /// ∂B and ∂C of the chunk, (q, n).
    gmaps: [Vec<T>; 2],
    /// ∂Δ, and ∂ log decay where decays are given, (q, heads).
    gdt: Vec<T>,
    glog: Vec<T>,
    /// Each head's decay over the chunk.
    totals: Vec<T>,
    /// For sums as dot products.
    ones: Vec<T>,
    /// A row of L; shares of the state after; ∂ log decay; decays from the chunk's start.
    rows: [Vec<T>; 4],
    ga: Vec<T>,
    gbias: Vec<T>,
    gd: Vec<T>,
}

impl<'a, T: Real> Reverse<'a, T> {
    fn new(task: Task<'a, T>, chunk: usize, gstate: Option<&[T]>) -> Self {
        let zeros = |len: usize| vec![T::ZERO; len];
        let (square, wide) = (chunk * chunk, chunk * task.width());
        let (len, heads) = (task.state_range().1, task.part.len);
        let skips = task.v.d.map_or(0, |d| d.len() / task.dims.h) * heads;
        let mut gh = zeros(len);
        task.load_state(gstate, &mut gh);
        let mut this = Self {
            task,
            chunk,
            starts: Vec::new(),
            gh,
            gh_empty: gstate.is_none(),
            scores: zeros(square),
            gscores: zeros(square),
            mixed: zeros(square),
            flows: zeros(square),
            gy: zeros(wide),
            gy_decayed: zeros(wide),
            gx: zeros(wide),
            weighted: zeros(wide),
            from_state: zeros(wide),
            to_state: zeros(wide),
            gmaps: [zeros(chunk * task.dims.n), zeros(chunk * task.dims.n)],
            gdt: zeros(chunk * heads),
            glog: zeros(if task.v.log_decay.is_some() { chunk * heads } else { 0 }),
            totals: zeros(heads),
            ones: vec![T::ONE; chunk],
            rows: [zeros(chunk), zeros(chunk), zeros(chunk), zeros(chunk)],
            ga: zeros(heads),
            gbias: zeros(heads),
            gd: zeros(skips),
        };
        this.find_starts();
        this
    }

    fn find_starts(&mut self) {
        let (_, len) = self.task.state_range();
        let chunks = self.task.chunks(self.chunk).len();
        let mut starts = host::zeros(chunks.max(1) * len);
        self.task.load_state(self.task.v.state, &mut starts[..len]);
        for (i, at) in self.task.chunks(self.chunk).take(chunks.saturating_sub(1)).enumerate() {
            let (known, next) = starts[i * len..].split_at_mut(len);
            let next = &mut next[..len];
            next.copy_from_slice(known);
            self.weigh(at);
            self.task.advance(at, &self.weighted, &self.totals, next);
        }
        self.starts = starts;
    }

    /// Weighted inputs and total decays of all heads.
    fn weigh(&mut self, at: (usize, usize)) {
        let (task, weighted, totals) = (self.task, &mut self.weighted, &mut self.totals);
        vectorized(
            #[inline(always)]
            || {
                for (k, total) in totals.iter_mut().enumerate() {
                    *total = task.weigh(at, k, weighted);
                }
            },
        );
    }

    fn run(mut self, gy: Rows<T>, sinks: &Sinks<T>) {
        let len = self.task.state_range().1;
        let starts = std::mem::take(&mut self.starts);
        for (i, at) in self.task.chunks(self.chunk).enumerate().rev() {
            let first = i == 0 && self.task.v.state.is_none();
            let start = (!first).then(|| &starts[i * len..][..len]);
            self.one_chunk(at, start, gy, sinks);
        }
        let (segment, first, heads) = (self.task.part.segment, self.task.part.start, self.task.part.len);
        let at = segment * self.task.dims.h + first;
        let (state_at, _) = self.task.state_range();
        let per_head = self.gd.len() / heads.max(1);
        // SAFETY: this task alone holds these heads of this sequence.
        unsafe {
            sinks.state.slice(state_at, len).copy_from_slice(&self.gh);
            sinks.a.slice(at, heads).copy_from_slice(&self.ga);
            sinks.bias.slice(at, heads).copy_from_slice(&self.gbias);
            sinks.d.slice(at * per_head, self.gd.len()).copy_from_slice(&self.gd);
        }
    }

    /// One chunk; `start` is the state before it, `None` if it is zero.
    fn one_chunk(&mut self, at: (usize, usize), start: Option<&[T]>, gy: Rows<T>, sinks: &Sinks<T>) {
        self.task.scores(at, &mut self.scores, self.chunk);
        self.gscores.fill(T::ZERO);
        self.weigh(at);
        self.across(at, start);
        vectorized(
            #[inline(always)]
            || self.load_gradient(at, gy),
        );
        if self.task.v.z.is_some() {
            self.through_gate(at, start.is_some(), gy, sinks);
        }
        for k in 0..self.task.part.len {
            self.one_head(at, k, start);
        }
        self.maps(at, start);
        self.advance(at);
        vectorized(
            #[inline(always)]
            || self.finish(at, sinks),
        );
    }

    /// What passes between tokens and the states before and after: `C Hᵀ` and `B ∂Hᵀ`.
    fn across(&mut self, (t, q): (usize, usize), start: Option<&[T]>) {
        let (n, width) = (self.task.dims.n, self.task.width());
        let (b, c) = self.task.maps(t);
        match start {
            Some(state) => {
                let out = &mut self.from_state;
                tile::product((q, n, width), c.0, (c.1, 1), state, (1, n), out, (width, 1), false);
            }
            None => self.from_state.fill(T::ZERO),
        }
        if self.gh_empty {
            self.to_state.fill(T::ZERO);
        } else {
            let out = &mut self.to_state;
            tile::product((q, n, width), b.0, (b.1, 1), &self.gh, (1, n), out, (width, 1), false);
        }
    }

    #[inline(always)]
    fn load_gradient(&mut self, (t, q): (usize, usize), gy: Rows<T>) {
        let (first, width) = (self.task.part.start * self.task.dims.p, self.task.width());
        for (i, row) in self.gy.chunks_exact_mut(width).take(q).enumerate() {
            row.copy_from_slice(&gy.row(t + i)[first..first + width]);
        }
    }

    /// ∂z, from the outputs before the gate, computed again; turns ∂Y after the gate into that before it.
    fn through_gate(&mut self, (t, q): (usize, usize), has_state: bool, gy: Rows<T>, sinks: &Sinks<T>) {
        let (task, p, width) = (self.task, self.task.dims.p, self.task.width());
        let Some(z) = task.v.z else { return };
        let first = task.part.start;
        for k in 0..task.part.len {
            vectorized(
                #[inline(always)]
                || self.mix((t, q), k),
            );
            for i in 0..q {
                let factor = if has_state { self.rows[3][i] } else { T::ZERO };
                let from = &self.from_state[i * width + k * p..][..p];
                let y = &mut self.gx[i * width + k * p..][..p];
                y.iter_mut().zip(from).for_each(|(y, &f)| *y = factor * f);
                task.v.add_skip(task.dims, t + i, first + k, y);
            }
            let x = task.v.x.tail(t, (first + k) * p);
            let (stride, y) = (task.v.x.stride(), &mut self.gx[k * p..]);
            tile::product((q, q, p), &self.mixed, (self.chunk, 1), x, (stride, 1), y, (width, 1), true);
        }
        let columns = first * p..first * p + width;
        for i in 0..q {
            let (z, gy) = (&z.row(t + i)[columns.clone()], &gy.row(t + i)[columns.clone()]);
            let (y, out) = (&self.gx[i * width..][..width], &mut self.gy[i * width..][..width]);
            // SAFETY: this task alone writes these heads of this sequence.
            let gz = unsafe { sinks.z.slice((t + i) * task.dims.h * p + first * p, width) };
            vectorized(
                #[inline(always)]
                || {
                    for c in 0..width {
                        gz[c] = gy[c] * y[c] * z[c].silu_grad();
                        out[c] = gy[c] * z[c].silu();
                    }
                },
            );
        }
    }

    /// ∂B and ∂C of the chunk, over all heads of the task.
    fn maps(&mut self, (t, q): (usize, usize), start: Option<&[T]>) {
        let (n, width, chunk) = (self.task.dims.n, self.task.width(), self.chunk);
        let (b, c) = self.task.maps(t);
        let [gb, gc] = &mut self.gmaps;
        tile::product((q, q, n), &self.gscores, (1, chunk), c.0, (c.1, 1), gb, (n, 1), false);
        tile::product((q, q, n), &self.gscores, (chunk, 1), b.0, (b.1, 1), gc, (n, 1), false);
        if !self.gh_empty {
            tile::product((q, width, n), &self.weighted, (width, 1), &self.gh, (n, 1), gb, (n, 1), true);
        }
        if let Some(state) = start {
            tile::product((q, width, n), &self.gy_decayed, (width, 1), state, (n, 1), gc, (n, 1), true);
        }
    }

    /// ∂H of the state before the chunk.
    fn advance(&mut self, (t, q): (usize, usize)) {
        let (n, width) = (self.task.dims.n, self.task.width());
        let (_, c) = self.task.maps(t);
        vectorized(
            #[inline(always)]
            || scale_heads(&mut self.gh, &self.totals),
        );
        let gh = &mut self.gh;
        tile::product((width, q, n), &self.gy_decayed, (1, width), c.0, (c.1, 1), gh, (n, 1), true);
        self.gh_empty = false;
    }

    /// Writes the chunk's gradients.
    #[inline(always)]
    fn finish(&mut self, (t, q): (usize, usize), sinks: &Sinks<T>) {
        let (task, width) = (self.task, self.task.width());
        let (dims, part) = (task.dims, task.part);
        let tokens = dims.b * dims.l;
        for i in 0..q {
            let maps = ((part.index * tokens + t + i) * dims.g + part.group) * dims.n;
            let head = (t + i) * dims.h + part.start;
            // SAFETY: this task alone holds these heads, and this part of the group, on these tokens.
            let (gx, gdt, gb, gc) = unsafe {
                (
                    sinks.x.slice(head * dims.p, width),
                    sinks.dt.slice(head, part.len),
                    sinks.b.slice(maps, dims.n),
                    sinks.c.slice(maps, dims.n),
                )
            };
            gx.copy_from_slice(&self.gx[i * width..][..width]);
            gb.copy_from_slice(&self.gmaps[0][i * dims.n..][..dims.n]);
            gc.copy_from_slice(&self.gmaps[1][i * dims.n..][..dims.n]);
            if task.v.log_decay.is_some() {
                // SAFETY: as above.
                let glog = unsafe { sinks.log.slice(head, part.len) };
                glog.copy_from_slice(&self.glog[i * part.len..][..part.len]);
            }
            let steps = &self.gdt[i * part.len..][..part.len];
            for (k, (out, &g)) in gdt.iter_mut().zip(steps).enumerate() {
                *out = g * task.v.step_grad(task.v.raw_step(t + i, part.start + k));
                self.gbias[k] += *out;
            }
        }
    }
}
