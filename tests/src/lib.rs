//! What the workspace's tests share: seeded data, distances, and the folder of golden checkpoints.

mod case;

use std::path::PathBuf;

use candle_core::{DType, Device, Result, Tensor};
pub use case::{Case, CaseParameters, cases};
use semisep_core::Rng;

/// Standard normal values, the same for the same seed and shape.
///
/// # Errors
/// If memory cannot be had.
pub fn randn(seed: u64, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let mut rng = Rng::new(seed);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// The elements in f64.
///
/// # Errors
/// If the dtype is not a float.
pub fn values(t: &Tensor) -> Result<Vec<f64>> {
    t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// RMS of `got - want` over RMS of `want`, in f64; NaN if either holds one.
///
/// # Errors
/// If the shapes differ.
pub fn relative_rms(got: &Tensor, want: &Tensor) -> Result<f64> {
    if got.dims() != want.dims() {
        candle_core::bail!("shapes {:?} and {:?} differ", got.dims(), want.dims());
    }
    let (got, want) = (values(got)?, values(want)?);
    let error: f64 = got.iter().zip(&want).map(|(g, w)| (g - w) * (g - w)).sum();
    let scale: f64 = want.iter().map(|w| w * w).sum();
    Ok(if error == 0.0 { 0.0 } else { (error / scale.max(1e-300)).sqrt() })
}

/// Fails the test unless `got` is within `tolerance` of `want`.
///
/// # Panics
/// If it is not, or a shape differs.
#[track_caller]
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    match relative_rms(got, want) {
        Ok(error) if error <= tolerance => {}
        Ok(error) => panic!("{what}: relative RMS {error:.3e}, tolerance {tolerance:.0e}"),
        Err(e) => panic!("{what}: {e}"),
    }
}

/// A golden checkpoint folder of this repository.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}
