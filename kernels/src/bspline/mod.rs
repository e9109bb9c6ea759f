//! B-spline basis functions: what a Kolmogorov-Arnold layer makes of each of its inputs.
//!
//! ```text
//! b_j^0(x) = 1 if g_j ≤ x < g_{j+1}, else 0
//! b_j^d(x) = (x - g_j) / (g_{j+d} - g_j) b_j^{d-1}(x) + (g_{j+d+1} - x) / (g_{j+d+1} - g_{j+1}) b_{j+1}^{d-1}(x)
//! ```
//! for ascending knots g_0 ≤ ... ≤ g_{m-1}: m - 1 - d functions of order d. Where knots coincide, 0/0 counts as 0. Outside
//! the grid all functions are 0. Source: de Boor 1978, chapter IX; Liu et al. 2024 (KAN), section 2.2.
//!
//! | symbol | here | shape |
//! |---|---|---|
//! | x | `x` | (..., i) |
//! | g | `grid` | (i, m), the knots of each feature |
//! | b | result | (..., k, i) with k = m - 1 - order: function first, so that features lie side by side |

mod cpu;
pub(crate) mod naive;

use candle_core::{DType, Result, Shape, Tensor, bail};

use crate::check;
use crate::host::{self, Rows, state_dtype};
use crate::simd::Real;
use crate::tape::{self, Backward};

const OP: &str = "bspline_basis";

/// The basis functions of each feature: x (..., i) and grid (i, m) -> (..., m - 1 - order, i) in x's dtype.
/// Differentiable in x; the grid is a constant.
///
/// # Errors
/// If the shapes do not fit, a row of the grid is not ascending, or the data is not on the CPU.
pub fn bspline_basis(x: &Tensor, grid: &Tensor, order: usize) -> Result<Tensor> {
    check::on_cpu(OP, x.device())?;
    check_args(x, grid, order)?;
    let y = match state_dtype(x.dtype()) {
        DType::F64 => in_type::<f64>(x, grid, order)?,
        _ => in_type::<f32>(x, grid, order)?,
    };
    y.to_dtype(x.dtype())
}

/// Number of functions on `knots` knots.
fn functions(knots: usize, order: usize) -> Option<usize> {
    knots.checked_sub(order + 1).filter(|&k| k > 0)
}

fn check_args(x: &Tensor, grid: &Tensor, order: usize) -> Result<usize> {
    let Some(&features) = x.dims().last() else { bail!("{OP}: x is a scalar, expected (..., features)") };
    let Ok((_, m)) = grid.dims2() else {
        bail!("{OP}: grid has shape {}, expected ({features}, knots)", check::tuple(grid.dims()))
    };
    check::shape(OP, "x", x, x.dims(), "(..., features)")?;
    check::shape(OP, "grid", grid, &[features, m], "a row of knots for each feature of x")?;
    match functions(m, order) {
        Some(k) => Ok(k),
        None => bail!("{OP}: {m} knots make no function of order {order}, expected at least {}", order + 2),
    }
}

fn in_type<T: Real>(x: &Tensor, grid: &Tensor, order: usize) -> Result<Tensor> {
    let x = host::in_rows(&x.to_dtype(T::DTYPE)?, x.rank() - 1)?;
    let grid = grid.detach().to_dtype(T::DTYPE)?.contiguous()?;
    let spline = {
        let (features, m) = grid.dims2()?;
        let (storage, layout) = grid.storage_and_layout();
        let knots = host::slice::<T>(&storage, layout)?;
        if let Some(i) = (0..features).find(|i| !knots[i * m..(i + 1) * m].is_sorted()) {
            bail!("{OP}: the knots of feature {i} are not ascending");
        }
        cpu::Spline::new(knots, m, order)
    };
    let mut shape = x.dims().to_vec();
    shape.insert(shape.len() - 1, spline.functions());
    let y = {
        let (storage, layout) = x.storage_and_layout();
        spline.forward(Rows::of_last(&storage, layout)?)
    };
    let out = vec![(host::storage(y), Shape::from(shape))];
    Ok(tape::record(Basis { spline }, &[Some(&x)], out)?.swap_remove(0))
}

/// The node of the autograd graph.
struct Basis<T> {
    spline: cpu::Spline<T>,
}

impl<T: Real> Backward for Basis<T> {
    fn name(&self) -> &'static str {
        OP
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        _: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let ([Some(x)], [Some(grad)]) = (inputs, grads) else { bail!("{OP}: there is no gradient") };
        let (xs, grad) = (x.storage_and_layout(), grad.storage_and_layout());
        let dx = self.spline.backward(Rows::of_last(&xs.0, xs.1)?, host::slice(&grad.0, grad.1)?);
        Ok(vec![Some(host::tensor(dx, x.shape()))])
    }
}
