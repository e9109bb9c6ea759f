//! `mixer = "short_conv"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, in_range};
use serde::{Deserialize, Serialize};

use crate::{KIND, ShortConv};

/// Options of a gated short convolution; defaults as in LFM2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShortConvConfig {
    /// Taps of the convolution (`conv_L_cache` of LFM2).
    pub d_conv: usize,
    /// Biases on in_proj, conv and out_proj.
    pub bias: bool,
}

impl Default for ShortConvConfig {
    fn default() -> Self {
        Self { d_conv: 3, bias: false }
    }
}

impl MixerConfig for ShortConvConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, _: usize) -> Vec<Issue> {
        in_range("d_conv", self.d_conv, 1).into_iter().collect()
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(ShortConv::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
