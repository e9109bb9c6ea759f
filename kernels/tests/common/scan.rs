//! A scan's outputs, final states and gradients, computed two ways and compared.

use candle_core::{DType, Result, Tensor, Var};

use super::assert_close;

/// Inputs by name.
pub type Named<T> = Vec<(&'static str, T)>;

/// Output, final state, and the gradients of all inputs.
pub type Solution = (Tensor, Tensor, Named<Tensor>);

/// The inputs as variables of this dtype.
pub fn variables(inputs: &[(&'static str, Tensor)], dtype: DType) -> Result<Named<Var>> {
    inputs.iter().map(|(name, t)| Ok((*name, Var::from_tensor(&t.to_dtype(dtype)?)?))).collect()
}

/// The solution for the sum of output and state times their cotangents; inputs that play no part have gradient 0.
pub fn solution(
    (y, state): (Tensor, Tensor),
    cotangents: [&Tensor; 2],
    vars: &Named<Var>,
) -> Result<Solution> {
    let loss = ((y.to_dtype(DType::F64)? * cotangents[0])?.sum_all()?
        + (state.to_dtype(DType::F64)? * cotangents[1])?.sum_all()?)?;
    let grads = if loss.track_op() { Some(loss.backward()?) } else { None };
    let grads = vars.iter().map(|(name, var)| {
        let grad = grads.as_ref().and_then(|g| g.get(var));
        Ok((*name, grad.map_or_else(|| var.zeros_like(), |g| Ok(g.clone()))?))
    });
    Ok((y.clone(), state.clone(), grads.collect::<Result<_>>()?))
}

/// Tolerances: of outputs and states, of gradients.
#[track_caller]
pub fn compare(what: &str, got: &Solution, want: &Solution, tolerance: (f64, f64)) {
    assert_close(&format!("{what}: y"), &got.0, &want.0, tolerance.0);
    assert_close(&format!("{what}: state"), &got.1, &want.1, tolerance.0);
    for ((name, got), (_, want)) in got.2.iter().zip(&want.2) {
        assert_close(&format!("{what}: gradient of {name}"), got, want, tolerance.1);
    }
}
