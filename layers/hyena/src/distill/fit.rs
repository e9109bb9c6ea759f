//! A sequence as a sum of decaying complex exponentials: ESPRIT (Roy & Kailath 1989) for the poles, least squares for the
//! residues.
//!
//! The windows of m consecutive values span, for a sum of M exponentials, a space of M dimensions whose basis U is the
//! same one step later, but for a map with the poles as eigenvalues: `U[1..] = U[..m-1] Φ`.

use super::linalg::{C, eigenvalues, least_squares, symmetric_eigenvectors};

/// `h[t] ≈ Re Σ residues[n] poles[n]^t`
pub(super) struct Fit {
    pub(super) poles: Vec<C>,
    pub(super) residues: Vec<C>,
    /// Σ (h - fit)² and Σ h².
    pub(super) error: (f64, f64),
}

/// Fits at most `modes` modes; those not needed are zero.
pub(super) fn fit(h: &[f64], modes: usize) -> Fit {
    let poles = poles(h, modes);
    let columns: Vec<Vec<f64>> = poles.iter().flat_map(|&p| trajectories(p, h.len())).collect();
    let weights = least_squares(&columns, h);
    let mut rest = h.to_vec();
    for (column, &w) in columns.iter().zip(&weights) {
        rest.iter_mut().zip(column).for_each(|(rest, x)| *rest -= w * x);
    }
    let squares = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
    let mut residues: Vec<C> = weights.chunks_exact(2).map(|w| C { re: w[0], im: w[1] }).collect();
    let mut poles = poles;
    residues.resize(modes, C::ZERO);
    poles.resize(modes, C::ZERO);
    Fit { poles, residues, error: (squares(&rest), squares(h)) }
}

/// Re p^t and -Im p^t: what the two parts of a residue multiply.
fn trajectories(p: C, len: usize) -> [Vec<f64>; 2] {
    let (mut power, mut re, mut im) = (C::ONE, Vec::with_capacity(len), Vec::with_capacity(len));
    for _ in 0..len {
        re.push(power.re);
        im.push(-power.im);
        power = power * p;
    }
    [re, im]
}

/// At most `modes` poles in the closed upper half of the unit disc.
fn poles(h: &[f64], modes: usize) -> Vec<C> {
    let window = (4 * modes).clamp(16, 128).min(h.len() / 2);
    if window < 2 || h.iter().all(|&x| x == 0.0) {
        return vec![C::ZERO; modes.min(1)];
    }
    let basis = symmetric_eigenvectors(gram(h, window), window);
    // A pair of conjugate poles is one mode, a real pole one as well: fewer dimensions until they fit.
    let most = (2 * modes).min(window - 1);
    for order in (1..=most).rev() {
        let found = eigenvalues(&shift(&basis[..order], window), order);
        let upper: Vec<C> = found.into_iter().filter(|p| p.im >= -1e-12).map(inside).collect();
        if upper.len() <= modes {
            return upper;
        }
    }
    vec![C::ZERO; modes.min(1)]
}

/// Growing modes decay instead, at the same rate.
fn inside(p: C) -> C {
    let radius = p.abs();
    if radius > 1.0 { p.scaled(1.0 / (radius * radius)) } else { p }
}

/// `G[i, j] = Σ_t h[t + i] h[t + j]` over the windows, (m, m): each diagonal from its first element on.
fn gram(h: &[f64], m: usize) -> Vec<f64> {
    let windows = h.len() - m + 1;
    let mut g = vec![0.0; m * m];
    for lag in 0..m {
        let mut sum: f64 = (0..windows).map(|t| h[t] * h[t + lag]).sum();
        for i in 0..m - lag {
            let j = i + lag;
            (g[i * m + j], g[j * m + i]) = (sum, sum);
            if j + 1 < m {
                sum += h[i + windows] * h[j + windows] - h[i] * h[j];
            }
        }
    }
    g
}

/// Φ of the least squares `U[1..] ≈ U[..m-1] Φ`, for orthonormal columns U (the given rows): all but a correction of rank
/// one is `U[..m-1]ᵀ U[1..]`.
fn shift(basis: &[Vec<f64>], m: usize) -> Vec<f64> {
    let order = basis.len();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut a: Vec<f64> =
        (0..order * order).map(|i| dot(&basis[i / order][..m - 1], &basis[i % order][1..])).collect();
    let last: Vec<f64> = basis.iter().map(|u| u[m - 1]).collect();
    let rest = (1.0 - dot(&last, &last)).max(1e-12);
    let row: Vec<f64> =
        (0..order).map(|j| (0..order).map(|i| last[i] * a[i * order + j]).sum::<f64>() / rest).collect();
    for i in 0..order {
        for j in 0..order {
            a[i * order + j] += last[i] * row[j];
        }
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_exponentials_are_found() {
        let modes = [(0.98, 0.3, 1.0, -0.5), (0.9, 1.5, 0.3, 0.2), (0.7, 0.0, -1.0, 0.0)];
        let h: Vec<f64> = (0..300)
            .map(|t| {
                let mode = |&(r, w, a, b): &(f64, f64, f64, f64)| {
                    let t = f64::from(t);
                    r.powf(t) * (a * (w * t).cos() - b * (w * t).sin())
                };
                modes.iter().map(mode).sum()
            })
            .collect();
        let Fit { poles, error, .. } = fit(&h, 3);
        assert!((error.0 / error.1).sqrt() < 1e-7, "{error:?}");
        for (r, w, ..) in modes {
            let near = |p: &C| (p.re - r * w.cos()).hypot(p.im - r * w.sin()) < 1e-5;
            assert!(poles.iter().any(near), "{r} {w}: {poles:?}");
        }
    }

    #[test]
    fn nothing_and_too_little_are_harmless() {
        for h in [&[][..], &[1.0], &[0.0; 50], &[1.0, 2.0, 3.0], &[1.0; 40]] {
            let Fit { poles, residues, error } = fit(h, 4);
            assert_eq!((poles.len(), residues.len()), (4, 4));
            assert!(poles.iter().chain(&residues).all(|c| c.re.is_finite() && c.im.is_finite()));
            assert!(error.0 <= error.1 * (1.0 + 1e-12));
        }
    }
}
