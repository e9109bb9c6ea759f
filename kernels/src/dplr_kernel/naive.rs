//! The definition in tensor operations: the generating function at every root of unity, and a plain Fourier sum.

use std::f64::consts::PI;

use candle_core::{D, DType, Device, Result, Tensor};

use super::DplrKernel;
use crate::Complex;

/// [`dplr_kernel`](fn@super::dplr_kernel), slowly: the reference for the fast one.
///
/// # Errors
/// As the fast one.
pub fn dplr_kernel(args: &DplrKernel) -> Result<Tensor> {
    let dims = args.check()?;
    let device = args.poles.device();
    let nodes = dims.period;
    let omega = roots(nodes, device)?; // every root, conjugates and all
    let tau = omega.affine(1.0, 1.0)?;
    let z = omega.affine(-2.0, 2.0)?;
    // Both modes of each pair, (.., d, 2 n, 1).
    let both = |t: &Tensor| -> Result<Complex> {
        let t = Complex::from_pairs(t, DType::F64)?;
        let join = |a: &Tensor, b: &Tensor| Tensor::cat(&[a, b], D::Minus1)?.unsqueeze(D::Minus1);
        Ok(Complex { re: join(&t.re, &t.re)?, im: join(&t.im, &t.im.neg()?)? })
    };
    let w = both(args.poles)?;
    let q = z.sub(&tau.mul(&w)?)?.reciprocal()?; // (d, 2 n, nodes)
    let (x, y) = (both(args.left)?, both(args.right)?);
    // s[i][j] = Σ_n X_i Y_j q_n, (d, nodes) each
    let mut s: Vec<Vec<Complex>> = Vec::new();
    for i in 0..1 + dims.rank {
        let row = (0..dims.c + dims.rank)
            .map(|j| x.map(|t| t.get(i))?.mul(&y.map(|t| t.get(j))?)?.mul(&q)?.map(|t| t.sum(1)));
        s.push(row.collect::<Result<_>>()?);
    }
    // Woodbury, one rank at a time: r[i][j] - r[i][last] r[last][j] / (1 + r[last][last]), with r = τ s.
    while s.len() > 1 {
        let Some(last) = s.pop() else { break };
        let column = dims.c + s.len() - 1;
        let gain = tau.mul(&last[column].mul(&tau)?.affine(1.0, 1.0)?.reciprocal()?)?;
        for row in &mut s {
            let scaled = row[column].mul(&gain)?;
            for (entry, last) in row.iter_mut().zip(&last).take(column) {
                *entry = entry.sub(&scaled.mul(last)?)?;
            }
        }
    }
    // K[t] = (1/L) Re Σ_m K̂_m e^(2πi m t / L)
    let angle: Vec<f64> = (0..nodes * dims.length)
        .map(|i| 2.0 * PI * ((i / dims.length) * (i % dims.length) % nodes) as f64 / nodes as f64)
        .collect();
    let angle = Tensor::from_vec(angle, (nodes, dims.length), device)?;
    let (cos, sin) = (angle.cos()?, angle.sin()?);
    let filters = s[0][..dims.c]
        .iter()
        .map(|k| (k.re.matmul(&cos)? - k.im.matmul(&sin)?)?.affine(2.0 / nodes as f64, 0.0));
    Tensor::stack(&filters.collect::<Result<Vec<_>>>()?, 0)
}

/// `e^(-2πi m/L)` for all m < L.
fn roots(l: usize, device: &Device) -> Result<Complex> {
    let angles: Vec<f64> = (0..l).map(|m| -2.0 * PI * m as f64 / l as f64).collect();
    let angles = Tensor::from_vec(angles, l, device)?;
    Ok(Complex { re: angles.cos()?, im: angles.sin()? })
}
