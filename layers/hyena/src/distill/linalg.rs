//! The little linear algebra that fitting modes needs, in f64.

use std::ops::{Add, Mul, Sub};

/// A complex number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct C {
    pub(super) re: f64,
    pub(super) im: f64,
}

impl C {
    pub(super) const ZERO: Self = Self { re: 0.0, im: 0.0 };
    pub(super) const ONE: Self = Self { re: 1.0, im: 0.0 };

    pub(super) fn real(re: f64) -> Self {
        Self { re, im: 0.0 }
    }

    pub(super) fn abs(self) -> f64 {
        self.re.hypot(self.im)
    }

    pub(super) fn scaled(self, factor: f64) -> Self {
        Self { re: self.re * factor, im: self.im * factor }
    }

    fn conj(self) -> Self {
        Self { re: self.re, im: -self.im }
    }

    fn over(self, o: Self) -> Self {
        (self * o.conj()).scaled(1.0 / (o.re * o.re + o.im * o.im))
    }

    fn sqrt(self) -> Self {
        let r = self.abs();
        let (re, im) = ((0.5 * (r + self.re)).max(0.0).sqrt(), (0.5 * (r - self.re)).max(0.0).sqrt());
        Self { re, im: im.copysign(self.im) }
    }
}

impl Add for C {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self { re: self.re + o.re, im: self.im + o.im }
    }
}

impl Sub for C {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        Self { re: self.re - o.re, im: self.im - o.im }
    }
}

impl Mul for C {
    type Output = Self;
    fn mul(self, o: Self) -> Self {
        Self { re: self.re * o.re - self.im * o.im, im: self.re * o.im + self.im * o.re }
    }
}

/// Eigenvectors of a symmetric matrix (n, n), row-major: rows of the result, by falling eigenvalue (cyclic Jacobi).
pub(super) fn symmetric_eigenvectors(mut a: Vec<f64>, n: usize) -> Vec<Vec<f64>> {
    const SWEEPS: usize = 30;
    let mut v: Vec<f64> = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
    let scale: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let off: f64 = (0..n * n).filter(|i| i / n != i % n).map(|i| a[i] * a[i]).sum();
        if off <= 1e-30 * scale {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p * n + q].abs() > 1e-300 {
                    rotate(&mut a, &mut v, n, p, q);
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]));
    order.into_iter().map(|i| v[i * n..(i + 1) * n].to_vec()).collect()
}

/// Makes element (p, q) of `a` zero; `v` holds the eigenvectors in rows.
fn rotate(a: &mut [f64], v: &mut [f64], n: usize, p: usize, q: usize) {
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * a[p * n + q]);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for k in 0..n {
        let (x, y) = (a[k * n + p], a[k * n + q]);
        (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
    }
    for m in [a, v] {
        for k in 0..n {
            let (x, y) = (m[p * n + k], m[q * n + k]);
            (m[p * n + k], m[q * n + k]) = (c * x - s * y, s * x + c * y);
        }
    }
}

/// Eigenvalues of a real matrix (n, n), row-major: to Hessenberg form by elimination, then by shifted QR steps.
pub(super) fn eigenvalues(a: &[f64], n: usize) -> Vec<C> {
    const STEPS: usize = 100;
    let mut h: Vec<Vec<C>> =
        a.chunks(n.max(1)).map(|row| row.iter().map(|&x| C::real(x)).collect()).collect();
    hessenberg(&mut h);
    let (mut values, mut end, mut steps) = (Vec::with_capacity(n), n, 0);
    while end > 0 {
        let small = |h: &[Vec<C>], k: usize| {
            h[k][k - 1].abs() <= 1e-15 * (h[k][k].abs() + h[k - 1][k - 1].abs()) || h[k][k - 1].abs() < 1e-300
        };
        let start = (1..end).rev().find(|&k| small(&h, k)).unwrap_or(0);
        if start + 1 == end || steps == STEPS {
            values.push(h[end - 1][end - 1]);
            (end, steps) = (end - 1, 0);
            continue;
        }
        steps += 1;
        // A shift off the pattern breaks the rare cycle.
        let shift = if steps % 11 == 10 { C::real(h[end - 1][end - 2].abs()) } else { wilkinson(&h, end) };
        qr_step(&mut h, start, end, shift);
    }
    values
}

fn hessenberg(h: &mut [Vec<C>]) {
    let n = h.len();
    for k in 1..n.saturating_sub(1) {
        let pivot = (k..n).max_by(|&i, &j| h[i][k - 1].abs().total_cmp(&h[j][k - 1].abs())).unwrap_or(k);
        if h[pivot][k - 1].abs() == 0.0 {
            continue;
        }
        h.swap(pivot, k);
        h.iter_mut().for_each(|row| row.swap(pivot, k));
        for i in k + 1..n {
            let factor = h[i][k - 1].over(h[k][k - 1]);
            for j in k - 1..n {
                h[i][j] = h[i][j] - factor * h[k][j];
            }
            h.iter_mut().for_each(|row| row[k] = row[k] + factor * row[i]);
        }
    }
}

/// The eigenvalue of the last 2 x 2 block that is nearer to its last element.
fn wilkinson(h: &[Vec<C>], end: usize) -> C {
    let (a, b) = (h[end - 2][end - 2], h[end - 2][end - 1]);
    let (c, d) = (h[end - 1][end - 2], h[end - 1][end - 1]);
    let half = (a - d).scaled(0.5);
    let root = (half * half + b * c).sqrt();
    let (x, y) = (d + half + root, d + half - root);
    if (x - d).abs() < (y - d).abs() { x } else { y }
}

/// `H - σ = QR`, `H ← RQ + σ` on the block `start..end`.
fn qr_step(h: &mut [Vec<C>], start: usize, end: usize, shift: C) {
    let mut rotations = Vec::with_capacity(end - start);
    for k in start..end {
        h[k][k] = h[k][k] - shift;
    }
    for k in start..end - 1 {
        let (x, y) = (h[k][k], h[k + 1][k]);
        let norm = x.abs().hypot(y.abs());
        let (c, s) =
            if norm == 0.0 { (C::ONE, C::ZERO) } else { (x.scaled(1.0 / norm), y.scaled(1.0 / norm)) };
        for j in k..end {
            let (x, y) = (h[k][j], h[k + 1][j]);
            (h[k][j], h[k + 1][j]) = (c.conj() * x + s.conj() * y, c * y - s * x);
        }
        rotations.push((c, s));
    }
    for (k, (c, s)) in (start..).zip(rotations) {
        for row in &mut h[start..end.min(k + 2)] {
            let (x, y) = (row[k], row[k + 1]);
            (row[k], row[k + 1]) = (x * c + y * s, y * c.conj() - x * s.conj());
        }
    }
    for k in start..end {
        h[k][k] = h[k][k] + shift;
    }
}

/// The combination of `columns` that is nearest to `target`: Gram-Schmidt, each column twice; columns that depend on
/// earlier ones get 0.
pub(super) fn least_squares(columns: &[Vec<f64>], target: &[f64]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let subtract = |a: &mut [f64], b: &[f64], f: f64| a.iter_mut().zip(b).for_each(|(a, b)| *a -= f * b);
    let (mut basis, mut triangle): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
    let mut kept = Vec::new();
    for (i, column) in columns.iter().enumerate() {
        let (mut q, mut r) = (column.clone(), vec![0.0; basis.len()]);
        for _ in 0..2 {
            for (q_k, r) in basis.iter().zip(&mut r) {
                let f = dot(q_k, &q);
                subtract(&mut q, q_k, f);
                *r += f;
            }
        }
        let norm = dot(&q, &q).sqrt();
        if norm <= 1e-10 * dot(column, column).sqrt() {
            continue;
        }
        q.iter_mut().for_each(|x| *x /= norm);
        r.push(norm);
        basis.push(q);
        triangle.push(r);
        kept.push(i);
    }
    let mut rest = target.to_vec();
    let mut right: Vec<f64> = Vec::with_capacity(basis.len());
    for q in &basis {
        let f = dot(q, &rest);
        subtract(&mut rest, q, f);
        right.push(f);
    }
    let mut solution = vec![0.0; columns.len()];
    for k in (0..kept.len()).rev() {
        let value = right[k] / triangle[k][k];
        solution[kept[k]] = value;
        for j in 0..k {
            right[j] -= triangle[k][j] * value;
        }
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvalues_of_a_companion_matrix_are_the_roots() {
        // (x - 0.9)(x + 0.5)(x² - 1.2 x + 0.72), roots 0.6 ± 0.6i
        let (quadratic, other) = ([-0.45, -0.4, 1.0], [0.72, -1.2, 1.0]); // lowest first
        let mut coefficients = [0.0; 5];
        for (i, a) in quadratic.iter().enumerate() {
            for (j, b) in other.iter().enumerate() {
                coefficients[i + j] += a * b;
            }
        }
        let n = 4;
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            a[i * n + n - 1] = -coefficients[i];
            if i > 0 {
                a[i * n + i - 1] = 1.0;
            }
        }
        let mut found = eigenvalues(&a, n);
        found.sort_by(|x, y| (x.re, x.im).partial_cmp(&(y.re, y.im)).unwrap());
        for (found, want) in found.iter().zip([(-0.5, 0.0), (0.6, -0.6), (0.6, 0.6), (0.9, 0.0)]) {
            assert!(
                (found.re - want.0).abs() < 1e-10 && (found.im - want.1).abs() < 1e-10,
                "{found:?} {want:?}"
            );
        }
    }

    #[test]
    fn eigenvectors_diagonalise() {
        let n = 6;
        let a: Vec<f64> = (0..n * n).map(|i| 1.0 / (1 + i / n + i % n) as f64).collect();
        let vectors = symmetric_eigenvectors(a.clone(), n);
        let mut last = f64::INFINITY;
        for v in &vectors {
            let av: Vec<f64> = (0..n).map(|i| (0..n).map(|j| a[i * n + j] * v[j]).sum()).collect();
            let lambda: f64 = av.iter().zip(v).map(|(x, y)| x * y).sum();
            assert!(lambda <= last + 1e-14);
            last = lambda;
            assert!(av.iter().zip(v).all(|(x, y)| (x - lambda * y).abs() < 1e-13));
        }
    }

    #[test]
    fn least_squares_passes_over_dependent_columns() {
        let columns = [vec![1.0, 2.0, 3.0], vec![2.0, 4.0, 6.0], vec![0.0, 1.0, 0.0]];
        assert_eq!(least_squares(&columns, &[2.0, 9.0, 6.0])[1], 0.0);
        let x = least_squares(&columns, &[2.0, 9.0, 6.0]);
        assert!((x[0] - 2.0).abs() < 1e-12 && (x[2] - 5.0).abs() < 1e-12);
    }
}
