//! `mixer = "min_gru"` and `"min_lstm"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, in_range};
use serde::{Deserialize, Serialize};

use crate::MinimalRnn;

/// Sizes of a minGRU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MinGruConfig {
    /// Width of the state (e). Where it is not d_model, an output map follows. Default: d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<usize>,
    /// Whether gates and candidate have biases.
    pub bias: bool,
    /// What the candidate goes through.
    pub candidate: Candidate,
}

/// Sizes of a minLSTM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MinLstmConfig {
    /// Width of the state (e). Where it is not d_model, an output map follows. Default: d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<usize>,
    /// Whether gates and candidate have biases.
    pub bias: bool,
    /// What the candidate goes through.
    pub candidate: Candidate,
}

/// What the candidate goes through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Candidate {
    /// Nothing, as in the paper's plain form.
    #[default]
    Linear,
    /// `x + ½` above zero and `σ(x)` below, as in its logarithmic form.
    Positive,
}

impl Default for MinGruConfig {
    fn default() -> Self {
        Self { hidden_size: None, bias: true, candidate: Candidate::Linear }
    }
}

impl Default for MinLstmConfig {
    fn default() -> Self {
        Self { hidden_size: None, bias: true, candidate: Candidate::Linear }
    }
}

/// What the two have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) kind: &'static str,
    /// Names of the gates' maps.
    pub(crate) gates: &'static [&'static str],
    pub(crate) hidden: Option<usize>,
    pub(crate) bias: bool,
    pub(crate) candidate: Candidate,
}

impl From<&MinGruConfig> for Sizes {
    fn from(c: &MinGruConfig) -> Self {
        let (kind, gates) = ("min_gru", &["linear_z"][..]);
        Self { kind, gates, hidden: c.hidden_size, bias: c.bias, candidate: c.candidate }
    }
}

impl From<&MinLstmConfig> for Sizes {
    fn from(c: &MinLstmConfig) -> Self {
        let (kind, gates) = ("min_lstm", &["linear_f", "linear_i"][..]);
        Self { kind, gates, hidden: c.hidden_size, bias: c.bias, candidate: c.candidate }
    }
}

impl MixerConfig for MinGruConfig {
    fn kind(&self) -> &'static str {
        "min_gru"
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        in_range("hidden_size", self.hidden_size.unwrap_or(d_model), 1).into_iter().collect()
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(MinimalRnn::gru(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

impl MixerConfig for MinLstmConfig {
    fn kind(&self) -> &'static str {
        "min_lstm"
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        in_range("hidden_size", self.hidden_size.unwrap_or(d_model), 1).into_iter().collect()
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(MinimalRnn::lstm(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
