//! The normal part of the HiPPO-LegS matrix and its eigenvectors: where S5's dynamics start.
//!
//! ```text
//! HiPPO-N = -½ I + K      K[n,k] = -½ √(2n+1) √(2k+1) for n > k, K skew-symmetric      (S5, section 4.1, appendix B.1.2)
//! ```
//! `-i K` is Hermitian. Householder reflections make K tridiagonal, `K = Q T Qᵀ`; with `D = diag((-i)^k)`,
//! `Dᴴ (-i T) D` is a real symmetric tridiagonal matrix without a diagonal, whose eigenvectors the QL algorithm gives
//! (Golub & Van Loan, sections 8.3.1 and 8.3.3). All in f64.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Eigenvalues `-½ + i ω` by rising ω, and unit eigenvectors.
#[derive(Debug)]
pub(crate) struct Eigen {
    /// Size.
    pub(crate) n: usize,
    /// Imaginary parts of the eigenvalues; all real parts are -½.
    pub(crate) omega: Vec<f64>,
    /// `vectors[j * n + k]`: entry k of eigenvector j, (re, im).
    pub(crate) vectors: Vec<(f64, f64)>,
}

/// The eigensystem of HiPPO-N of this size; computed once in a process.
pub(crate) fn hippo_n(n: usize) -> Arc<Eigen> {
    static KNOWN: Mutex<BTreeMap<usize, Arc<Eigen>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(n).or_insert_with(|| Arc::new(eigen(n))).clone()
}

/// The skew-symmetric part K, row-major.
fn skew(n: usize) -> Vec<f64> {
    let root = |i: usize| ((2 * i + 1) as f64).sqrt();
    let entry = |i: usize, j: usize| match i.cmp(&j) {
        std::cmp::Ordering::Greater => -0.5 * root(i) * root(j),
        std::cmp::Ordering::Less => 0.5 * root(i) * root(j),
        std::cmp::Ordering::Equal => 0.0,
    };
    (0..n * n).map(|k| entry(k / n, k % n)).collect()
}

fn eigen(n: usize) -> Eigen {
    let mut k = skew(n);
    let q = tridiagonalise(&mut k, n);
    // T[k+1][k] = t_k; the symmetric matrix has the same numbers beside its diagonal.
    let mut beside: Vec<f64> = (1..n).map(|i| k[i * n + i - 1]).chain([0.0]).collect();
    let mut omega = vec![0.0; n];
    let mut z: Vec<f64> = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
    ql(&mut omega, &mut beside, &mut z);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| omega[a].total_cmp(&omega[b]));
    let mut vectors = Vec::with_capacity(n * n);
    for &j in &order {
        // V = Q D Z; (-i)^k is 1, -i, -1, i.
        for row in 0..n {
            let (mut re, mut im) = (0.0, 0.0);
            for k in 0..n {
                let v = q[row * n + k] * z[j * n + k];
                match k % 4 {
                    0 => re += v,
                    1 => im -= v,
                    2 => re -= v,
                    _ => im += v,
                }
            }
            vectors.push((re, im));
        }
    }
    Eigen { n, omega: order.iter().map(|&j| omega[j]).collect(), vectors }
}

/// Makes the skew-symmetric `k` tridiagonal, and gives the orthogonal Q of `K = Q T Qᵀ`.
fn tridiagonalise(k: &mut [f64], n: usize) -> Vec<f64> {
    let mut q: Vec<f64> = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
    for col in 0..n.saturating_sub(2) {
        // The reflection I - β v vᵀ that clears column `col` below its first entry under the diagonal.
        let mut v = vec![0.0; n];
        (col + 1..n).for_each(|i| v[i] = k[i * n + col]);
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm == 0.0 {
            continue;
        }
        v[col + 1] += norm.copysign(v[col + 1]);
        let beta = 2.0 / v.iter().map(|x| x * x).sum::<f64>();
        // H K H = K + β (v wᵀ - w vᵀ) with w = K v, as vᵀ K v = 0.
        let w: Vec<f64> = (0..n).map(|i| (col..n).map(|j| k[i * n + j] * v[j]).sum()).collect();
        for i in 0..n {
            for j in 0..n {
                k[i * n + j] += beta * (v[i] * w[j] - w[i] * v[j]);
            }
        }
        for row in q.chunks_exact_mut(n) {
            let dot: f64 = row.iter().zip(&v).map(|(q, v)| q * v).sum();
            row.iter_mut().zip(&v).for_each(|(q, v)| *q -= beta * dot * v);
        }
    }
    q
}

/// Implicit QL: `d` (diagonal) becomes the eigenvalues, rows of `z` are rotated into the eigenvectors; `e[i]` stands
/// between `d[i]` and `d[i + 1]`, and ends as zero.
fn ql(d: &mut [f64], e: &mut [f64], z: &mut [f64]) {
    let n = d.len();
    let scale = e.iter().fold(f64::MIN_POSITIVE, |m, e| m.max(e.abs()));
    for l in 0..n {
        // Thirty rounds an eigenvalue are more than ever needed; the bound keeps a NaN from going round for ever.
        for _ in 0..64 {
            let small =
                |m: usize| e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs()).max(1e-3 * scale);
            let m = (l..n - 1).find(|&m| small(m)).unwrap_or(n - 1);
            if m == l {
                break;
            }
            sweep(d, e, z, l, m);
        }
    }
}

/// One implicit shift over rows `l..=m`.
fn sweep(d: &mut [f64], e: &mut [f64], z: &mut [f64], l: usize, m: usize) {
    let n = d.len();
    let g = (d[l + 1] - d[l]) / (2.0 * e[l]);
    let mut g = d[m] - d[l] + e[l] / (g + g.hypot(1.0).copysign(g));
    let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
    for i in (l..m).rev() {
        let (f, b) = (s * e[i], c * e[i]);
        let r = f.hypot(g);
        e[i + 1] = r;
        if r == 0.0 {
            d[i + 1] -= p;
            e[m] = 0.0;
            return;
        }
        (s, c) = (f / r, g / r);
        g = d[i + 1] - p;
        let r = (d[i] - g) * s + 2.0 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        let (upper, lower) = z.split_at_mut((i + 1) * n);
        for (a, b) in upper[i * n..].iter_mut().zip(&mut lower[..n]) {
            (*a, *b) = (c * *a - s * *b, s * *a + c * *b);
        }
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `K v = i ω v`, eigenvectors are orthonormal, eigenvalues come in pairs ±ω.
    #[test]
    fn eigenvectors_of_the_hippo_matrix() {
        for n in [1, 2, 3, 8, 16, 33, 64, 128] {
            let (k, eigen) = (skew(n), hippo_n(n));
            let largest = eigen.omega.iter().fold(1.0, |m: f64, w| m.max(w.abs()));
            for j in 0..n {
                let v = &eigen.vectors[j * n..][..n];
                for row in 0..n {
                    let product = |f: fn(&(f64, f64)) -> f64| -> f64 {
                        k[row * n..][..n].iter().zip(v).map(|(k, v)| k * f(v)).sum()
                    };
                    let (re, im) = (product(|v| v.0), product(|v| v.1));
                    let w = eigen.omega[j];
                    let error = (re + w * v[row].1).abs().max((im - w * v[row].0).abs());
                    assert!(error < 1e-11 * largest, "n = {n}, vector {j}: {error}");
                }
                for other in 0..n {
                    let u = &eigen.vectors[other * n..][..n];
                    let re: f64 = u.iter().zip(v).map(|(u, v)| u.0 * v.0 + u.1 * v.1).sum();
                    let im: f64 = u.iter().zip(v).map(|(u, v)| u.0 * v.1 - u.1 * v.0).sum();
                    let want = if j == other { 1.0 } else { 0.0 };
                    assert!((re - want).abs() < 1e-12 && im.abs() < 1e-12, "n = {n}: {j} {other}");
                }
                assert!((eigen.omega[j] + eigen.omega[n - 1 - j]).abs() < 1e-11 * largest);
            }
            assert!(eigen.omega.windows(2).all(|w| w[0] <= w[1]));
        }
    }
}
