//! `mixer = "deltanet"` and `mixer = "gated_deltanet"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::DeltaNet;
use crate::plan::{ConvPlan, DecayInit, Plan};

/// What queries and keys go through before their norm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QkActivation {
    /// `x σ(x)`
    #[default]
    Silu,
    /// `max(x, 0)`
    Relu,
    /// `elu(x) + 1`, which is positive.
    Elu,
    /// Nothing.
    Identity,
}

/// How queries and keys are normed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QkNorm {
    /// To length one.
    #[default]
    L2,
    /// To a sum of one (Schlag et al. 2021); for activations that are positive.
    Sum,
    /// Not at all.
    None,
}

/// Sizes and options of a DeltaNet layer; names and defaults as in flash-linear-attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeltaNetConfig {
    /// Heads.
    pub num_heads: usize,
    /// Width of all keys over d_model.
    pub expand_k: f64,
    /// Width of all values over d_model.
    pub expand_v: f64,
    /// Whether β is read off the input; else it is one.
    pub use_beta: bool,
    /// A gate on the output.
    pub use_gate: bool,
    /// Short convolutions over queries, keys and values.
    pub use_short_conv: bool,
    /// Taps of the short convolutions.
    pub conv_size: usize,
    /// Biases of the short convolutions.
    pub conv_bias: bool,
    /// β in (0, 2) instead of (0, 1).
    pub allow_neg_eigval: bool,
    /// What queries and keys go through.
    pub qk_activation: QkActivation,
    /// How queries and keys are normed.
    pub qk_norm: QkNorm,
    /// Added under the root of the output norm.
    pub norm_eps: f64,
}

impl Default for DeltaNetConfig {
    fn default() -> Self {
        Self {
            num_heads: 4,
            expand_k: 1.0,
            expand_v: 1.0,
            use_beta: true,
            use_gate: false,
            use_short_conv: true,
            conv_size: 4,
            conv_bias: false,
            allow_neg_eigval: false,
            qk_activation: QkActivation::Silu,
            qk_norm: QkNorm::L2,
            norm_eps: 1e-5,
        }
    }
}

impl DeltaNetConfig {
    fn plan(&self, d_model: usize) -> Plan {
        let width = |expand: f64| (d_model as f64 * expand) as usize;
        let heads = self.num_heads.max(1);
        Plan {
            kind: "deltanet",
            key_heads: self.num_heads,
            value_heads: self.num_heads,
            n: width(self.expand_k) / heads,
            p: width(self.expand_v) / heads,
            fused: false,
            conv: self.use_short_conv.then_some(ConvPlan { taps: self.conv_size, bias: self.conv_bias }),
            activation: self.qk_activation,
            qk_norm: self.qk_norm,
            decay: None,
            use_beta: self.use_beta,
            allow_neg_eigval: self.allow_neg_eigval,
            gate: self.use_gate,
            norm_eps: self.norm_eps,
        }
    }
}

impl MixerConfig for DeltaNetConfig {
    fn kind(&self) -> &'static str {
        "deltanet"
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let mut issues: Vec<Issue> = in_range("num_heads", self.num_heads, 1)
            .into_iter()
            .chain(in_range("conv_size", self.conv_size, 1))
            .collect();
        for (key, expand) in [("expand_k", self.expand_k), ("expand_v", self.expand_v)] {
            match factor(key, expand) {
                Some(issue) => issues.push(issue),
                None => {
                    let width = (d_model as f64 * expand) as usize;
                    issues.extend(in_range(key, width, 1));
                    issues.extend(divides(
                        "num_heads",
                        self.num_heads,
                        &format!("{key} times d_model"),
                        width,
                    ));
                }
            }
        }
        issues.extend(epsilon(self.norm_eps));
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(DeltaNet::new(d_model, self.plan(d_model), &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

/// Sizes and options of a gated DeltaNet layer; names and defaults as in flash-linear-attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GatedDeltaNetConfig {
    /// Heads of queries and keys.
    pub num_heads: usize,
    /// Heads of values, a multiple of `num_heads`. Default: as many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_v_heads: Option<usize>,
    /// Key channels of a head (n).
    pub head_dim: usize,
    /// Value channels of a head (p) over `head_dim`.
    pub expand_v: f64,
    /// Value channels of a head, where they are not `expand_v` times `head_dim`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_v_dim: Option<usize>,
    /// A gate on the output.
    pub use_gate: bool,
    /// Short convolutions over queries, keys and values.
    pub use_short_conv: bool,
    /// Taps of the short convolutions.
    pub conv_size: usize,
    /// Biases of the short convolutions.
    pub conv_bias: bool,
    /// β in (0, 2) instead of (0, 1).
    pub allow_neg_eigval: bool,
    /// One map for queries, keys, values and gates, one for β and decays, one convolution: Qwen3-Next's layout.
    pub fused_proj: bool,
    /// Added under the root of the output norm.
    pub norm_eps: f64,
    /// The decay's rates start uniform in this range.
    #[serde(rename = "A_init_range")]
    pub a_init_range: (f64, f64),
    /// Smallest initial step size.
    pub dt_min: f64,
    /// Largest initial step size.
    pub dt_max: f64,
}

impl Default for GatedDeltaNetConfig {
    fn default() -> Self {
        Self {
            num_heads: 6,
            num_v_heads: None,
            head_dim: 256,
            expand_v: 2.0,
            head_v_dim: None,
            use_gate: true,
            use_short_conv: true,
            conv_size: 4,
            conv_bias: false,
            allow_neg_eigval: false,
            fused_proj: false,
            norm_eps: 1e-5,
            a_init_range: (0.0, 16.0),
            dt_min: 0.001,
            dt_max: 0.1,
        }
    }
}

impl GatedDeltaNetConfig {
    /// Heads of values.
    pub fn value_heads(&self) -> usize {
        self.num_v_heads.unwrap_or(self.num_heads)
    }

    /// Value channels of a head.
    pub fn value_dim(&self) -> usize {
        self.head_v_dim.unwrap_or((self.head_dim as f64 * self.expand_v) as usize)
    }

    fn plan(&self) -> Plan {
        Plan {
            kind: "gated_deltanet",
            key_heads: self.num_heads,
            value_heads: self.value_heads(),
            n: self.head_dim,
            p: self.value_dim(),
            fused: self.fused_proj,
            conv: self.use_short_conv.then_some(ConvPlan { taps: self.conv_size, bias: self.conv_bias }),
            activation: QkActivation::Silu,
            qk_norm: QkNorm::L2,
            decay: Some(DecayInit { a_range: self.a_init_range, dt_min: self.dt_min, dt_max: self.dt_max }),
            use_beta: true,
            allow_neg_eigval: self.allow_neg_eigval,
            gate: self.use_gate,
            norm_eps: self.norm_eps,
        }
    }

    fn starts(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !(self.dt_min > 0.0 && self.dt_max >= self.dt_min && self.dt_max.is_finite()) {
            let found = format!("expected 0 < dt_min <= dt_max, found {} and {}", self.dt_min, self.dt_max);
            issues.push(Issue::new("dt_min", found).help("flash-linear-attention uses 0.001 and 0.1"));
        }
        let (lo, hi) = self.a_init_range;
        if !(lo >= 0.0 && lo <= hi && hi.is_finite()) {
            issues
                .push(Issue::new("A_init_range", format!("expected 0 <= low <= high, found {lo} and {hi}")));
        }
        issues
    }
}

impl MixerConfig for GatedDeltaNetConfig {
    fn kind(&self) -> &'static str {
        "gated_deltanet"
    }

    fn check(&self, _: usize) -> Vec<Issue> {
        let sizes =
            [("num_heads", self.num_heads), ("head_dim", self.head_dim), ("conv_size", self.conv_size)];
        let mut issues: Vec<Issue> = sizes.iter().filter_map(|&(key, v)| in_range(key, v, 1)).collect();
        issues.extend(self.num_v_heads.and_then(|heads| in_range("num_v_heads", heads, 1)));
        issues.extend(divides("num_heads", self.num_heads, "num_v_heads", self.value_heads()));
        match (self.head_v_dim, factor("expand_v", self.expand_v)) {
            (Some(dim), _) => issues.extend(in_range("head_v_dim", dim, 1)),
            (None, Some(issue)) => issues.push(issue),
            (None, None) => issues.extend(in_range("expand_v", self.value_dim(), 1)),
        }
        if issues.is_empty() {
            for (key, width) in [
                ("head_dim", self.num_heads * self.head_dim),
                ("expand_v", self.value_heads() * self.value_dim()),
            ] {
                issues.extend(in_range(key, width, 1));
            }
        }
        if self.fused_proj && !(self.use_gate && self.use_short_conv) {
            let issue =
                Issue::new("fused_proj", "expected use_gate and use_short_conv beside it, found one off");
            issues.push(issue.help("leave both on, or set fused_proj = false"));
        }
        issues.extend(epsilon(self.norm_eps));
        issues.extend(self.starts());
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(DeltaNet::new(d_model, self.plan(), &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

fn factor(key: &str, value: f64) -> Option<Issue> {
    (!(value > 0.0 && value.is_finite()))
        .then(|| Issue::new(key, format!("expected a number > 0, found {value}")))
}

fn epsilon(value: f64) -> Option<Issue> {
    (!(value >= 0.0 && value.is_finite()))
        .then(|| Issue::new("norm_eps", format!("expected a number >= 0, found {value}")))
}
