//! Numerical rank of matrices and of the blocks below their diagonal.
//!
//! A causal matrix is *n-semiseparable* if every block that lies wholly below its diagonal has rank at most n: what reaches
//! later tokens from earlier ones then fits through a state of n numbers (Dao & Gu 2024, section 3).

use candle_core::{DType, Result, Tensor, bail};

/// The rank of a matrix of finite numbers, row-major with `columns` columns: how many steps of Gram-Schmidt with column
/// pivoting leave no column longer than `tolerance` times the first pivot.
///
/// # Errors
/// If a number is not finite or the rows are not whole.
pub fn rank(matrix: &[f64], columns: usize, tolerance: f64) -> Result<usize> {
    if columns == 0 || matrix.is_empty() {
        return Ok(0);
    }
    if !matrix.len().is_multiple_of(columns) {
        bail!("rank: {} numbers do not make rows of {columns}", matrix.len());
    }
    if let Some(bad) = matrix.iter().find(|v| !v.is_finite()) {
        bail!("rank: the matrix holds {bad}, expected finite numbers");
    }
    // Scaled, so that no square overflows or vanishes.
    let largest = matrix.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    if largest == 0.0 {
        return Ok(0);
    }
    let column = |j: usize| matrix.iter().skip(j).step_by(columns).map(|v| v / largest).collect();
    let mut rest: Vec<Vec<f64>> = (0..columns).map(column).collect();
    let (mut found, mut first, rows) = (0, None, matrix.len() / columns);
    while found < rows {
        let Some((pivot, length)) = longest(&rest) else { break };
        if length <= tolerance * *first.get_or_insert(length) {
            break;
        }
        let direction: Vec<f64> = rest.swap_remove(pivot).iter().map(|v| v / length).collect();
        for column in &mut rest {
            // Twice: what rounding leaves of the direction after the first time would count as rank.
            for _ in 0..2 {
                let along: f64 = column.iter().zip(&direction).map(|(c, d)| c * d).sum();
                column.iter_mut().zip(&direction).for_each(|(c, d)| *c -= along * d);
            }
        }
        found += 1;
    }
    Ok(found)
}

/// The longest column and its length.
fn longest(columns: &[Vec<f64>]) -> Option<(usize, f64)> {
    let lengths = columns.iter().map(|c| c.iter().map(|v| v * v).sum::<f64>().sqrt());
    lengths.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, length)| *length > 0.0)
}

/// The rank of the blocks below the diagonal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffDiagonal {
    /// The largest over the blocks looked at.
    pub rank: usize,
    /// What it could be: the smaller side of the largest block.
    pub possible: usize,
}

/// The rank of the blocks `M[i.., ..i]` of a matrix (l, l), at up to `splits` evenly spaced i.
///
/// # Errors
/// If the matrix is not square or holds a number that is not finite.
pub fn off_diagonal_rank(matrix: &Tensor, splits: usize, tolerance: f64) -> Result<OffDiagonal> {
    let (l, columns) = matrix.dims2()?;
    if l != columns {
        bail!("off_diagonal_rank: the matrix has shape ({l}, {columns}), expected a square one");
    }
    let values: Vec<f64> = matrix.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    let mut at: Vec<usize> = (1..=splits).map(|k| k * l / (splits + 1)).filter(|&i| i > 0).collect();
    at.dedup();
    let mut best = OffDiagonal { rank: 0, possible: 0 };
    for i in at {
        let block: Vec<f64> = (i..l).flat_map(|t| values[t * l..t * l + i].iter().copied()).collect();
        best.rank = best.rank.max(rank(&block, i, tolerance)?);
        best.possible = best.possible.max(i.min(l - i));
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use semisep_core::Rng;

    use super::*;

    fn random(rows: usize, columns: usize, seed: u64) -> Tensor {
        let mut rng = Rng::new(seed);
        let values: Vec<f64> = (0..rows * columns).map(|_| rng.normal()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn of(t: &Tensor, tolerance: f64) -> usize {
        let values = t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        rank(&values, t.dim(1).unwrap(), tolerance).unwrap()
    }

    #[test]
    fn products_have_the_rank_of_their_waist() -> Result<()> {
        for (rows, waist, columns) in [(7, 3, 9), (40, 11, 25), (25, 25, 40), (64, 1, 64), (5, 5, 5)] {
            let product = random(rows, waist, 1).matmul(&random(waist, columns, 2))?;
            for scale in [1.0, 1e-200, 1e200] {
                assert_eq!(of(&(&product * scale)?, 1e-9), waist, "{rows} {waist} {columns} {scale}");
            }
        }
        Ok(())
    }

    /// Singular values 1, 1/100, 1/10000, ...: as many count as lie above the tolerance.
    #[test]
    fn the_tolerance_is_relative() -> Result<()> {
        let n = 6;
        let scales: Vec<f64> = (0..n).map(|k| 100f64.powi(-k)).collect();
        let scales = Tensor::from_vec(scales, (1, n as usize), &Device::Cpu)?;
        let graded = random(30, 6, 1).broadcast_mul(&scales)?.matmul(&random(6, 30, 2))?;
        assert_eq!((of(&graded, 1e-5), of(&graded, 1e-13)), (3, 6));
        Ok(())
    }

    #[test]
    fn zeros_and_damage() {
        assert_eq!(rank(&[0.0; 12], 3, 1e-9).unwrap(), 0);
        assert_eq!(rank(&[], 0, 1e-9).unwrap(), 0);
        assert_eq!(rank(&[2.0, 4.0, 1.0, 2.0], 2, 1e-9).unwrap(), 1);
        assert!(rank(&[1.0, f64::NAN], 1, 1e-9).unwrap_err().to_string().contains("NaN"));
        assert!(rank(&[1.0; 5], 2, 1e-9).is_err());
    }

    /// A triangle of ones is a sum: one number is all that passes any split. The whole matrix has full rank.
    #[test]
    fn a_running_sum_is_1_semiseparable() -> Result<()> {
        let sum = semisep_core::lower_triangle(20, DType::F64, &Device::Cpu)?;
        assert_eq!(off_diagonal_rank(&sum, 7, 1e-9)?, OffDiagonal { rank: 1, possible: 10 });
        assert_eq!(of(&sum, 1e-9), 20);
        let none = off_diagonal_rank(&sum.narrow(0, 0, 1)?.narrow(1, 0, 1)?, 7, 1e-9)?;
        assert_eq!(none, OffDiagonal { rank: 0, possible: 0 });
        assert!(off_diagonal_rank(&sum.narrow(0, 0, 3)?, 7, 1e-9).is_err());
        Ok(())
    }
}
