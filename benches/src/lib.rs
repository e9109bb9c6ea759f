//! What the benchmarks share: seeded data.

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::Rng;

/// Standard normal f32 values, the same for the same seed and shape.
///
/// # Errors
/// If memory cannot be had.
pub fn randn(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let mut rng = Rng::new(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(DType::F32)
}
