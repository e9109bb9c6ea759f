//! Rotary positions (Su et al. 2021): pairs of features turn by an angle that grows with the position.
//!
//! ```text
//! φ_i = position · f_i        f_i = θ^(-2i/dim), then scaled for contexts longer than those of the training:
//! linear   f / factor                                                          (Chen et al. 2023)
//! llama3   f / factor below a frequency, f above another, smooth between       (Llama 3.1)
//! yarn     the same with a ramp over i, and features times an attention factor (Peng et al. 2023, section 3)
//! ```

use std::f64::consts::PI;

use candle_core::{D, DType, Device, Result, Tensor};
use schemars::JsonSchema;
use semisep_kernels::RotaryLayout;
use serde::{Deserialize, Serialize};

use crate::Issue;

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
    /// Slower turning, for contexts longer than those of the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<RotaryScaling>,
}

/// `scaling = { rope_type = "linear", factor = 4.0 }`; names as in transformers' `rope_scaling`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "rope_type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RotaryScaling {
    /// Every frequency over a factor: positions interpolated.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies over a factor, high ones as they are.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings` over this are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings` over this stay.
        high_freq_factor: f64,
        /// Context of the training.
        original_max_position_embeddings: usize,
    },
    /// Low frequencies over a factor, high ones as they are, and turned features times another factor.
    Yarn {
        /// The factor.
        factor: f64,
        /// Context of the training.
        original_max_position_embeddings: usize,
        /// Pairs that turn more often than this within it stay.
        #[serde(default = "thirty_two")]
        beta_fast: f64,
        /// Pairs that turn less often are stretched.
        #[serde(default = "one")]
        beta_slow: f64,
        /// Factor on the turned features of queries and keys. Default: 0.1 ln(factor) + 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attention_factor: Option<f64>,
        /// Whether the ends of the ramp are rounded to whole pairs.
        #[serde(default = "yes")]
        truncate: bool,
    },
}

fn theta() -> f64 {
    10_000.0
}

fn thirty_two() -> f64 {
    32.0
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

impl Default for RotaryConfig {
    fn default() -> Self {
        Self { dim: None, theta: theta(), interleaved: false, scaling: None }
    }
}

impl RotaryConfig {
    /// What is wrong for heads of `head_dim` features, as an issue of `key`.
    pub fn check(&self, key: &str, head_dim: usize) -> Option<Issue> {
        let dim = self.dim.unwrap_or(head_dim);
        if !(self.theta > 0.0 && self.theta.is_finite()) {
            return Some(Issue::new(key, format!("expected theta > 0, found {}", self.theta)));
        }
        if dim == 0 || dim % 2 == 1 || dim > head_dim {
            let message = format!("expected an even dim up to head_dim = {head_dim}, found {dim}");
            return Some(Issue::new(key, message));
        }
        if matches!(self.scaling, Some(RotaryScaling::Yarn { .. })) && self.theta <= 1.0 {
            return Some(Issue::new(
                key,
                format!("scaling: expected theta > 1 with yarn, found {}", self.theta),
            ));
        }
        self.scaling.and_then(|scaling| scaling.check(key))
    }

    /// Radians a position of each pair of features, in heads of `head_dim`.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let dim = self.dim.unwrap_or(head_dim);
        let mut f: Vec<f64> = (0..dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / dim as f64)).collect();
        if let Some(scaling) = &self.scaling {
            scaling.apply(&mut f, dim, self.theta);
        }
        f
    }

    /// Factor on the turned features of queries and keys.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            Some(RotaryScaling::Yarn { attention_factor: Some(given), .. }) => given,
            Some(RotaryScaling::Yarn { factor, .. }) if factor > 1.0 => 0.1 * factor.ln() + 1.0,
            _ => 1.0,
        }
    }
}

impl RotaryScaling {
    fn check(&self, key: &str) -> Option<Issue> {
        let expected =
            |what: &str| Some(Issue::new(key, format!("scaling: expected {what}, found {self:?}")));
        let good = |v: f64| v > 0.0 && v.is_finite();
        let (Self::Linear { factor } | Self::Llama3 { factor, .. } | Self::Yarn { factor, .. }) = *self;
        if !good(factor) {
            return expected("factor > 0");
        }
        match *self {
            Self::Linear { .. } => None,
            Self::Llama3 {
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: n,
                ..
            } => {
                if n == 0 {
                    return expected("original_max_position_embeddings from 1 on");
                }
                let ordered = good(low) && good(high) && low < high;
                if ordered { None } else { expected("0 < low_freq_factor < high_freq_factor") }
            }
            Self::Yarn {
                original_max_position_embeddings, beta_fast, beta_slow, attention_factor, ..
            } => {
                if original_max_position_embeddings == 0 {
                    return expected("original_max_position_embeddings from 1 on");
                }
                if !good(attention_factor.unwrap_or(1.0)) {
                    return expected("attention_factor > 0");
                }
                let ordered = good(beta_slow) && good(beta_fast) && beta_slow <= beta_fast;
                if ordered { None } else { expected("0 < beta_slow <= beta_fast") }
            }
        }
    }

    fn apply(&self, frequencies: &mut [f64], dim: usize, theta: f64) {
        match *self {
            Self::Linear { factor } => frequencies.iter_mut().for_each(|f| *f /= factor),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: n,
            } => {
                for f in frequencies {
                    // Turns within the context of the training, between `low` and `high`: 0 to 1.
                    let smooth = ((n as f64 * *f / (2.0 * PI) - low) / (high - low)).clamp(0.0, 1.0);
                    *f *= (1.0 - smooth) / factor + smooth;
                }
            }
            Self::Yarn {
                factor,
                original_max_position_embeddings: n,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => {
                // The pair that turns so often within the context of the training.
                let pair =
                    |turns: f64| dim as f64 * (n as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                for (i, f) in frequencies.iter_mut().enumerate() {
                    let slow = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    *f *= slow / factor + (1.0 - slow);
                }
            }
        }
    }
}

/// The angles of one layer's heads.
#[derive(Debug, Clone)]
pub struct Rotary {
    inv_freq: Tensor, // (dim/2) f64 on the CPU, f32 elsewhere
    layout: RotaryLayout,
    /// On the features that turn.
    factor: f64,
}

impl Rotary {
    /// The angles for heads of `head_dim` features.
    ///
    /// # Errors
    /// If memory cannot be had on the device.
    pub fn new(config: &RotaryConfig, head_dim: usize, device: &Device) -> Result<Self> {
        let inv_freq = config.frequencies(head_dim);
        let dtype = if device.is_cpu() { DType::F64 } else { DType::F32 };
        let pairs = inv_freq.len();
        let inv_freq = Tensor::from_vec(inv_freq, pairs, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
        let layout = if config.interleaved { RotaryLayout::Interleaved } else { RotaryLayout::Half };
        Ok(Self { inv_freq, layout, factor: config.attention_factor() })
    }

    /// x (b, l, h, p) with the first token of each row (or packed sequence) at its `positions`.
    ///
    /// # Errors
    /// If there is not one position a row.
    pub fn forward(&self, x: &Tensor, positions: &[usize], cu_seqlens: Option<&[usize]>) -> Result<Tensor> {
        let turned = semisep_kernels::rotary(x, &self.inv_freq, positions, self.layout, cu_seqlens)?;
        if self.factor == 1.0 {
            return Ok(turned);
        }
        let (p, dim) = (x.dim(D::Minus1)?, 2 * self.inv_freq.elem_count());
        let scaled = (turned.narrow(D::Minus1, 0, dim)? * self.factor)?;
        if dim == p {
            return Ok(scaled);
        }
        Tensor::cat(&[&scaled, &turned.narrow(D::Minus1, dim, p - dim)?], D::Minus1)
    }
}
