//! What both configurations come down to.

use candle_core::{Result, Tensor};
use semisep_core::Init;
use semisep_kernels::{Activation, activation};

use crate::projection::Projection;
use crate::{QkActivation, QkNorm};

/// Sizes and options of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) kind: &'static str,
    pub(crate) key_heads: usize,
    pub(crate) value_heads: usize,
    /// Key channels of a head.
    pub(crate) n: usize,
    /// Value channels of a head.
    pub(crate) p: usize,
    /// Qwen3-Next's layout.
    pub(crate) fused: bool,
    pub(crate) conv: Option<ConvPlan>,
    pub(crate) activation: QkActivation,
    pub(crate) qk_norm: QkNorm,
    pub(crate) decay: Option<DecayInit>,
    /// Whether β is projected; else it is one.
    pub(crate) use_beta: bool,
    pub(crate) allow_neg_eigval: bool,
    pub(crate) gate: bool,
    pub(crate) norm_eps: f64,
}

/// Taps and bias of the short convolutions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvPlan {
    pub(crate) taps: usize,
    pub(crate) bias: bool,
}

/// Where the decay starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecayInit {
    pub(crate) a_range: (f64, f64),
    pub(crate) dt_min: f64,
    pub(crate) dt_max: f64,
}

impl DecayInit {
    /// A uniform, and away from a logarithm of zero.
    pub(crate) fn a_log(&self) -> Init {
        let (lo, hi) = self.a_range;
        Init::custom(move |shape, rng| {
            (0..shape[0]).map(|_| rng.uniform(lo, hi).max(1e-4).ln() as f32).collect()
        })
    }

    pub(crate) fn dt_bias(&self) -> Init {
        Init::dt_bias(self.dt_min, self.dt_max, 1e-4)
    }
}

impl Plan {
    /// Width of all keys.
    pub(crate) fn keys(&self) -> usize {
        self.key_heads * self.n
    }

    /// Width of all values.
    pub(crate) fn values(&self) -> usize {
        self.value_heads * self.p
    }

    /// β (.., value heads).
    pub(crate) fn beta(&self, projection: &Projection) -> Result<Tensor> {
        let beta = match &projection.b {
            Some(b) => activation(b, Activation::Sigmoid)?,
            None => {
                let lead = &projection.v.dims()[..projection.v.rank() - 1];
                Tensor::ones(
                    [lead, &[self.value_heads]].concat(),
                    projection.v.dtype(),
                    projection.v.device(),
                )?
            }
        };
        if self.allow_neg_eigval { beta * 2.0 } else { Ok(beta) }
    }
}

impl QkActivation {
    /// What a convolution has not done already, or nothing.
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            // Applied by the convolution, or in its place.
            Self::Silu | Self::Identity => Ok(x.clone()),
            Self::Relu => activation(x, Activation::Relu),
            Self::Elu => x.elu(1.0)? + 1.0,
        }
    }
}
