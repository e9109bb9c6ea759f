//! One token of one sequence: rows of h numbers in and out.

use super::args::Cell;
use crate::simd::Real;

/// What a token reads and leaves; every slice holds rows of `h`.
pub(super) struct Token<'a, T> {
    /// The inputs' side and the state's.
    pub(super) x: &'a [T],
    pub(super) q: &'a [T],
    /// h, which is advanced, and for the LSTM c.
    pub(super) state: &'a mut [T],
    pub(super) y: &'a mut [T],
    /// For the backward pass; empty where there will be none.
    pub(super) saved: &'a mut [T],
}

/// One token forward.
#[inline(always)]
pub(super) fn forward<T: Real>(cell: Cell, h: usize, token: Token<'_, T>) {
    match cell {
        Cell::Lstm => lstm(h, token),
        Cell::Gru => gru(h, token),
        Cell::Tanh => plain(
            h,
            token,
            #[inline(always)]
            |v| v.tanh(),
        ),
        Cell::Relu => plain(
            h,
            token,
            #[inline(always)]
            |v| Real::max(v, T::ZERO),
        ),
    }
}

#[inline(always)]
fn lstm<T: Real>(h: usize, Token { x, q, state, y, saved }: Token<'_, T>) {
    let (hs, cs) = state.split_at_mut(h);
    let (x, q, hs, cs, y) = (&x[..4 * h], &q[..4 * h], &mut hs[..h], &mut cs[..h], &mut y[..h]);
    let keep = !saved.is_empty();
    for k in 0..h {
        let i = (x[k] + q[k]).sigmoid();
        let f = (x[h + k] + q[h + k]).sigmoid();
        let g = Real::tanh(x[2 * h + k] + q[2 * h + k]);
        let o = (x[3 * h + k] + q[3 * h + k]).sigmoid();
        let c = f.mul_add(cs[k], i * g);
        cs[k] = c;
        hs[k] = o * Real::tanh(c);
        y[k] = hs[k];
        if keep {
            saved[k] = i;
            saved[h + k] = f;
            saved[2 * h + k] = g;
            saved[3 * h + k] = o;
            saved[4 * h + k] = c;
        }
    }
}

#[inline(always)]
fn gru<T: Real>(h: usize, Token { x, q, state, y, saved }: Token<'_, T>) {
    let (x, q, hs, y) = (&x[..3 * h], &q[..3 * h], &mut state[..h], &mut y[..h]);
    let keep = !saved.is_empty();
    for k in 0..h {
        let r = (x[k] + q[k]).sigmoid();
        let z = (x[h + k] + q[h + k]).sigmoid();
        let n = Real::tanh(r.mul_add(q[2 * h + k], x[2 * h + k]));
        hs[k] = z.mul_add(hs[k] - n, n);
        y[k] = hs[k];
        if keep {
            saved[k] = r;
            saved[h + k] = z;
            saved[2 * h + k] = n;
            saved[3 * h + k] = q[2 * h + k];
        }
    }
}

#[inline(always)]
fn plain<T: Real>(h: usize, Token { x, q, state, y, .. }: Token<'_, T>, f: impl Fn(T) -> T) {
    for k in 0..h {
        state[k] = f(x[k] + q[k]);
        y[k] = state[k];
    }
}

/// What a token reads and leaves on the way back; every slice holds rows of `h`.
pub(super) struct Gradients<'a, T> {
    pub(super) saved: &'a [T],
    /// This token's output, the one before it, and for the LSTM the c before it.
    pub(super) y: &'a [T],
    pub(super) h_before: &'a [T],
    pub(super) c_before: &'a [T],
    /// The output's own gradient.
    pub(super) dy: &'a [T],
    /// The state's gradient, from later tokens; becomes that part of the gradient of the state before that does not go
    /// through U.
    pub(super) dstate: &'a mut [T],
    /// Gradients of the inputs' side and of the state's.
    pub(super) dx: &'a mut [T],
    pub(super) dq: &'a mut [T],
}

/// One token backward.
#[inline(always)]
pub(super) fn backward<T: Real>(cell: Cell, h: usize, token: Gradients<'_, T>) {
    match cell {
        Cell::Lstm => lstm_back(h, token),
        Cell::Gru => gru_back(h, token),
        Cell::Tanh => plain_back(
            h,
            token,
            #[inline(always)]
            |y| T::ONE - y * y,
        ),
        Cell::Relu => plain_back(
            h,
            token,
            #[inline(always)]
            |y| if y > T::ZERO { T::ONE } else { T::ZERO },
        ),
    }
}

#[inline(always)]
fn lstm_back<T: Real>(h: usize, token: Gradients<'_, T>) {
    let Gradients { saved, c_before, dy, dstate, dx, dq, .. } = token;
    let (dh, dc) = dstate.split_at_mut(h);
    let (saved, c_before, dy) = (&saved[..5 * h], &c_before[..h], &dy[..h]);
    let (dh, dc, dx, dq) = (&mut dh[..h], &mut dc[..h], &mut dx[..4 * h], &mut dq[..4 * h]);
    for k in 0..h {
        let (i, f, g, o) = (saved[k], saved[h + k], saved[2 * h + k], saved[3 * h + k]);
        let squashed = Real::tanh(saved[4 * h + k]);
        let d = dy[k] + dh[k];
        let c = dc[k] + d * o * (T::ONE - squashed * squashed);
        dx[k] = c * g * i * (T::ONE - i);
        dx[h + k] = c * c_before[k] * f * (T::ONE - f);
        dx[2 * h + k] = c * i * (T::ONE - g * g);
        dx[3 * h + k] = d * squashed * o * (T::ONE - o);
        dc[k] = c * f;
        dh[k] = T::ZERO;
    }
    dq.copy_from_slice(dx);
}

#[inline(always)]
fn gru_back<T: Real>(h: usize, token: Gradients<'_, T>) {
    let Gradients { saved, h_before, dy, dstate, dx, dq, .. } = token;
    let (saved, h_before, dy) = (&saved[..4 * h], &h_before[..h], &dy[..h]);
    let (dh, dx, dq) = (&mut dstate[..h], &mut dx[..3 * h], &mut dq[..3 * h]);
    for k in 0..h {
        let (r, z, n, q) = (saved[k], saved[h + k], saved[2 * h + k], saved[3 * h + k]);
        let d = dy[k] + dh[k];
        let dn = d * (T::ONE - z) * (T::ONE - n * n);
        let dr = dn * q * r * (T::ONE - r);
        let dz = d * (h_before[k] - n) * z * (T::ONE - z);
        (dx[k], dq[k]) = (dr, dr);
        (dx[h + k], dq[h + k]) = (dz, dz);
        (dx[2 * h + k], dq[2 * h + k]) = (dn, dn * r);
        dh[k] = d * z;
    }
}

#[inline(always)]
fn plain_back<T: Real>(h: usize, token: Gradients<'_, T>, slope: impl Fn(T) -> T) {
    let Gradients { y, dy, dstate, dx, dq, .. } = token;
    for k in 0..h {
        dx[k] = (dy[k] + dstate[k]) * slope(y[k]);
        dq[k] = dx[k];
        dstate[k] = T::ZERO;
    }
}
