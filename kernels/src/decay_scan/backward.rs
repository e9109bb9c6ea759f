//! The backward pass on the CPU, chunk by chunk from the last to the first.
//!
//! With the notation of the forward pass, S the state before a chunk and G the gradient of that after it:
//! ```text
//! P = ∂Y Vᵀ            ∂V = Aᵀ ∂Y + (K ⊙ E[last, ·]) G
//! ∂q_i = E[i, start] ⊙ (S ∂y_i) + Σ_j P[i,j] k_j ⊙ E[i,j]
//! ∂k_j = E[last, j] ⊙ (G v_j)   + Σ_i P[i,j] q_i ⊙ E[i,j]
//! G ← diag(E[last, start]) G + (Q ⊙ E[·, start])ᵀ ∂Y
//! ```
//! A log decay enters every path that crosses its token: its gradient is the sum of the shares of the loss that flow
//! from earlier sources (tokens, and the state before) to readers from there on (tokens, and the state after), of those
//! terms alone. The well-known difference of running sums of `q ∂q - k ∂k` would lose what cancels in it.

use candle_core::{Result, Tensor, bail};

use super::args::Dims;
use super::cpu::{CHUNK, Chunk, Task, decay_rows};
use super::views::{INPUTS, Views, with_views};
use super::{OP, Scan};
use crate::host::{self, Disjoint, Rows};
use crate::parts;
use crate::simd::{Real, dot, vectorized};
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
    let found = with_views(inputs, 2, |v| all(v, &node.dims, y, state))?;
    let tensors = inputs
        .iter()
        .zip(found)
        .map(|(input, values)| input.as_ref().map(|input| host::tensor(values, input.shape().clone())));
    Ok(tensors.collect())
}

/// Where the tasks leave gradients: by token and head, or by sequence and head.
struct Sinks<T> {
    q: Disjoint<T>,
    k: Disjoint<T>,
    v: Disjoint<T>,
    log_decay: Disjoint<T>,
    bonus: Disjoint<T>,
    state: Disjoint<T>,
}

fn all<T: Real>(v: &Views<T>, dims: &Dims, gy: Rows<T>, gstate: Option<&[T]>) -> [Vec<T>; INPUTS] {
    let &Dims { h, n, p, .. } = dims;
    let (sequences, tokens) = (dims.segments.len(), dims.b * dims.l);
    let [mut q, mut k, mut log_decay] = std::array::from_fn(|_| host::zeros::<T>(tokens * h * n));
    let (mut values, mut state) = (host::zeros(tokens * h * p), host::zeros(sequences * h * n * p));
    let mut bonus = host::zeros(if v.bonus.is_some() { sequences * h * n } else { 0 });
    let sinks = Sinks {
        q: Disjoint::new(&mut q),
        k: Disjoint::new(&mut k),
        v: Disjoint::new(&mut values),
        log_decay: Disjoint::new(&mut log_decay),
        bonus: Disjoint::new(&mut bonus),
        state: Disjoint::new(&mut state),
    };
    let together = parts::heads_together(sequences, h);
    let groups = h.div_ceil(together);
    host::parallel(sequences * groups, |i| {
        let (segment, first) = (i / groups, i % groups * together);
        let task = |head| Task { v, dims, segment, head };
        let heads = first..h.min(first + together);
        let mut heads: Vec<_> = heads.map(|head| Reverse::new(task(head), gstate)).collect();
        for (i, at) in task(first).chunks().enumerate() {
            heads.iter_mut().for_each(|head| head.find_start(i, at));
        }
        for (i, at) in task(first).chunks().enumerate().rev() {
            heads.iter_mut().for_each(|head| head.run(i, at, gy, &sinks));
        }
        heads.iter().for_each(|head| head.finish(&sinks));
    });
    [q, k, values, log_decay, parts::sum(bonus, if v.bonus.is_some() { h * n } else { 0 }), state]
}

/// The backward pass of one head, and its scratch; (CHUNK, n) each, rows of tokens, where not told otherwise.
struct Reverse<'a, T> {
    task: Task<'a, T>,
    chunk: Chunk<T>,
    /// States before each chunk, (n, p) each.
    starts: Vec<T>,
    /// G, (n, p), and whether it is still zero.
    gs: Vec<T>,
    gs_empty: bool,
    /// ∂Y and ∂V of the chunk, (CHUNK, p).
    gy: Vec<T>,
    gv: Vec<T>,
    /// P, (CHUNK, CHUNK).
    flows: Vec<T>,
    /// S ∂y, then ∂q; G v, then ∂k.
    gq: Vec<T>,
    gk: Vec<T>,
    glog: Vec<T>,
    /// Decays between the reader at hand and its sources.
    between: Vec<T>,
    /// Shares of the loss from sources up to the one at hand, (n).
    shares: Vec<T>,
    gbonus: Vec<T>,
}

impl<'a, T: Real> Reverse<'a, T> {
    fn new(task: Task<'a, T>, gstate: Option<&[T]>) -> Self {
        let zeros = |len: usize| vec![T::ZERO; len];
        let (n, p) = (task.dims.n, task.dims.p);
        let mut gs = zeros(n * p);
        task.load_state(gstate, &mut gs);
        let mut starts = host::zeros(task.chunks().len().max(1) * n * p);
        task.load_state(task.v.state, &mut starts[..n * p]);
        Self {
            task,
            chunk: Chunk::new(n),
            starts,
            gs,
            gs_empty: gstate.is_none(),
            gy: zeros(CHUNK * p),
            gv: zeros(CHUNK * p),
            flows: zeros(CHUNK * CHUNK),
            gq: zeros(CHUNK * n),
            gk: zeros(CHUNK * n),
            glog: zeros(CHUNK * n),
            between: zeros(CHUNK * n),
            shares: zeros(n),
            gbonus: zeros(task.bonus().map_or(0, <[T]>::len)),
        }
    }

    /// The state before the chunk `i` after this one, from that before this one.
    fn find_start(&mut self, i: usize, at: (usize, usize)) {
        let (task, len) = (self.task, self.gs.len());
        let (known, next) = self.starts[i * len..].split_at_mut(len);
        if let Some(next) = next.get_mut(..len) {
            next.copy_from_slice(known);
            self.chunk.find_decays(&task, at);
            self.chunk.advance(&task, at, next, i == 0 && task.v.state.is_none());
        }
    }

    /// Chunk `i`, those after it done.
    fn run(&mut self, i: usize, at: (usize, usize), gy: Rows<T>, sinks: &Sinks<T>) {
        let first = i == 0 && self.task.v.state.is_none();
        let starts = std::mem::take(&mut self.starts);
        let start = (!first).then(|| &starts[i * self.gs.len()..][..self.gs.len()]);
        self.one_chunk(at, start, gy);
        self.starts = starts;
        self.write(at, sinks);
    }

    /// Gradients of the state before the first token and of the bonus, out.
    fn finish(&self, sinks: &Sinks<T>) {
        let task = self.task;
        let (state_at, len) = task.state_range();
        let at = (task.segment * task.dims.h + task.head) * self.gbonus.len();
        // SAFETY: this task alone holds this head of this sequence.
        unsafe {
            sinks.state.slice(state_at, len).copy_from_slice(&self.gs);
            sinks.bonus.slice(at, self.gbonus.len()).copy_from_slice(&self.gbonus);
        }
    }

    /// One chunk; `start` is the state before it, `None` if it is zero.
    fn one_chunk(&mut self, (t, c): (usize, usize), start: Option<&[T]>, gy: Rows<T>) {
        let task = self.task;
        let (n, p) = (task.dims.n, task.dims.p);
        self.chunk.find(&task, (t, c));
        for (i, row) in self.gy.chunks_exact_mut(p).take(c).enumerate() {
            row.copy_from_slice(&gy.row(t + i)[task.head * p..][..p]);
        }
        let (v, stride) = task.values(t);
        let (gy, flows) = (&self.gy, &mut self.flows);
        tile::product((c, p, c), gy, (p, 1), v, (1, stride), flows, (CHUNK, 1), false);
        tile::product((c, c, p), &self.chunk.scores, (1, CHUNK), gy, (p, 1), &mut self.gv, (p, 1), false);
        match start {
            Some(state) => tile::product((c, p, n), gy, (p, 1), state, (1, p), &mut self.gq, (n, 1), false),
            None => self.gq.fill(T::ZERO),
        }
        if self.gs_empty {
            self.gk.fill(T::ZERO);
        } else {
            self.chunk.keys_times(c, &self.gs, p, &mut self.gv);
            tile::product((c, p, n), v, (stride, 1), &self.gs, (1, p), &mut self.gk, (n, 1), false);
        }
        vectorized(
            #[inline(always)]
            || {
                self.through_state((t, c), start);
                self.inside((t, c));
            },
        );
        if !self.gs_empty {
            decay_rows(&mut self.gs, &self.chunk.total);
        }
        let (queries, gs) = (&self.chunk.queries, &mut self.gs);
        tile::product((n, c, p), queries, (1, n), &self.gy, (p, 1), gs, (p, 1), !self.gs_empty);
        self.gs_empty = false;
    }

    /// What flows to the state after the chunk, from that before it and from the tokens: ∂k, and ∂ log decay.
    #[inline(always)]
    fn through_state(&mut self, (t, c): (usize, usize), start: Option<&[T]>) {
        let (task, n, p) = (self.task, self.task.dims.n, self.task.dims.p);
        match start {
            Some(state) if !self.gs_empty => {
                let rows = state.chunks_exact(p).zip(self.gs.chunks_exact(p));
                for ((share, (s, g)), &w) in self.shares.iter_mut().zip(rows).zip(&self.chunk.total) {
                    *share = w * dot(s, g);
                }
            }
            _ => self.shares.fill(T::ZERO),
        }
        for j in 0..c {
            let (_, k) = task.query_key(t + j);
            let (gk, glog) = (&mut self.gk[j * n..][..n], &mut self.glog[j * n..][..n]);
            let (to_end, shares) = (&self.chunk.to_end[j * n..][..n], &mut self.shares[..n]);
            for x in 0..n {
                glog[x] = shares[x];
                gk[x] *= to_end[x];
                shares[x] = k[x].mul_add(gk[x], shares[x]);
            }
        }
    }

    /// What flows to the chunk's tokens, from the state before and from each other: ∂q, ∂k, ∂ log decay, ∂u.
    #[inline(always)]
    fn inside(&mut self, (t, c): (usize, usize)) {
        let (task, n) = (self.task, self.task.dims.n);
        let delayed = task.bonus().is_some();
        for i in 0..c {
            let (q, _) = task.query_key(t + i);
            self.find_between(i, delayed);
            // The last decay on the way to this reader.
            let last = if delayed { i.checked_sub(1) } else { Some(i) };
            let gq = &mut self.gq[i * n..][..n];
            let (from_start, shares) = (&self.chunk.from_start[i * n..][..n], &mut self.shares[..n]);
            for x in 0..n {
                gq[x] *= from_start[x];
                shares[x] = q[x] * gq[x];
            }
            if last.is_some() {
                add(&mut self.glog[..n], shares);
            }
            for j in 0..i {
                let (_, k) = task.query_key(t + j);
                let flow = self.flows[i * CHUNK + j];
                let (between, gk) = (&self.between[j * n..][..n], &mut self.gk[j * n..][..n]);
                for x in 0..n {
                    let reach = flow * between[x];
                    gq[x] = reach.mul_add(k[x], gq[x]);
                    let share = reach * q[x];
                    gk[x] += share;
                    shares[x] = share.mul_add(k[x], shares[x]);
                }
                if last.is_some_and(|last| j < last) {
                    add(&mut self.glog[(j + 1) * n..][..n], shares);
                }
            }
            self.own((t, i));
        }
    }

    /// Decays from each earlier token of the chunk to reader `i`.
    #[inline(always)]
    fn find_between(&mut self, i: usize, delayed: bool) {
        let n = self.task.dims.n;
        let Some(before) = i.checked_sub(1) else { return };
        let nearest = &mut self.between[before * n..][..n];
        if delayed {
            nearest.fill(T::ONE);
        } else {
            nearest.copy_from_slice(&self.chunk.factors[i * n..][..n]);
        }
        for j in (0..before).rev() {
            let (out, known) = self.between[j * n..].split_at_mut(n);
            let factors = &self.chunk.factors[(j + 1) * n..][..n];
            for ((out, &known), &w) in out.iter_mut().zip(&known[..n]).zip(factors) {
                *out = known * w;
            }
        }
    }

    /// What token `i` of the chunk says to itself.
    #[inline(always)]
    fn own(&mut self, (t, i): (usize, usize)) {
        let (task, n) = (self.task, self.task.dims.n);
        let ((q, k), flow) = (task.query_key(t + i), self.flows[i * CHUNK + i]);
        let (gq, gk) = (&mut self.gq[i * n..][..n], &mut self.gk[i * n..][..n]);
        if let Some(u) = task.bonus() {
            let gu = &mut self.gbonus[..n];
            for x in 0..n {
                gq[x] = (flow * u[x]).mul_add(k[x], gq[x]);
                gk[x] = (flow * u[x]).mul_add(q[x], gk[x]);
                gu[x] = (flow * q[x]).mul_add(k[x], gu[x]);
            }
        } else {
            for x in 0..n {
                gq[x] = flow.mul_add(k[x], gq[x]);
                gk[x] = flow.mul_add(q[x], gk[x]);
            }
        }
    }

    /// Writes the chunk's gradients.
    fn write(&self, (t, c): (usize, usize), sinks: &Sinks<T>) {
        let (task, n, p) = (self.task, self.task.dims.n, self.task.dims.p);
        for i in 0..c {
            let (at, from) = (task.at(t + i, n), i * n..(i + 1) * n);
            // SAFETY: this task alone writes this head of this sequence.
            unsafe {
                sinks.q.slice(at, n).copy_from_slice(&self.gq[from.clone()]);
                sinks.k.slice(at, n).copy_from_slice(&self.gk[from.clone()]);
                sinks.log_decay.slice(at, n).copy_from_slice(&self.glog[from]);
                sinks.v.slice(task.at(t + i, p), p).copy_from_slice(&self.gv[i * p..(i + 1) * p]);
            }
        }
    }
}

#[inline(always)]
fn add<T: Real>(to: &mut [T], what: &[T]) {
    to.iter_mut().zip(what).for_each(|(to, &what)| *to += what);
}
