//! Numbers of neighbouring channels in vector lanes: one plane of lanes for real numbers, two for complex ones.

use crate::host::Disjoint;
use crate::simd::Real;

/// C planes (all real parts, then all imaginary parts) of W channels.
pub(crate) type Lanes<T, const C: usize, const W: usize> = [[T; W]; C];

/// Channels `first..first + len`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Channels {
    pub(crate) first: usize,
    pub(crate) len: usize,
}

/// The channels of a token whose row holds planes of `p` channels; lanes past `len` are zero.
#[inline(always)]
pub(crate) fn load<T: Real, const C: usize, const W: usize>(
    row: &[T],
    p: usize,
    Channels { first, len }: Channels,
) -> Lanes<T, C, W> {
    let mut out = [[T::ZERO; W]; C];
    for (plane, out) in out.iter_mut().enumerate() {
        let from = &row[plane * p + first..];
        if len == W {
            out.copy_from_slice(&from[..W]);
        } else {
            out[..len].copy_from_slice(&from[..len]);
        }
    }
    out
}

/// Writes what [`load`] reads, into the row that starts at `at`.
///
/// # Safety
/// Nobody else reads or writes these channels of this row meanwhile.
#[inline(always)]
pub(crate) unsafe fn store<T: Real, const C: usize, const W: usize>(
    lanes: &Lanes<T, C, W>,
    to: &Disjoint<T>,
    at: usize,
    p: usize,
    Channels { first, len }: Channels,
) {
    for (plane, lanes) in lanes.iter().enumerate() {
        // SAFETY: the caller's promise.
        let to = unsafe { to.slice(at + plane * p + first, len) };
        if len == W {
            to[..W].copy_from_slice(lanes);
        } else {
            to.copy_from_slice(&lanes[..len]);
        }
    }
}

/// `a h + x`.
#[inline(always)]
pub(crate) fn mul_add<T: Real, const C: usize, const W: usize>(
    a: &Lanes<T, C, W>,
    h: &Lanes<T, C, W>,
    x: &Lanes<T, C, W>,
) -> Lanes<T, C, W> {
    let mut out = *x;
    let im = C - 1;
    for i in 0..W {
        if C == 1 {
            out[0][i] = a[0][i].mul_add(h[0][i], x[0][i]);
        } else {
            out[0][i] = (-a[im][i]).mul_add(h[im][i], a[0][i].mul_add(h[0][i], x[0][i]));
            out[im][i] = a[im][i].mul_add(h[0][i], a[0][i].mul_add(h[im][i], x[im][i]));
        }
    }
    out
}

/// `a b`.
#[inline(always)]
pub(crate) fn mul<T: Real, const C: usize, const W: usize>(
    a: &Lanes<T, C, W>,
    b: &Lanes<T, C, W>,
) -> Lanes<T, C, W> {
    mul_add(a, b, &[[T::ZERO; W]; C])
}

/// `a + b`.
#[inline(always)]
pub(crate) fn add<T: Real, const C: usize, const W: usize>(
    a: &Lanes<T, C, W>,
    b: &Lanes<T, C, W>,
) -> Lanes<T, C, W> {
    let mut out = *a;
    for (out, b) in out.iter_mut().zip(b) {
        for i in 0..W {
            out[i] += b[i];
        }
    }
    out
}

/// The complex conjugate; a real number itself.
#[inline(always)]
pub(crate) fn conj<T: Real, const C: usize, const W: usize>(a: &Lanes<T, C, W>) -> Lanes<T, C, W> {
    let mut out = *a;
    for plane in out.iter_mut().skip(1) {
        for v in plane {
            *v = -*v;
        }
    }
    out
}
