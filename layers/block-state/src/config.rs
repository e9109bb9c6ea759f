//! `mixer = "block_state"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{
    Issue, Mixer, MixerConfig, Nested, RelBiasConfig, VarBuilder, WindowMode, divides, in_range,
};
use serde::{Deserialize, Serialize};

use crate::{BlockState, KIND};

/// How the states of the SSM become contexts of the attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Single head: one output a token of the window, scaled for each head.
    Sh,
    /// Multi head: one output a token of the window and head.
    Mh,
    /// Multi filter: several outputs at the last token of the window before.
    Mf,
}

/// Sizes and options of a block-state layer. It has norms of its own: give the block `norm = "none"`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockStateConfig {
    /// How the states of the SSM become contexts: `"sh"`, `"mh"` or `"mf"`.
    pub variant: Variant,
    /// Any causal mixer, run once over the whole sequence: `ssm = { mixer = "s4d", d_state = 64 }`.
    pub ssm: Nested,
    /// Heads of the attention, and of the cross-attention to the contexts (h).
    pub n_heads: usize,
    /// Features a head (e). Default: d_model / n_heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Tokens a window (w).
    pub window: usize,
    /// Whether a token's self-attention sees its own window alone, or the last `window` tokens. The contexts are those
    /// of a window either way.
    #[serde(default = "block")]
    pub window_mode: WindowMode,
    /// Whether a token sees itself in the self-attention.
    #[serde(default)]
    pub include_self: bool,
    /// Contexts a window (s); `"mf"` alone.
    #[serde(default = "thirty_two")]
    pub contexts: usize,
    /// A learned bias of the self-attention's scores by the distance (T5); absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rel_bias: Option<RelBiasConfig>,
    /// Width of the feed-forward part; 0: none. Default: 4 d_model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_intermediate: Option<usize>,
    /// Added under the root of the norms of tokens, contexts and the feed-forward part.
    #[serde(default = "tiny")]
    pub norm_eps: f64,
    /// Added under the root of the norms of queries and keys.
    #[serde(default = "tiny")]
    pub qk_eps: f64,
    /// Bias of the map from SSM outputs to heads; `"sh"` and `"mf"`.
    #[serde(default = "yes")]
    pub lift_bias: bool,
    /// Bias of the output map.
    #[serde(default)]
    pub out_bias: bool,
    /// Biases of the feed-forward part.
    #[serde(default)]
    pub ffn_bias: bool,
}

fn block() -> WindowMode {
    WindowMode::Block
}

fn thirty_two() -> usize {
    32
}

fn tiny() -> f64 {
    1e-6
}

fn yes() -> bool {
    true
}

impl BlockStateConfig {
    /// With every option at its default.
    pub fn new(variant: Variant, ssm: Nested, n_heads: usize, window: usize) -> Self {
        Self {
            variant,
            ssm,
            n_heads,
            head_dim: None,
            window,
            window_mode: WindowMode::Block,
            include_self: false,
            contexts: thirty_two(),
            rel_bias: None,
            d_intermediate: None,
            norm_eps: tiny(),
            qk_eps: tiny(),
            lift_bias: true,
            out_bias: false,
            ffn_bias: false,
        }
    }

    /// Features a head (e) at this model width.
    pub fn head_dim(&self, d_model: usize) -> usize {
        self.head_dim.unwrap_or(d_model / self.n_heads.max(1))
    }

    /// Width of the feed-forward part at this model width.
    pub fn d_intermediate(&self, d_model: usize) -> usize {
        self.d_intermediate.unwrap_or(4 * d_model)
    }

    /// Outputs a token that the SSM is asked for.
    pub fn banks(&self) -> usize {
        match self.variant {
            Variant::Sh => 1,
            Variant::Mh => self.n_heads,
            Variant::Mf => self.contexts,
        }
    }
}

impl MixerConfig for BlockStateConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let mut issues: Vec<Issue> = [
            in_range("n_heads", self.n_heads, 1),
            in_range("window", self.window, 1),
            in_range("contexts", self.contexts, 1),
            in_range("d_intermediate", self.d_intermediate(d_model), 0),
            self.rel_bias.and_then(|bias| bias.check("rel_bias")),
        ]
        .into_iter()
        .flatten()
        .collect();
        for (key, eps) in [("norm_eps", self.norm_eps), ("qk_eps", self.qk_eps)] {
            if !(eps > 0.0 && eps.is_finite()) {
                issues.push(
                    Issue::new(key, format!("expected a number above 0, found {eps}"))
                        .help("the default is 1e-6"),
                );
            }
        }
        if issues.is_empty() {
            match self.head_dim {
                Some(e) => issues.extend(in_range("head_dim", e.saturating_mul(self.n_heads), 1)),
                None => issues.extend(divides("n_heads", self.n_heads, "d_model", d_model)),
            }
            let key = if self.variant == Variant::Mf { "contexts" } else { "n_heads" };
            issues.extend(in_range(key, self.banks().saturating_mul(d_model), 1));
            issues.extend(in_range("n_heads", self.n_heads.saturating_mul(d_model), 1));
        }
        issues.extend(self.ssm.check("ssm", d_model));
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(BlockState::new(d_model, self, &vb)?))
    }

    fn unreceived(&self, name: &str) -> Option<Issue> {
        let issue = self.ssm.get().ok()?.unreceived(name)?;
        Some(Issue { key: format!("ssm.{}", issue.key), ..issue })
    }

    fn nested(&mut self) -> Vec<(&'static str, &mut Nested)> {
        vec![("ssm", &mut self.ssm)]
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
