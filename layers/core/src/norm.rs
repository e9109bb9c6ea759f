//! Norms over the features of each token.

use candle_core::{D, Result, Tensor};
use schemars::JsonSchema;
use semisep_kernels::{gated_rms_norm, layer_norm, rms_norm};
use serde::{Deserialize, Serialize};

use crate::{Init, VarBuilder};

/// The norms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NormKind {
    /// `x / √(mean x² + eps) · w` (Zhang & Sennrich 2019).
    #[default]
    Rms,
    /// `(x - mean) / √(var + eps) · w + b` (Ba et al. 2016).
    Layer,
    /// `x / (√(mean x²) + eps) · w`: eps outside of the root (StripedHyena).
    #[serde(rename = "rms_outside")]
    RmsOutside,
}

/// `norm = { kind = "rms", eps = 1e-5 }`
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NormConfig {
    /// Which norm.
    pub kind: NormKind,
    /// Added under the root, or to it.
    pub eps: f64,
}

impl Default for NormConfig {
    fn default() -> Self {
        Self { kind: NormKind::Rms, eps: 1e-5 }
    }
}

/// A norm with its parameters: `weight`, and `bias` for the layer norm.
#[derive(Debug, Clone)]
pub struct Norm {
    config: NormConfig,
    weight: Tensor,
    bias: Option<Tensor>,
    /// What stands in `weight` is the factor less one.
    offset: bool,
}

impl Norm {
    /// Over `features` features.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(features: usize, config: NormConfig, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get_f32(features, "weight", Init::ONES)?;
        let bias = (config.kind == NormKind::Layer)
            .then(|| vb.get_f32(features, "bias", Init::ZEROS))
            .transpose()?;
        Ok(Self { config, weight, bias, offset: false })
    }

    /// An RMS norm with the factor `1 + weight`, as Gemma's and Qwen3-Next's checkpoints have it.
    ///
    /// # Errors
    /// If the parameter is missing or has another shape.
    pub fn with_unit_offset(features: usize, eps: f64, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get_f32(features, "weight", Init::ZEROS)?;
        Ok(Self { config: NormConfig { kind: NormKind::Rms, eps }, weight, bias: None, offset: true })
    }

    /// (..., features) -> (..., features).
    ///
    /// # Errors
    /// If the last dimension differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.config.kind {
            NormKind::Rms if self.offset => {
                rms_norm(x, Some(&(&self.weight + 1.0)?), self.config.eps, self.weight.elem_count())
            }
            NormKind::Rms => rms_norm(x, Some(&self.weight), self.config.eps, self.weight.elem_count()),
            NormKind::Layer => layer_norm(x, Some(&self.weight), self.bias.as_ref(), self.config.eps),
            NormKind::RmsOutside => self.rms_outside(x),
        }
    }
}

impl Norm {
    fn rms_outside(&self, x: &Tensor) -> Result<Tensor> {
        /// Keeps the root differentiable where all features are zero.
        const TINY: f64 = 1e-30;
        let wide = x.to_dtype(self.weight.dtype())?;
        let root = (wide.sqr()?.mean_keepdim(D::Minus1)? + TINY)?.sqrt()?;
        wide.broadcast_div(&(root + self.config.eps)?)?.broadcast_mul(&self.weight)?.to_dtype(x.dtype())
    }
}

/// The gated norm of Mamba-2: `norm(y · silu(z))`, or `norm(y) · silu(z)`, over groups of features.
#[derive(Debug, Clone)]
pub struct GatedRmsNorm {
    weight: Tensor,
    eps: f64,
    group: usize,
    norm_before_gate: bool,
}

impl GatedRmsNorm {
    /// Over `features` features in groups of `group`.
    ///
    /// # Errors
    /// If the weight is missing or has another shape.
    pub fn new(
        features: usize,
        group: usize,
        eps: f64,
        norm_before_gate: bool,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let weight = vb.get_f32(features, "weight", Init::ONES)?;
        Ok(Self { weight, eps, group, norm_before_gate })
    }

    /// `y`, `z` and the result: (..., features).
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(&self, y: &Tensor, z: &Tensor) -> Result<Tensor> {
        gated_rms_norm(y, z, Some(&self.weight), self.eps, self.group, self.norm_before_gate)
    }
}
