//! `mixer = "attention"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{
    Issue, Mixer, MixerConfig, RelBiasConfig, RotaryConfig, VarBuilder, WindowMode, divides, in_range,
};
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
    /// Features a head (p). Default: d_model / n_heads, twice that with `concat_embedding`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Taps of the short convolution over q, k, v; 0: none.
    #[serde(default)]
    pub d_conv: usize,
    /// Rotary positions. Of `rope`, `alibi`, `rel_bias`, `cope` and `nope` at most one; absent: none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<RotaryConfig>,
    /// A bias of the scores that falls linearly with the distance, a slope a head (ALiBi).
    #[serde(default, skip_serializing_if = "is_false")]
    pub alibi: bool,
    /// A learned bias of the scores by the distance (T5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rel_bias: Option<RelBiasConfig>,
    /// Positions that count what the query finds worth counting (CoPE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cope: Option<CopeConfig>,
    /// Says that there are no positions on purpose (NoPE): the causal mask alone tells an order.
    #[serde(default, skip_serializing_if = "is_false")]
    pub nope: bool,
    /// Bias of the input map.
    #[serde(default)]
    pub qkv_bias: bool,
    /// Bias of the output map.
    #[serde(default)]
    pub out_bias: bool,
    /// RMS norm of queries and keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_norm: Option<QkNorm>,
    /// Each query sees this many tokens, itself included, or those of its block of so many. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Whether the window slides with the query or the sequence is cut into blocks.
    #[serde(default, skip_serializing_if = "WindowMode::is_sliding")]
    pub window_mode: WindowMode,
    /// A gate on the head outputs, from a query map twice as wide: `o · sigmoid(gate)` (Qwen3-Next).
    #[serde(default, skip_serializing_if = "is_false")]
    pub output_gate: bool,
    /// `cap · tanh(score / cap)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softcap: Option<f64>,
    /// Factor on the scores. Default: 1 / √head_dim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Reads the embedding that entered the stack beside its input, 2 d_model features together (Zamba).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concat_embedding: Option<ConcatEmbedding>,
    /// Rank of maps added to those of queries, keys and values (LoRA), of the layer's own also where layers share their
    /// parameters (Zamba2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_rank: Option<usize>,
    /// Whether queries see only what came before.
    #[serde(default = "yes")]
    pub causal: bool,
}

/// `concat_embedding = { norm_eps = 1e-5 }`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConcatEmbedding {
    /// Added under the root of the RMS norm over both.
    #[serde(default = "ten_millionths")]
    pub norm_eps: f64,
}

fn ten_millionths() -> f64 {
    1e-5
}

/// `qk_norm = { eps = 1e-6 }`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QkNorm {
    /// Added under the root.
    #[serde(default = "small")]
    pub eps: f64,
    /// Whether the weights are those of Gemma and Qwen3-Next, less one: the factor is `1 + weight`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unit_offset: bool,
    /// One norm over the features of all heads together (OLMo), instead of one over each head's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub across_heads: bool,
}

impl QkNorm {
    /// A norm over each head with plain weights.
    pub fn new(eps: f64) -> Self {
        Self { eps, unit_offset: false, across_heads: false }
    }
}

/// `cope = { npos_max = 64 }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopeConfig {
    /// Positions that have an embedding; greater counts take the last.
    #[serde(default = "sixty_four")]
    pub npos_max: usize,
    /// Whether each head has embeddings of its own.
    #[serde(default)]
    pub per_head: bool,
}

fn sixty_four() -> usize {
    64
}

fn is_false(flag: &bool) -> bool {
    !flag
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
            alibi: false,
            rel_bias: None,
            cope: None,
            nope: false,
            qkv_bias: false,
            out_bias: false,
            qk_norm: None,
            window: None,
            window_mode: WindowMode::Sliding,
            output_gate: false,
            softcap: None,
            scale: None,
            concat_embedding: None,
            adapter_rank: None,
            causal: true,
        }
    }

    /// Key and value heads.
    pub fn n_kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// Features a head (p) at this model width.
    pub fn head_dim(&self, d_model: usize) -> usize {
        self.head_dim.unwrap_or(self.input_width(d_model) / self.n_heads.max(1))
    }

    /// Features that the input map reads.
    pub(crate) fn input_width(&self, d_model: usize) -> usize {
        if self.concat_embedding.is_some() { d_model.saturating_mul(2) } else { d_model }
    }

    /// Rows of the input map that are queries (and their gates), and of each of keys and values.
    pub(crate) fn widths(&self, head_dim: usize) -> (usize, usize) {
        let queries = self.n_heads * if self.output_gate { 2 } else { 1 };
        (head_dim * queries, head_dim * self.n_kv_heads())
    }

    /// Options that do not go together.
    fn check_options(&self) -> Vec<Issue> {
        let positions = [
            ("rope", self.rope.is_some()),
            ("alibi", self.alibi),
            ("rel_bias", self.rel_bias.is_some()),
            ("cope", self.cope.is_some()),
            ("nope", self.nope),
        ];
        let chosen: Vec<&str> = positions.into_iter().filter_map(|(key, on)| on.then_some(key)).collect();
        let mut issues = Vec::new();
        if let [first, second, ..] = chosen[..] {
            issues.push(
                Issue::new(second, format!("`{second}` beside `{first}`: expected one kind of positions"))
                    .help(format!("leave `{first}` or `{second}` out")),
            );
        }
        let scored = chosen.iter().copied().find(|key| ["alibi", "rel_bias", "cope"].contains(key));
        if let Some(key) = scored.filter(|_| !self.causal) {
            issues
                .push(Issue::new(key, format!("`{key}` without `causal`: its positions know no later keys")));
        }
        if let Some(key) = scored.filter(|_| self.softcap.is_some()) {
            issues.push(Issue::new("softcap", format!("`softcap` beside `{key}`: expected one of them")));
        }
        if self.window_mode == WindowMode::Block && self.window.is_none() {
            let issue = Issue::new("window_mode", "`window_mode = \"block\"` needs a `window`");
            issues.push(issue.help("set `window` to the tokens of a block"));
        }
        if self.output_gate && self.d_conv > 0 {
            issues.push(Issue::new("d_conv", "`d_conv` beside `output_gate`: expected one of them"));
        }
        if let Some(eps) = self.qk_norm.as_ref().map(|n| n.eps).filter(|e| !(*e >= 0.0 && e.is_finite())) {
            issues.push(Issue::new("qk_norm.eps", format!("expected a number >= 0, found {eps}")));
        }
        issues.extend(self.rel_bias.and_then(|bias| bias.check("rel_bias")));
        issues.extend(self.cope.as_ref().and_then(|cope| in_range("cope.npos_max", cope.npos_max, 1)));
        issues
    }
}

impl MixerConfig for AttentionConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let heads = [in_range("n_heads", self.n_heads, 1), in_range("n_kv_heads", self.n_kv_heads(), 1)];
        let mut issues: Vec<Issue> = heads.into_iter().flatten().collect();
        let heads_fit = issues.is_empty();
        issues.extend(in_range("d_conv", self.d_conv, 0));
        issues.extend(self.window.and_then(|w| in_range("window", w, 1)));
        issues.extend(self.adapter_rank.and_then(|rank| in_range("adapter_rank", rank, 1)));
        if let Some(eps) =
            self.concat_embedding.as_ref().map(|c| c.norm_eps).filter(|e| !(*e >= 0.0 && e.is_finite()))
        {
            let message = format!("expected a number >= 0, found {eps}");
            issues.push(Issue::new("concat_embedding.norm_eps", message));
        }
        for (key, value) in [("softcap", self.softcap), ("scale", self.scale)] {
            if let Some(v) = value.filter(|v| !(*v > 0.0 && v.is_finite())) {
                issues.push(Issue::new(key, format!("expected a number above 0, found {v}")));
            }
        }
        issues.extend(self.check_options());
        if !heads_fit {
            return issues;
        }
        let before = issues.len();
        match self.head_dim {
            Some(p) => issues.extend(in_range("head_dim", p, 1)),
            None => {
                let what = if self.concat_embedding.is_some() { "2 d_model" } else { "d_model" };
                issues.extend(divides("n_heads", self.n_heads, what, self.input_width(d_model)));
            }
        }
        issues.extend(divides("n_kv_heads", self.n_kv_heads(), "n_heads", self.n_heads));
        if issues.len() == before {
            let heads = self.n_heads * if self.output_gate { 2 } else { 1 } + 2 * self.n_kv_heads();
            let width = self.head_dim(d_model).saturating_mul(heads);
            issues.extend(in_range("head_dim", width, 1));
            issues.extend(self.rope.and_then(|rope| rope.check("rope", self.head_dim(d_model))));
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
