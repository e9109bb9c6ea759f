//! The RWKV layers in a blueprint. Names as in RWKV-LM, in lower case.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, divides, in_range};
use serde::{Deserialize, Serialize};

use crate::{Rwkv4, Rwkv5, Rwkv6, Rwkv7, RwkvChannelMix};

/// Whose names and shapes the low-rank parameters have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// BlinkDL's: factors (inputs, outputs), RWKV-6's mixes in the order w, k, v, r, g.
    #[default]
    Pth,
    /// flash-linear-attention's: factors (outputs, inputs), RWKV-6's mixes in the order r, w, k, v, g.
    Fla,
}

/// `mixer = "rwkv4"`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rwkv4Config {
    /// Width of keys, values and receptances. Default: d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim_att: Option<usize>,
    /// Depth of the layer that its initial values are for, from 0 (first) to 1 (last).
    pub init_depth: f64,
}

/// `mixer = "rwkv5"`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rwkv5Config {
    /// Features of a head, of keys and of values alike.
    pub head_size: usize,
    /// Width of keys, values and receptances. Default: d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim_att: Option<usize>,
    /// Added under the root of the norm of heads: 1e-5 times the square of BlinkDL's head_size_divisor 8.
    pub norm_eps: f64,
    /// Whether the state before the first token is learnt (state tuning).
    pub time_state: bool,
    /// Depth of the layer that its initial values are for, from 0 (first) to 1 (last).
    pub init_depth: f64,
}

/// `mixer = "rwkv6"`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rwkv6Config {
    /// Features of a head's keys.
    pub head_size: usize,
    /// Width of keys and receptances. Default: d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim_att: Option<usize>,
    /// Width of values and gate. Default: dim_att.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim_value: Option<usize>,
    /// Rank of what the data adds to each mix of the token shift.
    pub d_mix_lora: usize,
    /// Rank of what the data adds to the decay.
    pub d_decay_lora: usize,
    /// Added under the root of the norm of heads: 64e-5 in BlinkDL's models, the model's norm_eps in fla's.
    pub norm_eps: f64,
    /// Whose names and shapes the low-rank parameters have.
    pub layout: Layout,
    /// Whether the state before the first token is learnt (state tuning).
    pub time_state: bool,
    /// Depth of the layer that its initial values are for, from 0 (first) to 1 (last).
    pub init_depth: f64,
}

/// `mixer = "rwkv7"`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rwkv7Config {
    /// Features of a head's keys.
    pub head_size: usize,
    /// Width of values and gate. Default: d_model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim_value: Option<usize>,
    /// Rank of the decay. Default: 2.5 √d_model, rounded to a multiple of 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_decay_lora: Option<usize>,
    /// Rank of the in-context learning rate. Default: 2.5 √d_model, rounded to a multiple of 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_aaa_lora: Option<usize>,
    /// Rank of the value residual's gate. Default: 1.7 √d_model, rounded to a multiple of 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_mv_lora: Option<usize>,
    /// Rank of the output gate. Default: 5 √d_model, rounded to a multiple of 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_gate_lora: Option<usize>,
    /// Whether values are mixed with those of the first layer. A layer without it is that first one: it hands its values
    /// on.
    pub value_residual: bool,
    /// Added under the root of the norm of heads: 64e-5 in BlinkDL's models, head size times norm_eps in fla's.
    pub norm_eps: f64,
    /// Removal keys are divided by their length, at least about this: by √(|k|² + kk_eps²).
    pub kk_eps: f64,
    /// Whose names and shapes the low-rank parameters have.
    pub layout: Layout,
    /// Whether the state before the first token is learnt (state tuning).
    pub time_state: bool,
    /// Depth of the layer that its initial values are for, from 0 (first) to 1 (last).
    pub init_depth: f64,
}

/// `mixer = "rwkv_channel_mix"`, as a rule in a block's `mlp`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RwkvChannelMixConfig {
    /// RWKV version, 4 to 7: 4 to 6 gate their output by a receptance, 4 and 5 store mixes as the share of the token itself.
    #[schemars(range(min = 4, max = 7))]
    pub version: usize,
    /// Hidden width. Default: 4 d_model for 4 and 7; 3.5 d_model, rounded down to a multiple of 32, for 5 and 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dim_ffn: Option<usize>,
    /// Depth of the layer that its initial values are for, from 0 (first) to 1 (last).
    #[serde(default = "middle")]
    pub init_depth: f64,
}

fn middle() -> f64 {
    0.5
}

impl Default for Rwkv4Config {
    fn default() -> Self {
        Self { dim_att: None, init_depth: middle() }
    }
}

impl Default for Rwkv5Config {
    fn default() -> Self {
        Self { head_size: 64, dim_att: None, norm_eps: 64e-5, time_state: false, init_depth: middle() }
    }
}

impl Default for Rwkv6Config {
    fn default() -> Self {
        Self {
            head_size: 64,
            dim_att: None,
            dim_value: None,
            d_mix_lora: 32,
            d_decay_lora: 64,
            norm_eps: 64e-5,
            layout: Layout::Pth,
            time_state: false,
            init_depth: middle(),
        }
    }
}

impl Default for Rwkv7Config {
    fn default() -> Self {
        Self {
            head_size: 64,
            dim_value: None,
            d_decay_lora: None,
            d_aaa_lora: None,
            d_mv_lora: None,
            d_gate_lora: None,
            value_residual: true,
            norm_eps: 64e-5,
            kk_eps: 1e-12,
            layout: Layout::Pth,
            time_state: false,
            init_depth: middle(),
        }
    }
}

impl RwkvChannelMixConfig {
    /// The channel mix of this version, every other key at its default.
    pub fn new(version: usize) -> Self {
        Self { version, dim_ffn: None, init_depth: middle() }
    }

    /// The hidden width at this model width.
    pub fn dim_ffn(&self, d_model: usize) -> usize {
        self.dim_ffn.unwrap_or(match self.version {
            5 | 6 => (d_model.saturating_mul(7) / 2 / 32 * 32).max(32),
            _ => d_model.saturating_mul(4),
        })
    }
}

impl Rwkv7Config {
    /// Ranks at this width of decay, learning rate, value residual and gate.
    pub fn ranks(&self, d_model: usize) -> [usize; 4] {
        let suggested = |factor: f64| {
            let rank = factor * (d_model as f64).sqrt() / 32.0;
            (rank.round_ties_even() as usize * 32).max(32)
        };
        [
            self.d_decay_lora.unwrap_or_else(|| suggested(2.5)),
            self.d_aaa_lora.unwrap_or_else(|| suggested(2.5)),
            self.d_mv_lora.unwrap_or_else(|| suggested(1.7)),
            self.d_gate_lora.unwrap_or_else(|| suggested(5.0)),
        ]
    }
}

/// Issues of widths in their range, of an eps and of the depth.
fn common(sizes: &[(&str, usize)], eps: &[(&str, f64)], depth: f64) -> Vec<Issue> {
    let mut issues: Vec<Issue> = sizes.iter().filter_map(|&(key, size)| in_range(key, size, 1)).collect();
    for (key, eps) in eps.iter().filter(|(_, eps)| !(*eps >= 0.0 && eps.is_finite())) {
        issues.push(Issue::new(*key, format!("expected a number >= 0, found {eps}")));
    }
    if !(0.0..=1.0).contains(&depth) {
        issues.push(
            Issue::new("init_depth", format!("expected 0 to 1, found {depth}")).help("0.5 is the middle"),
        );
    }
    issues
}

/// Issues of heads that do not divide widths.
fn heads(key: &str, head_size: usize, dim: usize, value_key: &str, dim_value: usize) -> Vec<Issue> {
    if let Some(issue) = divides(key, head_size, "the width of keys", dim) {
        return vec![issue];
    }
    let heads = dim / head_size.max(1);
    divides(value_key, heads, "the width of values in heads, which", dim_value)
        .map(|issue| {
            Issue::new(value_key, format!("{heads} heads do not divide the width {dim_value}"))
                .help(issue.help.unwrap_or_else(|| "a multiple of the number of heads fits".into()))
        })
        .into_iter()
        .collect()
}

impl MixerConfig for Rwkv4Config {
    fn kind(&self) -> &'static str {
        "rwkv4"
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        common(&[("dim_att", self.dim_att.unwrap_or(d_model))], &[], self.init_depth)
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Rwkv4::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

impl MixerConfig for Rwkv5Config {
    fn kind(&self) -> &'static str {
        "rwkv5"
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let dim = self.dim_att.unwrap_or(d_model);
        let sizes = [("head_size", self.head_size), ("dim_att", dim)];
        let issues = common(&sizes, &[("norm_eps", self.norm_eps)], self.init_depth);
        if issues.is_empty() { heads("head_size", self.head_size, dim, "dim_att", dim) } else { issues }
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Rwkv5::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

impl MixerConfig for Rwkv6Config {
    fn kind(&self) -> &'static str {
        "rwkv6"
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let dim = self.dim_att.unwrap_or(d_model);
        let dim_value = self.dim_value.unwrap_or(dim);
        let sizes = [
            ("head_size", self.head_size),
            ("dim_att", dim),
            ("dim_value", dim_value),
            ("d_mix_lora", self.d_mix_lora),
            ("d_decay_lora", self.d_decay_lora),
        ];
        let issues = common(&sizes, &[("norm_eps", self.norm_eps)], self.init_depth);
        if issues.is_empty() {
            heads("head_size", self.head_size, dim, "dim_value", dim_value)
        } else {
            issues
        }
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Rwkv6::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

impl MixerConfig for Rwkv7Config {
    fn kind(&self) -> &'static str {
        "rwkv7"
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let dim_value = self.dim_value.unwrap_or(d_model);
        let [decay, aaa, mv, gate] = self.ranks(d_model);
        let sizes = [
            ("head_size", self.head_size),
            ("dim_value", dim_value),
            ("d_decay_lora", decay),
            ("d_aaa_lora", aaa),
            ("d_mv_lora", mv),
            ("d_gate_lora", gate),
        ];
        let eps = [("norm_eps", self.norm_eps), ("kk_eps", self.kk_eps)];
        let issues = common(&sizes, &eps, self.init_depth);
        if issues.is_empty() {
            heads("head_size", self.head_size, d_model, "dim_value", dim_value)
        } else {
            issues
        }
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Rwkv7::new(d_model, self, &vb)?))
    }

    fn unreceived(&self, _: &str) -> Option<Issue> {
        let message =
            "expected an earlier rwkv7 layer with `value_residual = false`, whose values this one takes";
        let issue = Issue::new("value_residual", format!("{message}; found none"));
        Some(issue.help("make the first such layer of a block of its own with `value_residual = false`"))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

impl MixerConfig for RwkvChannelMixConfig {
    fn kind(&self) -> &'static str {
        "rwkv_channel_mix"
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let mut issues = common(&[("dim_ffn", self.dim_ffn(d_model))], &[], self.init_depth);
        if !(4..=7).contains(&self.version) {
            issues.push(Issue::new("version", format!("expected 4, 5, 6 or 7, found {}", self.version)));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(RwkvChannelMix::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
