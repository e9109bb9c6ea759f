//! `mixer = "gau"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, RotaryConfig, VarBuilder, in_range};
use serde::{Deserialize, Serialize};

use crate::{Gau, KIND};

/// How scores become weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GauAttention {
    /// `relu(c q · k)²`
    #[default]
    Relu2,
    /// `softmax(q · k / √d_qk)`
    Softmax,
}

/// The factor c of the scores under the squared relu.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GauScale {
    /// 1 / l, with l the whole length (the paper's). Every output depends on how many tokens follow: there is no step,
    /// and no state to go on from.
    SeqLen,
    /// 1 / (t + 1), the tokens up to the query.
    #[default]
    Position,
    /// `scale_value`.
    Constant,
}

/// Sizes and options of a gated attention unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GauConfig {
    /// Features of queries and keys (s).
    pub d_qk: usize,
    /// Features of values and gates (e). Default: 2 d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_hidden: Option<usize>,
    /// How scores become weights: `"relu2"` or `"softmax"`.
    pub attention: GauAttention,
    /// The factor of the scores; `"relu2"` alone.
    pub scale: GauScale,
    /// The factor of `scale = "constant"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_value: Option<f64>,
    /// Rotary positions; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope: Option<RotaryConfig>,
    /// Whether queries see only what came before.
    pub causal: bool,
    /// Biases of the linear maps.
    pub bias: bool,
}

impl Default for GauConfig {
    fn default() -> Self {
        Self {
            d_qk: 128,
            d_hidden: None,
            attention: GauAttention::Relu2,
            scale: GauScale::Position,
            scale_value: None,
            rope: None,
            causal: true,
            bias: true,
        }
    }
}

impl GauConfig {
    /// Features of values and gates (e) at this model width.
    pub fn d_hidden(&self, d_model: usize) -> usize {
        self.d_hidden.unwrap_or(2 * d_model)
    }

    fn check_scale(&self) -> Option<Issue> {
        let constant = self.attention == GauAttention::Relu2 && self.scale == GauScale::Constant;
        match self.scale_value {
            None if constant => Some(
                Issue::new("scale_value", "`scale = \"constant\"` needs a `scale_value`")
                    .help("one over a typical length"),
            ),
            Some(_) if !constant => Some(
                Issue::new("scale_value", "`scale_value` without `scale = \"constant\"`")
                    .help("leave it out"),
            ),
            Some(c) if !(c > 0.0 && c.is_finite()) => {
                Some(Issue::new("scale_value", format!("expected a number above 0, found {c}")))
            }
            _ => None,
        }
    }
}

impl MixerConfig for GauConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let mut issues: Vec<Issue> = [
            in_range("d_qk", self.d_qk, 1),
            in_range("d_hidden", self.d_hidden(d_model).saturating_mul(2), 2),
            self.check_scale(),
        ]
        .into_iter()
        .flatten()
        .collect();
        if let Some(rope) = self.rope {
            let issue = rope.check("rope", self.d_qk);
            issues.extend(issue.map(|issue| issue.help("set `rope.dim`, or make d_qk even")));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Gau::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
