//! Channels side by side in vector lanes: the unit of work of the forward and the backward scan.

use super::views::Views;
use crate::simd::{Real, lanes};

/// Up to `W` channels of one group; lanes past the last channel hold zeros and come to nothing.
pub(super) struct Block<'a, T, const W: usize> {
    v: &'a Views<'a, T>,
    /// First channel, and how many there are.
    pub(super) first: usize,
    pub(super) len: usize,
    group: usize,
    n: usize,
    /// `A log2 e`, a row for each state dimension.
    pub(super) a: Vec<[T; W]>,
    pub(super) d: [T; W],
    bias: [T; W],
}

impl<'a, T: Real, const W: usize> Block<'a, T, W> {
    #[inline(always)]
    pub(super) fn new(v: &'a Views<'a, T>, n: usize, group: usize, first: usize, len: usize) -> Self {
        let per_channel = |values: Option<&[T]>| lanes(values.map_or(&[], |v| &v[first..first + len]));
        let mut a = turned::<T, W>(&v.a[first * n..(first + len) * n], n);
        a.iter_mut().flatten().for_each(|a| *a *= T::LOG2_E);
        Self { v, first, len, group, n, a, d: per_channel(v.d), bias: per_channel(v.dt_bias) }
    }

    /// This block's part of a row of channels.
    #[inline(always)]
    pub(super) fn load(&self, row: &[T]) -> [T; W] {
        lanes(&row[self.first..self.first + self.len])
    }

    /// Asks for the rows of token `t`, if there is one: the hardware does not foresee steps of a whole row.
    #[inline(always)]
    pub(super) fn prefetch(&self, t: usize) {
        let at = self.first..self.first + self.len;
        self.v.x.prefetch(t, at.clone());
        self.v.dt.prefetch(t, at.clone());
        if let Some(z) = &self.v.z {
            z.prefetch(t, at);
        }
    }

    #[inline(always)]
    pub(super) fn x(&self, t: usize) -> [T; W] {
        self.load(self.v.x.row(t))
    }

    #[inline(always)]
    pub(super) fn z(&self, t: usize) -> Option<[T; W]> {
        self.v.z.map(|z| self.load(z.row(t)))
    }

    /// The group's maps at token `t`: (B, C).
    #[inline(always)]
    pub(super) fn maps(&self, t: usize) -> (&'a [T], &'a [T]) {
        let at = self.group * self.n;
        (&self.v.b.row(t)[at..at + self.n], &self.v.c.row(t)[at..at + self.n])
    }

    /// `dt + bias` at token `t`.
    #[inline(always)]
    pub(super) fn raw_steps(&self, t: usize) -> [T; W] {
        let mut dt = self.load(self.v.dt.row(t));
        for (dt, &bias) in dt.iter_mut().zip(&self.bias) {
            *dt += bias;
        }
        dt
    }

    /// Step sizes from [`Block::raw_steps`].
    #[inline(always)]
    pub(super) fn steps(&self, raw: &[T; W]) -> [T; W] {
        let mut dt = *raw;
        if self.v.softplus {
            for dt in &mut dt {
                *dt = dt.softplus();
            }
        }
        dt
    }

    /// Turns a gradient of the step sizes into one of their raw values.
    #[inline(always)]
    pub(super) fn raw_grad(&self, raw: &[T; W], grad: &mut [T; W]) {
        if self.v.softplus {
            for (grad, raw) in grad.iter_mut().zip(raw) {
                *grad *= raw.sigmoid();
            }
        }
    }

    /// This block's part of one sequence's state (e, n), turned; zeros if there is none.
    #[inline(always)]
    pub(super) fn load_state(&self, state: Option<&[T]>) -> Vec<[T; W]> {
        match state {
            Some(state) => turned(&state[self.first * self.n..][..self.len * self.n], self.n),
            None => vec![[T::ZERO; W]; self.n],
        }
    }

    /// Writes a turned state to this block's part of (e, n), given alone.
    #[inline(always)]
    pub(super) fn store_state(&self, h: &[[T; W]], state: &mut [T]) {
        for (i, row) in state.chunks_exact_mut(self.n).enumerate() {
            for (out, h) in row.iter_mut().zip(h) {
                *out = h[i];
            }
        }
    }
}

/// (channels, n) as n rows of lanes.
#[inline(always)]
fn turned<T: Real, const W: usize>(values: &[T], n: usize) -> Vec<[T; W]> {
    let mut out = vec![[T::ZERO; W]; n];
    for (i, row) in values.chunks_exact(n).enumerate() {
        for (out, &value) in out.iter_mut().zip(row) {
            out[i] = value;
        }
    }
    out
}

/// One token of one state dimension: decays the state, adds the input, reads it out.
#[inline(always)]
pub(super) fn advance<T: Real, const W: usize>(
    h: &mut [T; W],
    y: &mut [T; W],
    a: &[T; W],
    (dt, u): (&[T; W], &[T; W]),
    (b, c): (T, T),
) {
    for i in 0..W {
        let decay = (dt[i] * a[i]).exp2();
        let next = decay.mul_add(h[i], u[i] * b);
        h[i] = next;
        y[i] = next.mul_add(c, y[i]);
    }
}
