//! The part of the backward pass that belongs to one head alone.

use super::Reverse;
use crate::simd::{Real, dot, vectorized};
use crate::tile;

impl<T: Real> Reverse<'_, T> {
    /// Head `k`'s `S ∘ L Δ`, and its decays from the chunk's start in `rows[3]`.
    #[inline(always)]
    pub(super) fn mix(&mut self, (t, q): (usize, usize), k: usize) {
        let [decays, _, _, from_start] = &mut self.rows;
        let mut total = T::ONE;
        for i in 0..q {
            let (dt, decay) = self.task.step(t + i, self.task.part.start + k);
            decays[..i].iter_mut().for_each(|l| *l *= decay);
            decays[i] = dt;
            total *= decay;
            from_start[i] = total;
            let (row, later) = self.mixed[i * self.chunk..][..q].split_at_mut(i + 1);
            for ((m, &s), &l) in row.iter_mut().zip(&self.scores[i * self.chunk..]).zip(decays.iter()) {
                *m = s * l;
            }
            later.fill(T::ZERO);
        }
    }

    /// All that belongs to one head alone.
    pub(super) fn one_head(&mut self, (t, q): (usize, usize), k: usize, start: Option<&[T]>) {
        let (task, p, width) = (self.task, self.task.dims.p, self.task.width());
        let stride = self.chunk;
        let x = task.v.x.tail(t, (task.part.start + k) * p);
        let gy = &self.gy[k * p..];
        let flows = &mut self.flows;
        tile::product((q, p, q), gy, (width, 1), x, (1, task.v.x.stride()), flows, (stride, 1), false);
        vectorized(
            #[inline(always)]
            || {
                self.mix((t, q), k);
                self.inside((t, q), k);
            },
        );
        let (gy, gx) = (&self.gy[k * p..], &mut self.gx[k * p..]);
        tile::product((q, q, p), &self.mixed, (1, stride), gy, (width, 1), gx, (width, 1), false);
        vectorized(
            #[inline(always)]
            || {
                self.with_states((t, q), k);
                self.skip((t, q), k);
                self.decays((t, q), k, start);
            },
        );
    }

    /// From P to ∂S, ∂Δ and the shares of the loss that flow between tokens.
    #[inline(always)]
    fn inside(&mut self, (t, q): (usize, usize), k: usize) {
        let (task, heads) = (self.task, self.task.part.len);
        let head = task.part.start + k;
        let [decays, gdt, dts, _] = &mut self.rows;
        gdt.fill(T::ZERO);
        for i in 0..q {
            let (dt, decay) = task.step(t + i, head);
            decays[..i].iter_mut().for_each(|l| *l *= decay);
            (decays[i], dts[i]) = (T::ONE, dt);
            let at = i * self.chunk;
            let (flows, gscores) = (&mut self.flows[at..=at + i], &mut self.gscores[at..=at + i]);
            let scores = &self.scores[at..=at + i];
            for j in 0..=i {
                let p = flows[j] * decays[j];
                gscores[j] = p.mul_add(dts[j], gscores[j]);
                let p = p * scores[j];
                gdt[j] += p;
                flows[j] = p * dts[j];
            }
        }
        for (j, &g) in gdt[..q].iter().enumerate() {
            self.gdt[j * heads + k] = g;
        }
    }

    /// What head `k` exchanges with the states: adds to ∂X and ∂Δ; leaves the shares in `rows[1]` (each token to the
    /// state after) and `rows[2]` (the state before to each token).
    #[inline(always)]
    fn with_states(&mut self, (t, q): (usize, usize), k: usize) {
        let (task, p, width, heads) = (self.task, self.task.dims.p, self.task.width(), self.task.part.len);
        let head = task.part.start + k;
        let [_, to_after, from_before, from_start] = &mut self.rows;
        let mut to_end = T::ONE;
        for j in (0..q).rev() {
            let (dt, decay) = task.step(t + j, head);
            let at = j * width + k * p;
            let x = &task.v.x.row(t + j)[head * p..][..p];
            let to_state = &self.to_state[at..at + p];
            let weight = to_end * dt;
            let share = to_end * dot(to_state, x);
            self.gdt[j * heads + k] += share;
            to_after[j] = share * dt;
            for (gx, &s) in self.gx[at..at + p].iter_mut().zip(to_state) {
                *gx = s.mul_add(weight, *gx);
            }
            to_end *= decay;
            let (gy, decayed) = (&self.gy[at..at + p], &mut self.gy_decayed[at..at + p]);
            from_before[j] = from_start[j] * dot(&self.from_state[at..at + p], gy);
            decayed.iter_mut().zip(gy).for_each(|(d, &g)| *d = g * from_start[j]);
        }
    }

    /// ∂D, and the skip's part of ∂X.
    #[inline(always)]
    fn skip(&mut self, (t, q): (usize, usize), k: usize) {
        let (task, p, width) = (self.task, self.task.dims.p, self.task.width());
        let head = task.part.start + k;
        let per_head = self.gd.len() / task.part.len;
        if per_head == 0 {
            return;
        }
        let gd = &mut self.gd[k * per_head..][..per_head];
        for i in 0..q {
            let at = i * width + k * p;
            let (gy, gx) = (&self.gy[at..at + p], &mut self.gx[at..at + p]);
            let x = &task.v.x.row(t + i)[head * p..][..p];
            for c in 0..p {
                gx[c] = gy[c].mul_add(task.v.skip(task.dims, head, c), gx[c]);
            }
            match gd {
                [one] => *one += dot(gy, x),
                _ => gd.iter_mut().zip(gy).zip(x).for_each(|((d, &g), &x)| *d = g.mul_add(x, *d)),
            }
        }
    }

    /// Of head `k`: ∂A and the decays' part of ∂Δ, or ∂ log decay.
    #[inline(always)]
    fn decays(&mut self, (t, q): (usize, usize), k: usize, start: Option<&[T]>) {
        let (task, heads) = (self.task, self.task.part.len);
        let (head, size) = (task.part.start + k, task.dims.p * task.dims.n);
        // Shares by source, summed over the readers from the token at hand on.
        let [_, sources, from_before, _] = &mut self.rows;
        let mut before = match start {
            Some(state) if !self.gh_empty => {
                self.totals[k] * dot(&state[k * size..][..size], &self.gh[k * size..][..size])
            }
            _ => T::ZERO,
        };
        let rate = task.v.a.get(head).copied();
        for i in (0..q).rev() {
            before += from_before[i];
            let flows = &self.flows[i * self.chunk..][..i];
            sources.iter_mut().zip(flows).for_each(|(source, &flow)| *source += flow);
            let share = before + dot(&sources[..i], &self.ones[..i]);
            match rate {
                Some(rate) => {
                    let (dt, _) = task.step(t + i, head);
                    self.gdt[i * heads + k] += share * rate;
                    self.ga[k] += share * dt;
                }
                None => self.glog[i * heads + k] = share,
            }
        }
    }
}
