//! Eigenvalues of a Hermitian matrix, by Jacobi's rotations: small, slow, and exact to rounding.

/// A complex number: real and imaginary part.
pub(crate) type C = (f64, f64);

pub(crate) fn mul(a: C, b: C) -> C {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

pub(crate) fn conj(a: C) -> C {
    (a.0, -a.1)
}

fn add(a: C, b: C) -> C {
    (a.0 + b.0, a.1 + b.1)
}

fn scale(a: C, s: f64) -> C {
    (a.0 * s, a.1 * s)
}

/// Eigenvalues in rising order, and the unit eigenvectors, one a row, of the Hermitian matrix `h` given by its rows.
pub(crate) fn eigen(mut h: Vec<Vec<C>>) -> (Vec<f64>, Vec<Vec<C>>) {
    let n = h.len();
    let unit = |i: usize| (0..n).map(|j| (f64::from(u8::from(i == j)), 0.0)).collect();
    let mut vectors: Vec<Vec<C>> = (0..n).map(unit).collect(); // transposed: rows are vectors
    let size: f64 = h.iter().flatten().map(|v| v.0 * v.0 + v.1 * v.1).sum();
    for _ in 0..100 {
        let off: f64 = (0..n).flat_map(|p| (0..p).map(move |q| (p, q))).map(|(p, q)| norm(h[p][q])).sum();
        if off <= 1e-29 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut h, &mut vectors, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| h[a][a].0.total_cmp(&h[b][b].0));
    let values = order.iter().map(|&i| h[i][i].0).collect();
    let vectors = order.iter().map(|&i| std::mem::take(&mut vectors[i])).collect();
    (values, vectors)
}

fn norm(v: C) -> f64 {
    v.0 * v.0 + v.1 * v.1
}

/// Turns rows and columns p and q so that `h[p][q]` becomes 0.
fn rotate(h: &mut [Vec<C>], vectors: &mut [Vec<C>], p: usize, q: usize) {
    let size = norm(h[p][q]).sqrt();
    if size < 1e-300 {
        return;
    }
    let phase = scale(h[p][q], 1.0 / size);
    let theta = (h[q][q].0 - h[p][p].0) / (2.0 * size);
    let tangent = if theta >= 0.0 { 1.0 } else { -1.0 } / (theta.abs() + theta.hypot(1.0));
    let cos = 1.0 / tangent.hypot(1.0);
    let sin = tangent * cos;
    // Columns: p' = c p - s e* q, q' = s p + c e* q; then rows by the conjugates.
    let turn = |a: C, b: C| (add(scale(a, cos), scale(b, -sin)), add(scale(a, sin), scale(b, cos)));
    for row in h.iter_mut() {
        (row[p], row[q]) = turn(row[p], mul(row[q], conj(phase)));
    }
    for (rows, phase) in [(h, phase), (vectors, conj(phase))] {
        let (above, below) = rows.split_at_mut(q);
        for (a, b) in above[p].iter_mut().zip(&mut below[0]) {
            (*a, *b) = turn(*a, mul(*b, phase));
        }
    }
}

#[cfg(test)]
mod tests {
    use semisep_core::Rng;

    use super::*;

    /// H v = λ v, and the vectors are orthonormal.
    #[test]
    fn random_matrices_are_diagonalised() {
        for n in [1, 2, 5, 16] {
            let mut rng = Rng::new(n as u64);
            let mut h = vec![vec![(0.0, 0.0); n]; n];
            for i in 0..n {
                h[i][i] = (rng.normal(), 0.0);
                for j in 0..i {
                    h[i][j] = (rng.normal(), rng.normal());
                    h[j][i] = conj(h[i][j]);
                }
            }
            let (values, vectors) = eigen(h.clone());
            assert!(values.is_sorted());
            for (k, (value, v)) in values.iter().zip(&vectors).enumerate() {
                for row in &h {
                    let i = h.iter().position(|r| r == row).unwrap_or(0);
                    let image = row.iter().zip(v).fold((0.0, 0.0), |sum, (a, b)| add(sum, mul(*a, *b)));
                    let want = scale(v[i], *value);
                    assert!(norm(add(image, scale(want, -1.0))) < 1e-24, "{n}: vector {k}");
                }
                for (l, o) in vectors.iter().enumerate() {
                    let dot = v.iter().zip(o).fold((0.0, 0.0), |sum, (a, b)| add(sum, mul(conj(*a), *b)));
                    assert!((dot.0 - f64::from(u8::from(k == l))).abs() < 1e-13 && dot.1.abs() < 1e-13);
                }
            }
        }
    }
}
