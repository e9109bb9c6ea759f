//! `mixer = "lstm"`, `"gru"` and `"rnn"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, in_range};
use semisep_kernels::Cell;
use serde::{Deserialize, Serialize};

use crate::Rnn;

/// Sizes of an LSTM, named as in torch.nn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LstmConfig {
    /// Width of the state (h). Where it is not d_model, an output map follows. Default: d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<usize>,
    /// Cells on top of each other.
    pub num_layers: usize,
    /// Whether the cells have biases.
    pub bias: bool,
}

/// Sizes of a GRU, named as in torch.nn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GruConfig {
    /// Width of the state (h). Where it is not d_model, an output map follows. Default: d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<usize>,
    /// Cells on top of each other.
    pub num_layers: usize,
    /// Whether the cells have biases.
    pub bias: bool,
}

/// Sizes of a plain recurrent network, named as in torch.nn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RnnConfig {
    /// Width of the state (h). Where it is not d_model, an output map follows. Default: d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<usize>,
    /// Cells on top of each other.
    pub num_layers: usize,
    /// Whether the cells have biases.
    pub bias: bool,
    /// What the cells squash with.
    pub nonlinearity: Nonlinearity,
}

/// What a plain cell squashes with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Nonlinearity {
    /// `tanh`
    #[default]
    Tanh,
    /// `max(·, 0)`
    Relu,
}

impl Default for LstmConfig {
    fn default() -> Self {
        Self { hidden_size: None, num_layers: 1, bias: true }
    }
}

impl Default for GruConfig {
    fn default() -> Self {
        Self { hidden_size: None, num_layers: 1, bias: true }
    }
}

impl Default for RnnConfig {
    fn default() -> Self {
        Self { hidden_size: None, num_layers: 1, bias: true, nonlinearity: Nonlinearity::Tanh }
    }
}

/// What the three have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) kind: &'static str,
    pub(crate) cell: Cell,
    pub(crate) hidden: Option<usize>,
    pub(crate) layers: usize,
    pub(crate) bias: bool,
}

impl Sizes {
    fn check(&self, d_model: usize) -> Vec<Issue> {
        [("hidden_size", self.hidden.unwrap_or(d_model)), ("num_layers", self.layers)]
            .iter()
            .filter_map(|&(key, v)| in_range(key, v, 1))
            .collect()
    }
}

impl From<&LstmConfig> for Sizes {
    fn from(c: &LstmConfig) -> Self {
        Self { kind: "lstm", cell: Cell::Lstm, hidden: c.hidden_size, layers: c.num_layers, bias: c.bias }
    }
}

impl From<&GruConfig> for Sizes {
    fn from(c: &GruConfig) -> Self {
        Self { kind: "gru", cell: Cell::Gru, hidden: c.hidden_size, layers: c.num_layers, bias: c.bias }
    }
}

impl From<&RnnConfig> for Sizes {
    fn from(c: &RnnConfig) -> Self {
        let cell = match c.nonlinearity {
            Nonlinearity::Tanh => Cell::Tanh,
            Nonlinearity::Relu => Cell::Relu,
        };
        Self { kind: "rnn", cell, hidden: c.hidden_size, layers: c.num_layers, bias: c.bias }
    }
}

/// What a configuration of cells says of its mixer.
macro_rules! cells {
    ($config:ty) => {
        impl MixerConfig for $config {
            fn kind(&self) -> &'static str {
                Sizes::from(self).kind
            }

            fn check(&self, d_model: usize) -> Vec<Issue> {
                Sizes::from(self).check(d_model)
            }

            fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
                Ok(Box::new(Rnn::new(d_model, self.into(), &vb)?))
            }

            fn to_json(&self) -> serde_json::Value {
                serde_json::json!(self)
            }
        }
    };
}

cells!(LstmConfig);
cells!(GruConfig);
cells!(RnnConfig);
