//! Feature maps φ: what stands for the exponential of softmax attention.

use candle_core::{D, Result, Tensor};
use schemars::JsonSchema;
use semisep_core::{Init, Linear, ParameterGroup, VarBuilder};
use serde::{Deserialize, Serialize};

/// φ on a head's n features.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeatureMap {
    /// `elu(x) + 1` (Katharopoulos et al. 2020).
    #[default]
    Elu,
    /// `max(x, 0)`
    Relu,
    /// `x`
    Identity,
    /// Softmax over the features.
    Softmax,
    /// `(W1 x + b1) ⊙ (W2 x + b2)`: `layer1`, `layer2`.
    ElementwiseProduct,
    /// `max(W x + b, 0)` (Kasai et al. 2021): `layer`.
    T2r,
    /// Softmax over `[2 z, -2 z]`, `z = W x + b` (Zhang et al. 2024), 2 n features: `layer`, initially the identity.
    Hedgehog,
}

impl FeatureMap {
    /// Features of the result for `n` features.
    pub fn features(self, n: usize) -> usize {
        if self == Self::Hedgehog { 2 * n } else { n }
    }

    /// Floating-point operations for one head and token.
    pub(super) fn flops(self, n: usize) -> usize {
        match self {
            Self::Identity => 0,
            Self::Elu | Self::Relu | Self::Softmax => 4 * n,
            Self::ElementwiseProduct => 4 * n * n,
            Self::T2r | Self::Hedgehog => 2 * n * n + 8 * n,
        }
    }
}

/// A feature map with its parameters.
#[derive(Debug, Clone)]
pub(super) struct Features {
    map: FeatureMap,
    layers: Vec<Linear>,
}

impl Features {
    pub(super) fn new(map: FeatureMap, n: usize, vb: &VarBuilder) -> Result<Self> {
        let names: &[&str] = match map {
            FeatureMap::ElementwiseProduct => &["layer1", "layer2"],
            FeatureMap::T2r | FeatureMap::Hedgehog => &["layer"],
            _ => &[],
        };
        let layer = |name: &&str| {
            let vb = vb.pp(name);
            if map != FeatureMap::Hedgehog {
                return Linear::new(n, n, true, &vb);
            }
            let eye = Init::custom(|shape, _| {
                let n = shape[0].max(1);
                (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect()
            });
            let weight = vb.get_group(ParameterGroup::weight("weight", (n, n), eye))?;
            Ok(Linear::from_tensors(weight, Some(vb.get_f32(n, "bias", Init::ZEROS)?)))
        };
        Ok(Self { map, layers: names.iter().map(layer).collect::<Result<_>>()? })
    }

    /// (..., n) -> (..., features)
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match (self.map, &self.layers[..]) {
            (FeatureMap::Elu, _) => x.elu(1.0)? + 1.0,
            (FeatureMap::Relu, _) => x.relu(),
            (FeatureMap::Softmax, _) => softmax(x),
            (FeatureMap::ElementwiseProduct, [a, b]) => a.forward(x)? * b.forward(x)?,
            (FeatureMap::T2r, [layer]) => layer.forward(x)?.relu(),
            (FeatureMap::Hedgehog, [layer]) => {
                let z = (layer.forward(x)? * 2.0)?;
                softmax(&Tensor::cat(&[&z, &z.neg()?], D::Minus1)?)
            }
            _ => Ok(x.clone()),
        }
    }
}

/// In operations that keep gradients.
fn softmax(x: &Tensor) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(x.clone()); // of nothing there is no largest
    }
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    x.broadcast_div(&x.sum_keepdim(D::Minus1)?)
}
