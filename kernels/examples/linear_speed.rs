//! How near `linear` comes to the limits of this machine.
//!
//! ```text
//! cargo run --release -p semisep-kernels --example linear_speed
//! ```
//! One token of a model shaped as mamba-130m (97 matrices, more weights than any cache holds) against the memory's read
//! bandwidth, for one row and for several; then one large matrix at many rows against the rate of a square product.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use semisep_kernels::{linear, machine};

fn main() -> Result<()> {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let token = Token::new(dtype)?;
        for rows in [1, 2, 4, 8] {
            // Side by side, as both vary with what else the machine does.
            let (mut bandwidth, mut seconds) = (0.0f64, f64::INFINITY);
            for _ in 0..4 {
                bandwidth = bandwidth.max(machine::read_bandwidth());
                seconds = seconds.min(token.best_seconds(rows)?);
            }
            let rate = token.bytes() as f64 / seconds;
            println!(
                "token, {dtype:?} weights, {rows} rows: {:.2} ms, {:.1} GB/s, {:.0} % of the reads at {:.1} GB/s",
                seconds * 1e3,
                rate / 1e9,
                100.0 * rate / bandwidth,
                bandwidth / 1e9,
            );
        }
    }
    let peak = machine::gemm_rate();
    println!("matrix product 2048 x 2048 x 2048: {:.1} GFLOP/s", peak / 1e9);
    for dtype in [DType::F32, DType::BF16] {
        for rows in [8, 32, 64, 128, 256, 512] {
            let rate = many_rows(rows, dtype)?;
            println!(
                "768 -> 3072, {dtype:?} weights, {rows} rows: {:.1} GFLOP/s, {:.0} % of the square product",
                rate / 1e9,
                100.0 * rate / peak
            );
        }
    }
    Ok(())
}

/// The matrices that one token passes: 24 layers of (inputs, outputs), and the head.
struct Token {
    weights: Vec<Tensor>,
}

impl Token {
    fn new(dtype: DType) -> Result<Self> {
        let layer = [(768, 3072), (1536, 80), (48, 1536), (1536, 768)];
        let shapes = (0..24).flat_map(|_| layer).chain([(768, 50280)]);
        let weight =
            |(inputs, outputs)| Tensor::rand(-1f32, 1f32, (outputs, inputs), &Device::Cpu)?.to_dtype(dtype);
        Ok(Self { weights: shapes.map(weight).collect::<Result<_>>()? })
    }

    fn bytes(&self) -> usize {
        self.weights.iter().map(|w| w.elem_count() * w.dtype().size_in_bytes()).sum()
    }

    fn best_seconds(&self, rows: usize) -> Result<f64> {
        let x = |w: &Tensor| Tensor::rand(-1f32, 1f32, (rows, w.dim(1)?), &Device::Cpu);
        let inputs: Vec<Tensor> = self.weights.iter().map(x).collect::<Result<_>>()?;
        best(5, || {
            for (x, w) in inputs.iter().zip(&self.weights) {
                linear(x, w, None)?;
            }
            Ok(())
        })
    }
}

fn many_rows(rows: usize, dtype: DType) -> Result<f64> {
    let x = Tensor::rand(-1f32, 1f32, (rows, 768), &Device::Cpu)?;
    let w = Tensor::rand(-1f32, 1f32, (3072, 768), &Device::Cpu)?.to_dtype(dtype)?;
    let seconds = best(20, || linear(&x, &w, None).map(drop))?;
    Ok((2 * rows * 768 * 3072) as f64 / seconds)
}

fn best(passes: usize, mut pass: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut seconds = f64::INFINITY;
    for _ in 0..passes {
        let start = Instant::now();
        pass()?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}
