//! How near `linear` comes to the limits of this machine.
//!
//! ```text
//! cargo run --release -p semisep-kernels --example linear_speed
//! ```
//! One token of a model shaped as mamba-130m (97 matrices, more weights than any cache holds) against the memory's read
//! bandwidth, for one row and for several; then one large matrix at many rows against the rate of a square product.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use semisep_kernels::{Activations, BlockFormat, Matrix, Quantised, machine};

fn main() -> Result<()> {
    let dense = |dtype: DType| move |w: Tensor| Ok(Matrix::Dense(w.to_dtype(dtype)?));
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        Token::new(dense(dtype))?.report(dtype.as_str())?;
    }
    for format in BlockFormat::ALL {
        for activations in [Activations::Rounded, Activations::Exact] {
            let quantised = move |w: Tensor| match format.for_columns(w.dim(1)?) {
                Some(format) => {
                    Ok(Matrix::Quantised(Quantised::quantise(&w, format)?.with_activations(activations)))
                }
                None => Ok(Matrix::Dense(w.to_dtype(DType::F16)?)),
            };
            Token::new(quantised)?.report(&format!("{format} ({activations:?} activations)"))?;
        }
    }
    let peak = machine::gemm_rate();
    println!("matrix product 2048 x 2048 x 2048: {:.1} GFLOP/s", peak / 1e9);
    let weight = Tensor::rand(-1f32, 1f32, (3072, 768), &Device::Cpu)?;
    for (name, weight) in [
        ("f32", Matrix::Dense(weight.clone())),
        ("bf16", Matrix::Dense(weight.to_dtype(DType::BF16)?)),
        ("q8_0", Matrix::Quantised(Quantised::quantise(&weight, BlockFormat::Q8_0)?)),
        ("q4_k", Matrix::Quantised(Quantised::quantise(&weight, BlockFormat::Q4K)?)),
    ] {
        for rows in [16, 32, 64, 256] {
            let rate = many_rows(rows, &weight)?;
            println!(
                "768 -> 3072, {name} weights, {rows} rows: {:.1} GFLOP/s, {:.0} % of the square product",
                rate / 1e9,
                100.0 * rate / peak
            );
        }
    }
    Ok(())
}

/// The matrices that one token passes: 24 layers of (inputs, outputs), and the head.
struct Token {
    weights: Vec<Matrix>,
}

impl Token {
    fn new(held: impl Fn(Tensor) -> Result<Matrix>) -> Result<Self> {
        let layer = [(768, 3072), (1536, 80), (48, 1536), (1536, 768)];
        let shapes = (0..24).flat_map(|_| layer).chain([(768, 50280)]);
        let weight = |(inputs, outputs)| held(Tensor::rand(-1f32, 1f32, (outputs, inputs), &Device::Cpu)?);
        Ok(Self { weights: shapes.map(weight).collect::<Result<_>>()? })
    }

    fn report(&self, name: &str) -> Result<()> {
        for rows in [1, 4] {
            // Side by side, as both vary with what else the machine does.
            let (mut bandwidth, mut seconds) = (0.0f64, f64::INFINITY);
            for _ in 0..2 {
                bandwidth = bandwidth.max(machine::read_bandwidth());
                seconds = seconds.min(self.best_seconds(rows)?);
            }
            let rate = self.bytes() as f64 / seconds;
            println!(
                "token, {name} weights, {rows} rows: {:.2} ms, {:.1} GB/s, {:.0} % of the reads at {:.1} GB/s",
                seconds * 1e3,
                rate / 1e9,
                100.0 * rate / bandwidth,
                bandwidth / 1e9,
            );
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.weights.iter().map(Matrix::size_in_bytes).sum()
    }

    fn best_seconds(&self, rows: usize) -> Result<f64> {
        let x = |w: &Matrix| Tensor::rand(-1f32, 1f32, (rows, w.dim(1)?), &Device::Cpu);
        let inputs: Vec<Tensor> = self.weights.iter().map(x).collect::<Result<_>>()?;
        best(5, || {
            for (x, w) in inputs.iter().zip(&self.weights) {
                w.apply(x, None)?;
            }
            Ok(())
        })
    }
}

fn many_rows(rows: usize, w: &Matrix) -> Result<f64> {
    let x = Tensor::rand(-1f32, 1f32, (rows, 768), &Device::Cpu)?;
    let seconds = best(20, || w.apply(&x, None).map(drop))?;
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
