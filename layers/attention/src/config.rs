//! `mixer = "attention"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, RotaryConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::{Attention, KIND};

/// Sizes and options of an attention layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionConfig {
    /// Query heads (h).
    pub n_heads: usize,
    /// Key and value heads; each serves h / n_kv_heads query heads. Default: n_heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<usize>,
    /// Features a head (p). Default: d_model / n_heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Taps of the short convolution over q, k, v; 0: none.
    #[serde(default)]
    pub d_conv: usize,
    /// Rotary positions; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<RotaryConfig>,
    /// Bias of the input map.
    #[serde(default)]
    pub qkv_bias: bool,
    /// Bias of the output map.
    #[serde(default)]
    pub out_bias: bool,
    /// RMS norm over each head's query and key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_norm: Option<QkNorm>,
    /// Each query sees this many tokens, itself included. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// `cap · tanh(score / cap)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softcap: Option<f64>,
    /// Factor on the scores. Default: 1 / √head_dim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Whether queries see only what came before.
    #[serde(default = "yes")]
    pub causal: bool,
}

/// `qk_norm = { eps = 1e-6 }`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QkNorm {
    /// Added under the root.
    #[serde(default = "small")]
    pub eps: f64,
}

fn yes() -> bool {
    true
}

fn small() -> f64 {
    1e-6
}

impl AttentionConfig {
    /// Attention with this many heads and every option off.
    pub fn new(n_heads: usize) -> Self {
        Self {
            n_heads,
            n_kv_heads: None,
            head_dim: None,
            d_conv: 0,
            rope: None,
            qkv_bias: false,
            out_bias: false,
            qk_norm: None,
            window: None,
            softcap: None,
            scale: None,
            causal: true,
        }
    }

    /// Key and value heads.
    pub fn n_kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// Features a head (p) at this model width.
    pub fn head_dim(&self, d_model: usize) -> usize {
        self.head_dim.unwrap_or(d_model / self.n_heads.max(1))
    }

    fn check_rope(&self, head_dim: usize) -> Option<Issue> {
        let rope = self.rope.as_ref()?;
        let dim = rope.dim.unwrap_or(head_dim);
        if !(rope.theta > 0.0 && rope.theta.is_finite()) {
            return Some(Issue::new("rope", format!("expected theta > 0, found {}", rope.theta)));
        }
        (dim == 0 || dim % 2 == 1 || dim > head_dim).then(|| {
            Issue::new("rope", format!("expected an even dim up to head_dim = {head_dim}, found {dim}"))
        })
    }
}

impl MixerConfig for AttentionConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let mut issues: Vec<Issue> = [
            in_range("n_heads", self.n_heads, 1),
            in_range("n_kv_heads", self.n_kv_heads(), 1),
            in_range("d_conv", self.d_conv, 0),
            self.window.and_then(|w| in_range("window", w, 1)),
        ]
        .into_iter()
        .flatten()
        .collect();
        for (key, value) in [("softcap", self.softcap), ("scale", self.scale)] {
            if let Some(v) = value.filter(|v| !(*v > 0.0 && v.is_finite())) {
                issues.push(Issue::new(key, format!("expected a number above 0, found {v}")));
            }
        }
        if !issues.is_empty() {
            return issues;
        }
        match self.head_dim {
            Some(p) => issues.extend(in_range("head_dim", p, 1)),
            None => issues.extend(divides("n_heads", self.n_heads, "d_model", d_model)),
        }
        issues.extend(divides("n_kv_heads", self.n_kv_heads(), "n_heads", self.n_heads));
        if issues.is_empty() {
            let width = self.head_dim(d_model).saturating_mul(self.n_heads + 2 * self.n_kv_heads());
            issues.extend(in_range("head_dim", width, 1));
            issues.extend(self.check_rope(self.head_dim(d_model)));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Attention::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
