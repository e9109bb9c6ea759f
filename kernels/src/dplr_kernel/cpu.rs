//! The filter on the CPU: a task a channel, nodes side by side in vector lanes.

use std::f64::consts::PI;

use candle_core::{Error, Result};
use realfft::RealFftPlanner;
use realfft::num_complex::Complex;

use super::{Dims, MAX_RANK};
use crate::host::{self, Disjoint};
use crate::simd::vectorized;

type C64 = Complex<f64>;

/// Nodes of a group.
const W: usize = 8;

/// One complex number a node: real parts, imaginary parts.
type Lanes = [[f64; W]; 2];

const ZERO: Lanes = [[0.0; W]; 2];

/// `2 (1 - ω)` and `τ = 1 + ω` of the first half of the roots of unity; lanes past the last repeat ω = 1.
struct Nodes {
    count: usize,
    groups: Vec<(Lanes, Lanes)>,
}

impl Nodes {
    fn new(period: usize) -> Self {
        let count = period / 2 + 1;
        let group = |first: usize| {
            let (mut z, mut tau) = (ZERO, ZERO);
            for lane in 0..W {
                let m = if first + lane < count { first + lane } else { 0 };
                let (mut sin, mut cos) = (-2.0 * PI * m as f64 / period as f64).sin_cos();
                if 2 * m == period {
                    (sin, cos) = (0.0, -1.0);
                }
                z[0][lane] = 2.0 * (1.0 - cos);
                z[1][lane] = -2.0 * sin;
                tau[0][lane] = 1.0 + cos;
                tau[1][lane] = sin;
            }
            (z, tau)
        };
        Self { count, groups: (0..count).step_by(W).map(group).collect() }
    }
}

/// One channel's coefficients. Of a pair of conjugate modes, `v f⁻¹ + v̄ g⁻¹ = Re v (f⁻¹ + g⁻¹) + Im v i (f⁻¹ - g⁻¹)`
/// with `f = z - τ w`, `g = z - τ w̄`: two real factors for each product v = X_i Y_j. (One fraction for the pair would
/// be cheaper, and wrong where both modes come near a node.)
struct Channel {
    n: usize,
    /// X (1 + r) and Y (c + r), mode by mode.
    x: Vec<Vec<C64>>,
    y: Vec<Vec<C64>>,
    w: Vec<C64>,
    /// Real and imaginary part of every product: (n, rows · columns).
    a: Vec<f64>,
    b: Vec<f64>,
}

impl Channel {
    fn new(dims: &Dims, k: usize, w: &[f64], x: &[f64], y: &[f64]) -> Self {
        let (d, n) = (dims.d, dims.n);
        let part = |values: &[f64], row: usize| -> Vec<C64> {
            let values = &values[(row * d + k) * n * 2..][..n * 2];
            values.chunks_exact(2).map(|v| C64::new(v[0], v[1])).collect()
        };
        let x: Vec<Vec<C64>> = (0..1 + dims.rank).map(|i| part(x, i)).collect();
        let y: Vec<Vec<C64>> = (0..dims.c + dims.rank).map(|j| part(y, j)).collect();
        let w = part(w, 0);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for mode in 0..n {
            for x in &x {
                for y in &y {
                    let v = x[mode] * y[mode];
                    a.push(v.re);
                    b.push(v.im);
                }
            }
        }
        Self { n, x, y, w, a, b }
    }

    fn products(&self) -> usize {
        self.x.len() * self.y.len()
    }

    /// `1 / f` and `1 / g` of one mode.
    #[inline(always)]
    fn resolvent(&self, mode: usize, z: &Lanes, tau: &Lanes) -> (Lanes, Lanes) {
        let w = self.w[mode];
        let (mut p, mut q) = (ZERO, ZERO);
        for (out, im) in [(&mut p, w.im), (&mut q, -w.im)] {
            for j in 0..W {
                let re = z[0][j] - (tau[0][j] * w.re - tau[1][j] * im);
                let im = z[1][j] - (tau[0][j] * im + tau[1][j] * w.re);
                let norm = 1.0 / (re * re + im * im);
                out[0][j] = re * norm;
                out[1][j] = -im * norm;
            }
        }
        (p, q)
    }

    /// All Cauchy products s at a group of nodes, (rows · columns).
    #[inline(always)]
    fn cauchy(&self, z: &Lanes, tau: &Lanes, s: &mut [Lanes]) {
        s.fill(ZERO);
        let m = self.products();
        for mode in 0..self.n {
            let (sum, turned) = pair(self.resolvent(mode, z, tau));
            let (a, b) = (&self.a[mode * m..][..m], &self.b[mode * m..][..m]);
            for ((s, &a), &b) in s.iter_mut().zip(a).zip(b) {
                for part in 0..2 {
                    for j in 0..W {
                        s[part][j] += a * sum[part][j] + b * turned[part][j];
                    }
                }
            }
        }
    }
}

/// `p + q` and `i (p - q)`
#[inline(always)]
fn pair((p, q): (Lanes, Lanes)) -> (Lanes, Lanes) {
    let (mut sum, mut turned) = (ZERO, ZERO);
    for j in 0..W {
        sum[0][j] = p[0][j] + q[0][j];
        sum[1][j] = p[1][j] + q[1][j];
        turned[0][j] = q[1][j] - p[1][j];
        turned[1][j] = p[0][j] - q[0][j];
    }
    (sum, turned)
}

/// One lane of a group.
fn lane(lanes: &Lanes, j: usize) -> C64 {
    C64::new(lanes[0][j], lanes[1][j])
}

/// The filter's Fourier coefficient at one node, and what its gradient needs: `x = s_QB N` and `z_c = N s_CP`, with
/// `N = (1 + τ S_QP)⁻¹`.
struct Woodbury {
    x: [C64; MAX_RANK],
    z: Vec<[C64; MAX_RANK]>,
    k: Vec<C64>,
}

/// `s(i, j)` is the Cauchy product of X_i and Y_j.
fn woodbury(dims: &Dims, tau: C64, s: impl Fn(usize, usize) -> C64) -> Woodbury {
    let (c, r) = (dims.c, dims.rank);
    let zero = C64::new(0.0, 0.0);
    let mut m = [[zero; 2 * MAX_RANK]; MAX_RANK];
    for (a, row) in m.iter_mut().enumerate().take(r) {
        for (b, entry) in row.iter_mut().enumerate().take(r) {
            *entry = tau * s(1 + a, c + b);
        }
        row[a] += 1.0;
        row[r + a] = C64::new(1.0, 0.0);
    }
    invert(&mut m, r);
    let mut out = Woodbury { x: [zero; MAX_RANK], z: vec![[zero; MAX_RANK]; c], k: vec![zero; c] };
    for a in 0..r {
        out.x[a] = (0..r).map(|b| s(0, c + b) * m[b][r + a]).sum();
    }
    for k in 0..c {
        for (z, row) in out.z[k].iter_mut().zip(&m).take(r) {
            *z = (0..r).map(|b| row[r + b] * s(1 + b, k)).sum();
        }
        let correction: C64 = (0..r).map(|a| s(0, c + a) * out.z[k][a]).sum();
        out.k[k] = 2.0 * (s(0, k) - tau * correction);
    }
    out
}

/// Gauss-Jordan with row exchanges on [M | 1], r rows.
fn invert(m: &mut [[C64; 2 * MAX_RANK]; MAX_RANK], r: usize) {
    for i in 0..r {
        let best = (i..r).max_by(|&a, &b| m[a][i].norm_sqr().total_cmp(&m[b][i].norm_sqr())).unwrap_or(i);
        m.swap(i, best);
        let inverse = m[i][i].inv();
        m[i].iter_mut().for_each(|v| *v *= inverse);
        let pivot = m[i];
        for (row, values) in m.iter_mut().enumerate().take(r) {
            if row != i {
                let factor = values[i];
                values.iter_mut().zip(&pivot).for_each(|(v, p)| *v -= factor * p);
            }
        }
    }
}

/// The filters, (c, d, length).
pub(super) fn forward(dims: &Dims, w: &[f64], x: &[f64], y: &[f64]) -> Result<Vec<f64>> {
    let Dims { d, c, period, length, .. } = *dims;
    let mut filters = host::zeros(c * d * length);
    if length == 0 {
        return Ok(filters);
    }
    let nodes = Nodes::new(period);
    let fft = RealFftPlanner::<f64>::new().plan_fft_inverse(period);
    let out = Disjoint::new(&mut filters);
    let failed = std::sync::Mutex::new(None);
    host::parallel(d, |channel| {
        let mut spectra = spectrum(dims, &nodes, &Channel::new(dims, channel, w, x, y));
        let mut time = vec![0.0; period];
        for (k, spectrum) in spectra.iter_mut().enumerate() {
            // The coefficients of constant and alternation are real; the transform insists on it.
            spectrum[0].im = 0.0;
            if period.is_multiple_of(2) {
                spectrum[period / 2].im = 0.0;
            }
            if let Err(e) = fft.process(spectrum, &mut time) {
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
                return;
            }
            // SAFETY: each task has its own channel.
            let filter = unsafe { out.slice((k * d + channel) * length, length) };
            filter.iter_mut().zip(&time).for_each(|(f, t)| *f = t / period as f64);
        }
    });
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(e) => Err(Error::wrap(e)),
        None => Ok(filters),
    }
}

/// K̂ of one channel, (c, period / 2 + 1).
fn spectrum(dims: &Dims, nodes: &Nodes, channel: &Channel) -> Vec<Vec<C64>> {
    let columns = dims.c + dims.rank;
    let mut spectra = vec![Vec::with_capacity(nodes.count); dims.c];
    let mut s = vec![ZERO; channel.products()];
    for (g, (z, tau)) in nodes.groups.iter().enumerate() {
        vectorized(
            #[inline(always)]
            || channel.cauchy(z, tau, &mut s),
        );
        for j in 0..W.min(nodes.count - g * W) {
            let value = woodbury(dims, lane(tau, j), |i, k| lane(&s[i * columns + k], j));
            spectra.iter_mut().zip(value.k).for_each(|(spectrum, k)| spectrum.push(k));
        }
    }
    spectra
}

/// Gradients of w, x and y from that of the filters.
pub(super) fn backward(dims: &Dims, w: &[f64], x: &[f64], y: &[f64], dk: &[f64]) -> Result<[Vec<f64>; 3]> {
    let Dims { d, n, c, rank, period, length } = *dims;
    let [mut dw, mut dx, mut dy] = [1, 1 + rank, c + rank].map(|rows| host::zeros(rows * d * n * 2));
    if length == 0 {
        return Ok([dw, dx, dy]);
    }
    let nodes = Nodes::new(period);
    let fft = RealFftPlanner::<f64>::new().plan_fft_forward(period);
    let failed = std::sync::Mutex::new(None);
    let outs = [Disjoint::new(&mut dw), Disjoint::new(&mut dx), Disjoint::new(&mut dy)];
    host::parallel(d, |channel| {
        let mut spectra = Vec::new();
        for k in 0..c {
            let mut time = vec![0.0; period];
            time[..length].copy_from_slice(&dk[(k * d + channel) * length..][..length]);
            let mut spectrum = vec![C64::new(0.0, 0.0); nodes.count];
            if let Err(e) = fft.process(&mut time, &mut spectrum) {
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
                return;
            }
            // A node stands for its conjugate as well, but for the first and, of an even number, the last.
            for (m, value) in spectrum.iter_mut().enumerate() {
                let weight = if m == 0 || 2 * m == period { 1.0 } else { 2.0 };
                *value *= weight / period as f64;
            }
            spectra.push(spectrum);
        }
        let channel_data = Channel::new(dims, channel, w, x, y);
        let grads = Sums::collect(dims, &nodes, &channel_data, &spectra).finish(&channel_data);
        for (out, rows) in outs.iter().zip(&grads) {
            for (row, values) in rows.iter().enumerate() {
                // SAFETY: each task has its own channel.
                let out = unsafe { out.slice((row * d + channel) * n * 2, n * 2) };
                for (out, v) in out.chunks_exact_mut(2).zip(values) {
                    out[0] = v.re;
                    out[1] = v.im;
                }
            }
        }
    });
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(e) => Err(Error::wrap(e)),
        None => Ok([dw, dx, dy]),
    }
}

/// Gradients of one channel's a, b (n, rows · columns) and w (n), lane by lane.
struct Sums {
    a: Vec<[f64; W]>,
    b: Vec<[f64; W]>,
    w: Vec<Lanes>,
}

impl Sums {
    fn collect(dims: &Dims, nodes: &Nodes, channel: &Channel, dk: &[Vec<C64>]) -> Self {
        let (m, columns) = (channel.products(), dims.c + dims.rank);
        let mut sums = Self {
            a: vec![[0.0; W]; channel.n * m],
            b: vec![[0.0; W]; channel.n * m],
            w: vec![ZERO; channel.n],
        };
        let (mut s, mut ds) = (vec![ZERO; m], vec![ZERO; m]);
        for (g, (z, tau)) in nodes.groups.iter().enumerate() {
            vectorized(
                #[inline(always)]
                || channel.cauchy(z, tau, &mut s),
            );
            ds.fill(ZERO);
            for j in 0..W.min(nodes.count - g * W) {
                let at = |i: usize, k: usize| lane(&s[i * columns + k], j);
                let value = woodbury(dims, lane(tau, j), at);
                let dk = |k: usize| dk[k][g * W + j];
                woodbury_grads(dims, lane(tau, j), &value, dk, |i, k, v| {
                    let lanes = &mut ds[i * columns + k];
                    lanes[0][j] += v.re;
                    lanes[1][j] += v.im;
                });
            }
            vectorized(
                #[inline(always)]
                || sums.add(channel, z, tau, &ds),
            );
        }
        sums
    }

    /// A group of nodes: from the gradients of the Cauchy products to those of their coefficients.
    #[inline(always)]
    fn add(&mut self, channel: &Channel, z: &Lanes, tau: &Lanes, ds: &[Lanes]) {
        let m = channel.products();
        for mode in 0..channel.n {
            let (p, q) = channel.resolvent(mode, z, tau);
            let (sum, turned) = pair((p, q));
            let (mut da, mut db) = (ZERO, ZERO);
            for (i, ds) in ds.iter().enumerate() {
                let at = mode * m + i;
                for j in 0..W {
                    self.a[at][j] += sum[0][j] * ds[0][j] + sum[1][j] * ds[1][j];
                    self.b[at][j] += turned[0][j] * ds[0][j] + turned[1][j] * ds[1][j];
                    da[0][j] += channel.a[at] * ds[0][j];
                    da[1][j] += channel.a[at] * ds[1][j];
                    db[0][j] += channel.b[at] * ds[0][j];
                    db[1][j] += channel.b[at] * ds[1][j];
                }
            }
            // p = 1 / (z - τ w), q = 1 / (z - τ w̄): dw is τ* (p²)* dp, and the conjugate of the same of q.
            for (r, sign) in [(&p, 1.0), (&q, -1.0)] {
                for j in 0..W {
                    let (dr, di) = (da[0][j] + sign * db[1][j], da[1][j] - sign * db[0][j]);
                    let (r2r, r2i) = (r[0][j] * r[0][j] - r[1][j] * r[1][j], 2.0 * r[0][j] * r[1][j]);
                    let (tr, ti) = (tau[0][j] * r2r - tau[1][j] * r2i, tau[0][j] * r2i + tau[1][j] * r2r);
                    self.w[mode][0][j] += tr * dr + ti * di;
                    self.w[mode][1][j] += sign * (tr * di - ti * dr);
                }
            }
        }
    }

    /// Gradients of w (one row), x and y.
    fn finish(&self, channel: &Channel) -> [Vec<Vec<C64>>; 3] {
        let zeros = |rows: usize| vec![vec![C64::new(0.0, 0.0); channel.n]; rows];
        let (mut dw, mut dx, mut dy) = (zeros(1), zeros(channel.x.len()), zeros(channel.y.len()));
        let m = channel.products();
        for mode in 0..channel.n {
            for (i, (x, dx)) in channel.x.iter().zip(&mut dx).enumerate() {
                for (k, (y, dy)) in channel.y.iter().zip(&mut dy).enumerate() {
                    let at = mode * m + i * channel.y.len() + k;
                    let dv = C64::new(self.a[at].iter().sum(), self.b[at].iter().sum());
                    dx[mode] += y[mode].conj() * dv;
                    dy[mode] += x[mode].conj() * dv;
                }
            }
            dw[0][mode] = C64::new(self.w[mode][0].iter().sum(), self.w[mode][1].iter().sum());
        }
        [dw, dx, dy]
    }
}

/// Gradients of the Cauchy products at one node, handed to `add(i, j, gradient)`.
fn woodbury_grads(
    dims: &Dims,
    tau: C64,
    value: &Woodbury,
    dk: impl Fn(usize) -> C64,
    mut add: impl FnMut(usize, usize, C64),
) {
    let (c, r) = (dims.c, dims.rank);
    for k in 0..c {
        let dk = dk(k);
        add(0, k, 2.0 * dk);
        for a in 0..r {
            add(1 + a, k, (-2.0 * tau * value.x[a]).conj() * dk);
            add(0, c + a, (-2.0 * tau * value.z[k][a]).conj() * dk);
            for b in 0..r {
                add(1 + a, c + b, (2.0 * tau * tau * value.x[a] * value.z[k][b]).conj() * dk);
            }
        }
    }
}
