//! HiPPO matrices and their diagonal-plus-low-rank form.
//!
//! A HiPPO matrix is a skew-symmetric one (and a multiple of 1) minus a matrix of low rank, `A = S - P Pᵀ`. In the
//! basis of S's eigenvectors it is `Λ - P P*`, and of each pair of conjugate modes one is kept.
//!
//! Source: Gu, Goel and Ré 2021 (S4), theorem 1 and appendix C.1; state-spaces/s4 `s4.py`, `transition`,
//! `rank_correction` and `nplr`.

use std::collections::BTreeMap;
use std::f64::consts::{FRAC_1_SQRT_2, PI, SQRT_2};
use std::sync::{Arc, Mutex, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hermitian::{C, conj, eigen, mul};

/// What the state is to remember of its input at the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Hippo {
    /// Scaled Legendre: all of the past, exponentially warped. Rank 1.
    #[default]
    Legs,
    /// Truncated Fourier: a window. Rank 1.
    Fout,
    /// Translated Legendre: a window. Rank 2.
    Legt,
}

impl Hippo {
    /// Rank of the correction.
    pub fn rank(self) -> usize {
        if self == Self::Legt { 2 } else { 1 }
    }

    /// A (n, n) by rows, and B (n).
    fn transition(self, n: usize) -> (Vec<Vec<f64>>, Vec<f64>) {
        let root = |i: usize| (2.0 * i as f64 + 1.0).sqrt();
        let matrix = |f: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
            (0..n).map(|i| (0..n).map(|j| f(i, j)).collect()).collect()
        };
        match self {
            Self::Legs => {
                let a = |i: usize, j: usize| match i.cmp(&j) {
                    std::cmp::Ordering::Greater => -root(i) * root(j),
                    std::cmp::Ordering::Equal => -(i as f64 + 1.0),
                    std::cmp::Ordering::Less => 0.0,
                };
                (matrix(&a), (0..n).map(root).collect())
            }
            Self::Legt => {
                let sign = |i: usize, j: usize| if i < j && (j - i) % 2 == 1 { -1.0 } else { 1.0 };
                let a = |i: usize, j: usize| -0.5 * root(i) * sign(i, j) * root(j);
                (matrix(&a), (0..n).map(|i| 0.5 * root(i)).collect())
            }
            Self::Fout => {
                let b: Vec<f64> = (0..n).map(fourier).collect();
                // Frequency k turns modes 2 k and 2 k + 1 into each other.
                let turn = |i: usize, j: usize| {
                    if i / 2 != j / 2 { 0.0 } else { PI * (i / 2) as f64 * (i as f64 - j as f64) }
                };
                (matrix(&|i, j| turn(i, j) - b[i] * b[j]), b.clone())
            }
        }
    }

    /// The rows of P, each (n).
    fn correction(self, n: usize) -> Vec<Vec<f64>> {
        let half = |i: usize| (i as f64 + 0.5).sqrt();
        match self {
            Self::Legs => vec![(0..n).map(half).collect()],
            Self::Fout => vec![(0..n).map(fourier).collect()],
            Self::Legt => {
                (0..2).map(|odd| (0..n).map(|i| if i % 2 == odd { 0.0 } else { half(i) }).collect()).collect()
            }
        }
    }
}

/// Weight of Fourier mode i in the input and in the correction.
fn fourier(i: usize) -> f64 {
    match i {
        0 => 1.0,
        i if i % 2 == 0 => SQRT_2,
        _ => 0.0,
    }
}

/// `A = V (Λ - P P*) V*` and B in that basis, one of each pair of modes, (n / 2) each.
#[derive(Debug)]
pub(crate) struct Modes {
    /// Λ, with negative imaginary parts.
    pub(crate) a: Vec<C>,
    /// The rows of P.
    pub(crate) p: Vec<Vec<C>>,
    pub(crate) b: Vec<C>,
    /// Eigenvectors, one a row: (n / 2, n).
    #[cfg_attr(not(test), expect(dead_code, reason = "the basis itself is for tests"))]
    pub(crate) v: Vec<Vec<C>>,
}

/// The modes of `hippo` with `n` states, `n` even; computed once.
pub(crate) fn modes(hippo: Hippo, n: usize) -> Arc<Modes> {
    static KNOWN: Mutex<BTreeMap<(Hippo, usize), Arc<Modes>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry((hippo, n)).or_insert_with(|| Arc::new(diagonalise(hippo, n))).clone()
}

fn diagonalise(hippo: Hippo, n: usize) -> Modes {
    /// Imaginary parts of B are kept within this, for stability.
    const CLIP: f64 = 2.0;
    let (a, b) = hippo.transition(n);
    let p = hippo.correction(n);
    let normal = |i: usize, j: usize| a[i][j] + p.iter().map(|p| p[i] * p[j]).sum::<f64>();
    let real = (0..n).map(|i| normal(i, i)).sum::<f64>() / n as f64;
    // -i S is Hermitian; its eigenvalues are the imaginary parts.
    let skew = |i: usize, j: usize| if i == j { 0.0 } else { 0.5 * (normal(i, j) - normal(j, i)) };
    let h = (0..n).map(|i| (0..n).map(|j| (0.0, -skew(i, j))).collect()).collect();
    let (values, mut vectors) = eigen(h);
    vectors.truncate(n / 2);
    let a: Vec<C> = values[..n / 2].iter().map(|&im| (real, im)).collect();
    // Fourier's constant: the one pair of zeros, whose vectors the solver chose at will.
    if let (Some(last), Some(v)) = (a.last(), vectors.last_mut())
        && last.0.hypot(last.1) < 1e-4
    {
        v.fill((0.0, 0.0));
        v[0] = (FRAC_1_SQRT_2, 0.0);
        v[1] = (0.0, FRAC_1_SQRT_2);
    }
    let project = |x: &[f64]| -> Vec<C> {
        let dot = |v: &[C]| {
            v.iter().zip(x).fold((0.0, 0.0), |s, (v, &x)| {
                let term = mul(conj(*v), (x, 0.0));
                (s.0 + term.0, s.1 + term.1)
            })
        };
        vectors.iter().map(|v| dot(v)).collect()
    };
    let p = p.iter().map(|p| project(p)).collect();
    let b = project(&b).into_iter().map(|(re, im)| (re, im.clamp(-CLIP, CLIP))).collect();
    Modes { a, p, b, v: vectors }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// V (Λ - P P*) V* over both of each pair is the dense HiPPO matrix.
    #[test]
    fn modes_give_the_dense_matrix_back() {
        for hippo in [Hippo::Legs, Hippo::Fout, Hippo::Legt] {
            for n in [2, 8, 16, 64] {
                let (dense, _) = hippo.transition(n);
                let m = modes(hippo, n);
                assert_eq!(m.p.len(), hippo.rank());
                let largest = dense.iter().flatten().fold(0.0f64, |a, b| a.max(b.abs()));
                for (i, row) in dense.iter().enumerate() {
                    for (j, want) in row.iter().enumerate() {
                        let diagonal: f64 =
                            (m.a.iter().zip(&m.v)).map(|(a, v)| 2.0 * mul(mul(v[i], *a), conj(v[j])).0).sum();
                        // V P is real: the correction as it was before the change of basis.
                        let back = |p: &[C], k: usize| -> f64 {
                            p.iter().zip(&m.v).map(|(p, v)| 2.0 * mul(v[k], *p).0).sum()
                        };
                        let low: f64 = m.p.iter().map(|p| back(p, i) * back(p, j)).sum();
                        let got = diagonal - low;
                        assert!(
                            (got - want).abs() < 1e-12 * largest,
                            "{hippo:?} {n}: [{i},{j}] {got} {want}"
                        );
                    }
                }
            }
        }
    }

    /// Below and above the diagonal, LegS is what its definition says: (2n+1)^½ (2k+1)^½, n + 1, 0.
    #[test]
    fn legs_is_lower_triangular() {
        let (a, b) = Hippo::Legs.transition(3);
        assert_eq!((a[0][1], a[1][1]), (0.0, -2.0));
        assert!((a[2][1] + 15f64.sqrt()).abs() < 1e-15 && (b[2] - 5f64.sqrt()).abs() < 1e-15);
    }
}
