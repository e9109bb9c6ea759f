//! Rotary positions (Su et al. 2021): pairs of features turn by an angle that grows with the position.

use candle_core::{DType, Device, Result, Tensor};
use schemars::JsonSchema;
use semisep_kernels::RotaryLayout;
use serde::{Deserialize, Serialize};

/// `rope = { dim = 64, theta = 10000.0 }`
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotaryConfig {
    /// How many features of each head turn; the rest pass. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dim: Option<usize>,
    /// Base of the wavelengths.
    #[serde(default = "theta")]
    pub theta: f64,
    /// Pairs (2i, 2i + 1) instead of (i, i + dim/2).
    #[serde(default)]
    pub interleaved: bool,
}

fn theta() -> f64 {
    10_000.0
}

/// The angles of one layer's heads.
#[derive(Debug, Clone)]
pub struct Rotary {
    inv_freq: Tensor, // (dim/2) f64 on the CPU, f32 elsewhere
    layout: RotaryLayout,
}

impl Rotary {
    /// Angles `theta^(-2i/dim)` for heads of `head_dim` features.
    ///
    /// # Errors
    /// If memory cannot be had on the device.
    pub fn new(config: &RotaryConfig, head_dim: usize, device: &Device) -> Result<Self> {
        let dim = config.dim.unwrap_or(head_dim);
        let inv_freq: Vec<f64> =
            (0..dim / 2).map(|i| config.theta.powf(-2.0 * i as f64 / dim as f64)).collect();
        let dtype = if device.is_cpu() { DType::F64 } else { DType::F32 };
        let inv_freq =
            Tensor::from_vec(inv_freq, dim / 2, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
        let layout = if config.interleaved { RotaryLayout::Interleaved } else { RotaryLayout::Half };
        Ok(Self { inv_freq, layout })
    }

    /// x (b, l, h, p) with the first token of each row (or packed sequence) at its `positions`.
    ///
    /// # Errors
    /// If there is not one position a row.
    pub fn forward(&self, x: &Tensor, positions: &[usize], cu_seqlens: Option<&[usize]>) -> Result<Tensor> {
        semisep_kernels::rotary(x, &self.inv_freq, positions, self.layout, cu_seqlens)
    }
}
