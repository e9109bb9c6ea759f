//! Gradients of the scans on the CPU, chunk by chunk from the last to the first, in matrix products.
//!
//! With the notation of the forward pass, in the coordinates whose decays are divided out:
//! ```text
//! ∂Ŝ = E_q ⊙ ∂S            ∂[U; V] = [B̂; K̂] ∂Ŝ + [Aqb Aqk]ᵀ ∂Y
//! ∂R = (I - Aab)⁻ᵀ ∂U      ∂V += Aakᵀ ∂R                             back substitution
//! ∂A = [∂R; ∂Y] [U; V]ᵀ    ∂[Â; Q̂] = ∂A [B̂; K̂] + [∂R; ∂Y] Sᵀ
//! ∂[B̂; K̂] = ∂Aᵀ [Â; Q̂] + [U; V] ∂Ŝᵀ                  ∂S ← ∂Ŝ + [Â; Q̂]ᵀ [∂R; ∂Y]
//! ```
//! The logarithm of a token's decay enters every path that crosses the token. Its gradient, channel by channel, is the
//! sum of what flows from before it (earlier tokens, the state before) to readers after it, taken as readers after it less
//! what flows among those; and of what flows from before it to the state after, a running sum of those terms alone. What
//! a token reads of itself crosses nothing and is left out of both.

use candle_core::{Result, Tensor, bail};

use super::Scan;
use super::args::Dims;
use super::cpu::{Chunk, MAX_CHUNK, Task, add_rows, cut, scale_rows};
use super::views::{INPUTS, RuleViews, Views, with_views};
use crate::host::{self, Disjoint, Rows};
use crate::parts;
use crate::segments::Segment;
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
        bail!("{}: expected gradients of two outputs", node.name)
    };
    let y = Rows::<T>::new(guard, layout, 2)?;
    let state = state.as_ref().map(|(guard, layout)| host::slice::<T>(guard, layout)).transpose()?;
    let found = with_views(inputs, 2, node.scale, |v| all(v, &node.dims, y, state))?;
    let tensors = inputs
        .iter()
        .zip(found)
        .map(|(input, values)| input.as_ref().map(|input| host::tensor(values, input.shape().clone())));
    Ok(tensors.collect())
}

/// Where the tasks leave gradients, in the order of the inputs.
type Sinks<T> = [Disjoint<T>; INPUTS];

fn all<T: Real>(v: &Views<T>, dims: &Dims, gy: Rows<T>, gstate: Option<&[T]>) -> [Vec<T>; INPUTS] {
    let &Dims { h, n, p, .. } = dims;
    let heads = dims.b * dims.l * h;
    let (plain, beta) = match v.rule {
        RuleViews::Plain { .. } => (heads * n, 0),
        RuleViews::Correct { .. } => (0, heads),
    };
    let decays = v.log_decay.map_or(0, |g| g.rows * g.width);
    let state = dims.segments.len() * h * n * p;
    let mut found =
        [heads * n, heads * n, heads * p, decays, plain, plain, beta, state].map(host::zeros::<T>);
    let sinks = found.each_mut().map(|values| Disjoint::new(values));
    let together = parts::heads_together(dims.segments.len(), h);
    let groups = h.div_ceil(together);
    host::parallel(dims.segments.len() * groups, |i| {
        let (segment, first) = (i / groups, i % groups * together);
        let heads = first..h.min(first + together);
        let task = |head| Task { v, dims, segment, head };
        let mut heads: Vec<_> = heads.map(|head| Reverse::new(task(head), gstate)).collect();
        let Segment { start, len } = dims.segments[segment];
        for block in (start..start + len).step_by(MAX_CHUNK) {
            let until = (block + MAX_CHUNK).min(start + len);
            heads.iter_mut().for_each(|head| head.find_starts(until));
        }
        for block in (start..start + len).step_by(MAX_CHUNK).rev() {
            heads.iter_mut().for_each(|head| head.run(block, gy, &sinks));
        }
        heads.iter().for_each(|head| head.finish(&sinks));
    });
    found
}

/// The backward pass of one head, and its scratch.
struct Reverse<'a, T> {
    chunk: Chunk<'a, T>,
    /// First tokens and lengths.
    chunks: Vec<(usize, usize)>,
    /// The first token of the next chunk, and the state before it.
    next: usize,
    state: Vec<T>,
    /// States before each chunk, (n, p).
    starts: Vec<T>,
    /// U of all tokens, (l, p).
    solved: Vec<T>,
    /// Gradient of the state after the chunk at hand, then of that before it.
    gstate: Vec<T>,
    /// The state before the chunk, after the first token's decay; and ∂Ŝ.
    start: Vec<T>,
    gend: Vec<T>,
    /// ∂R over ∂Y, (2q, p).
    greads: Vec<T>,
    /// ∂U over ∂V, (s q, p).
    gvalues: Vec<T>,
    /// ∂A, (2q, s q), and the diagonals of its lower half, (s q).
    gscores: Vec<T>,
    diagonals: Vec<T>,
    /// ∂Â over ∂Q̂, (2q, n).
    greaders: Vec<T>,
    /// ∂B̂ over ∂K̂, (s q, n): from the readers, and from the state after the chunk.
    gsources: [Vec<T>; 2],
    /// Gradients of the logarithms of the decays, (q, n).
    gdecays: Vec<T>,
    /// A running sum, (n).
    sums: Vec<T>,
}

impl<'a, T: Real> Reverse<'a, T> {
    fn new(task: Task<'a, T>, gstate: Option<&[T]>) -> Self {
        let zeros = |len: usize| vec![T::ZERO; len];
        let Dims { n, p, .. } = *task.dims;
        let mut gradient = zeros(n * p);
        task.load_state(gstate, &mut gradient);
        let chunk = Chunk::new(task);
        let mut state = zeros(n * p);
        task.load_state(task.v.state, &mut state);
        let Segment { start: next, len } = task.dims.segments[task.segment];
        Self {
            chunks: Vec::new(),
            next,
            state,
            starts: Vec::new(),
            solved: zeros(len * p),
            gstate: gradient,
            start: zeros(n * p),
            gend: zeros(n * p),
            greads: zeros(chunk.reads.len()),
            gvalues: zeros(chunk.values.len()),
            gscores: zeros(chunk.scores.len()),
            diagonals: zeros(chunk.sources.len() / n),
            greaders: zeros(chunk.readers.len()),
            gsources: [zeros(chunk.sources.len()), zeros(chunk.sources.len())],
            gdecays: zeros(chunk.decays.len()),
            sums: zeros(n),
            chunk,
        }
    }

    /// The forward pass again, for the states before the chunks and U, up to token `until` or a little further.
    fn find_starts(&mut self, until: usize) {
        let (task, chunk) = (self.chunk.task, &mut self.chunk);
        let p = task.dims.p;
        let Segment { start, len } = task.dims.segments[task.segment];
        while self.next < until {
            let t = self.next;
            self.starts.extend_from_slice(&self.state);
            let q = chunk.load(t, start + len - t);
            chunk.scores();
            chunk.read(&mut self.state);
            chunk.solve();
            chunk.advance(&mut self.state);
            self.solved[(t - start) * p..][..q * p].copy_from_slice(&chunk.values[..q * p]);
            self.chunks.push((t, q));
            self.next += q;
        }
    }

    /// The chunks that begin at token `from` or later, those after them done.
    fn run(&mut self, from: usize, gy: Rows<T>, sinks: &Sinks<T>) {
        let task = self.chunk.task;
        let p = task.dims.p;
        let first = task.dims.segments[task.segment].start;
        while let Some((t, q)) = self.chunks.pop_if(|(t, _)| *t >= from) {
            let i = self.chunks.len();
            self.chunk.load(t, q);
            self.chunk.scores();
            self.chunk.values[..q * p].copy_from_slice(&self.solved[(t - first) * p..][..q * p]);
            for (i, row) in self.greads[q * p..2 * q * p].chunks_exact_mut(p).enumerate() {
                row.copy_from_slice(&gy.row(t + i)[task.head * p..][..p]);
            }
            self.begin(i);
            self.values();
            self.maps();
            self.states(i);
            self.store_all(sinks);
        }
    }

    /// The gradient of the state before the first token, out.
    fn finish(&self, sinks: &Sinks<T>) {
        let task = self.chunk.task;
        let Dims { h, n, p, .. } = *task.dims;
        // SAFETY: this task alone holds this head of this sequence.
        let sink = unsafe { sinks[7].slice((task.segment * h + task.head) * n * p, n * p) };
        sink.copy_from_slice(&self.gstate);
    }

    /// The state before the chunk `i` after its first decay, and ∂Ŝ.
    fn begin(&mut self, i: usize) {
        let Dims { n, p, .. } = *self.chunk.task.dims;
        let (t, q) = self.chunk.at;
        let decayed = self.chunk.task.log_decay(t).is_some();
        self.start.copy_from_slice(&self.starts[i * n * p..][..n * p]);
        self.gend.copy_from_slice(&self.gstate);
        vectorized(
            #[inline(always)]
            || {
                scale_rows(&mut self.start, &self.chunk.first, decayed);
                scale_rows(&mut self.gend, &self.chunk.decays[(q - 1) * n..][..n], decayed);
            },
        );
    }

    /// ∂U, ∂R and ∂V.
    fn values(&mut self) {
        let Dims { n, p, .. } = *self.chunk.task.dims;
        let (chunk, q, rows) = (&self.chunk, self.chunk.at.1, self.chunk.rows());
        let gvalues = &mut self.gvalues;
        let scores = &chunk.scores[q * rows..];
        tile::product((rows, n, p), &chunk.sources, (n, 1), &self.gend, (p, 1), gvalues, (p, 1), false);
        tile::product((rows, q, p), scores, (1, rows), &self.greads[q * p..], (p, 1), gvalues, (p, 1), true);
        let (us, vs) = gvalues.split_at_mut(q * p);
        vectorized(
            #[inline(always)]
            || {
                for i in (0..q).rev() {
                    let (rest, known) = us[..q * p].split_at_mut((i + 1) * p);
                    add_rows(&mut rest[i * p..], known, |j| chunk.scores[(i + 1 + j) * rows + i]);
                }
            },
        );
        self.greads[..q * p].copy_from_slice(us);
        if chunk.plain {
            tile::product((q, q, p), &chunk.scores[q..], (1, rows), us, (p, 1), vs, (p, 1), true);
        }
    }

    /// ∂A, and the gradients of readers and sources but for what a token reads of itself.
    fn maps(&mut self) {
        let Dims { n, p, .. } = *self.chunk.task.dims;
        let (chunk, q, rows) = (&self.chunk, self.chunk.at.1, self.chunk.rows());
        let (greads, gscores) = (&self.greads, &mut self.gscores);
        tile::product((2 * q, p, rows), greads, (p, 1), &chunk.values, (1, p), gscores, (rows, 1), false);
        for (j, diagonal) in self.diagonals[..rows].iter_mut().enumerate() {
            *diagonal = gscores[(q + j % q) * rows + j];
        }
        cut(gscores, q, rows, 0);
        let greaders = &mut self.greaders;
        tile::product((2 * q, p, n), greads, (p, 1), &self.start, (1, p), greaders, (n, 1), false);
        tile::product((2 * q, rows, n), gscores, (rows, 1), &chunk.sources, (n, 1), greaders, (n, 1), true);
        let [inside, after] = &mut self.gsources;
        tile::product((rows, 2 * q, n), gscores, (1, rows), &chunk.readers, (n, 1), inside, (n, 1), false);
        tile::product((rows, p, n), &chunk.values, (p, 1), &self.gend, (1, p), after, (n, 1), false);
    }

    /// The gradient of the state before chunk `i`, of the first token's a, and of the logarithms of the decays.
    #[expect(clippy::needless_range_loop, reason = "a channel's row in four matrices")]
    fn states(&mut self, i: usize) {
        let Dims { n, p, .. } = *self.chunk.task.dims;
        let (chunk, (t, q)) = (&self.chunk, self.chunk.at);
        let decayed = chunk.task.log_decay(t).is_some();
        let gstate = &mut self.gstate;
        gstate.copy_from_slice(&self.gend);
        tile::product((n, 2 * q, p), &chunk.readers, (1, n), &self.greads, (p, 1), gstate, (p, 1), true);
        vectorized(
            #[inline(always)]
            || {
                if decayed {
                    for c in 0..n {
                        let row = c * p..(c + 1) * p;
                        let start = &self.start[row.clone()];
                        self.gdecays[c] = dot(start, &gstate[row.clone()]);
                        self.sums[c] = dot(start, &self.gend[row]);
                    }
                    scale_rows(gstate, &chunk.first, true);
                }
                if let RuleViews::Plain { a, .. } = chunk.task.v.rule {
                    let (before, read) = (&self.starts[i * n * p..][..n * p], &self.greads[..p]);
                    let a = chunk.task.keys(&a, t);
                    for c in 0..n {
                        let row = c * p..(c + 1) * p;
                        self.greaders[c] = dot(&before[row.clone()], read);
                        gstate[row].iter_mut().zip(read).for_each(|(g, &r)| *g = a[c].mul_add(r, *g));
                    }
                }
            },
        );
        if decayed {
            vectorized(
                #[inline(always)]
                || self.flows(),
            );
        }
    }

    /// Gradients of the logarithms of the decays of all tokens but the first.
    #[inline(always)]
    fn flows(&mut self) {
        let (n, (_, q), chunk) = (self.chunk.task.dims.n, self.chunk.at, &self.chunk);
        let [inside, after] = &self.gsources;
        // From before token i to the state after the chunk; `sums` begins with what the state before contributes.
        for i in 1..q {
            for block in (0..chunk.rows()).step_by(q) {
                let row = (block + i - 1) * n..(block + i) * n;
                add_products(&mut self.sums, &chunk.sources[row.clone()], &after[row]);
            }
            self.gdecays[i * n..][..n].copy_from_slice(&self.sums);
        }
        // From before token i to it and the readers after.
        self.sums.fill(T::ZERO);
        for i in (1..q).rev() {
            let row = |k: usize| k * n..(k + 1) * n;
            for block in (0..chunk.rows()).step_by(q) {
                let (sources, inside) = (&chunk.sources[row(block + i)], &inside[row(block + i)]);
                for ((sum, &x), &g) in self.sums.iter_mut().zip(sources).zip(inside) {
                    *sum = (-x).mul_add(g, *sum);
                }
            }
            add_products(&mut self.sums, &chunk.readers[row(q + i)], &self.greaders[row(q + i)]);
            if !chunk.plain {
                add_products(&mut self.sums, &chunk.readers[row(i)], &self.greaders[row(i)]);
            }
            self.gdecays[row(i)].iter_mut().zip(&self.sums).for_each(|(g, &s)| *g += s);
            if chunk.plain {
                add_products(&mut self.sums, &chunk.readers[row(i)], &self.greaders[row(i)]);
            }
        }
    }

    /// Gradients of the tokens' own tensors, out.
    fn store_all(&mut self, sinks: &Sinks<T>) {
        vectorized(
            #[inline(always)]
            || {
                self.own_reads();
                for i in 0..self.chunk.at.1 {
                    self.store(i, sinks);
                }
            },
        );
    }

    /// What tokens read of themselves; and both gradients of the sources in one.
    #[inline(always)]
    fn own_reads(&mut self) {
        let (n, q, chunk) = (self.chunk.task.dims.n, self.chunk.at.1, &self.chunk);
        let [inside, after] = &mut self.gsources;
        for j in 0..chunk.rows() {
            let (reader, row, d) = ((q + j % q) * n, j * n..(j + 1) * n, self.diagonals[j]);
            let (readers, greaders) =
                (&chunk.readers[reader..reader + n], &mut self.greaders[reader..reader + n]);
            let (sources, inside, after) =
                (&chunk.sources[row.clone()], &mut inside[row.clone()], &after[row]);
            for c in 0..n {
                greaders[c] = d.mul_add(sources[c], greaders[c]);
                inside[c] = d.mul_add(readers[c], inside[c]) + after[c];
            }
        }
    }

    /// Token `i` of the chunk: decays multiplied in again.
    #[inline(always)]
    fn store(&mut self, i: usize, sinks: &Sinks<T>) {
        let (task, chunk, (t, q)) = (self.chunk.task, &self.chunk, self.chunk.at);
        let Dims { h, n, p, .. } = *task.dims;
        let head = (t + i) * h + task.head;
        // SAFETY: this task alone writes this head of this sequence.
        let sink = |k: usize, width: usize| unsafe { sinks[k].slice(head * width, width) };
        let row = |k: usize| k * n..(k + 1) * n;
        let decays = &chunk.decays[row(i)];
        let (gq, gk, gv) = (sink(0, n), sink(1, n), sink(2, p));
        for ((out, &g), &e) in gq.iter_mut().zip(&self.greaders[row(q + i)]).zip(decays) {
            *out = task.v.scale * g * e;
        }
        if let Some(g) = task.log_decay(t + i) {
            let gdecays = &self.gdecays[row(i)];
            match sink(3, g.len()) {
                [one] => *one = gdecays.iter().copied().sum(),
                many => many.copy_from_slice(gdecays),
            }
        }
        let gsources = &self.gsources[0];
        match task.v.rule {
            RuleViews::Plain { .. } => {
                let (ga, gb) = (sink(4, n), sink(5, n));
                ga.copy_from_slice(&self.greaders[row(i)]);
                if i > 0 {
                    ga.iter_mut().zip(&chunk.decays[row(i - 1)]).for_each(|(g, &e)| *g *= e);
                }
                let sources = gsources[row(i)].iter().zip(&gsources[row(q + i)]).zip(decays);
                for ((gb, gk), ((&b, &k), &e)) in gb.iter_mut().zip(gk).zip(sources) {
                    let inverse = T::ONE / e;
                    *gb = b * inverse;
                    *gk = k * inverse;
                }
                gv.copy_from_slice(&self.gvalues[(q + i) * p..][..p]);
            }
            RuleViews::Correct { beta } => {
                let beta = beta.row(t + i)[task.head];
                let (k, injected) = (task.keys(&task.v.k, t + i), &self.gvalues[i * p..][..p]);
                let mut gbeta = dot(task.values(t + i), injected);
                gv.iter_mut().zip(injected).for_each(|(out, &g)| *out = beta * g);
                let gs = self.greaders[row(i)].iter().zip(&gsources[row(i)]).zip(decays);
                for ((out, &k), ((&reader, &source), &e)) in gk.iter_mut().zip(k).zip(gs) {
                    let reader = -reader * e;
                    gbeta = k.mul_add(reader, gbeta);
                    *out = beta.mul_add(reader, source / e);
                }
                sink(6, 1)[0] = gbeta;
            }
        }
    }
}

#[inline(always)]
fn add_products<T: Real>(sums: &mut [T], a: &[T], b: &[T]) {
    for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
        *sum = a.mul_add(b, *sum);
    }
}
