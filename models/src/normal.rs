//! The normal form: what every blueprint and every checkpoint configuration becomes before it is built.
//!
//! ```text
//! model  = embedding · layers · final norm · head
//! layer  = stages, one after the other
//! stage  = x ← x + merge over branches of  m_out · post(mixer(m_in · pre(x)))
//! ```
//! Beside the residual stream x a layer has an aside, which a branch may write instead of x, and read instead of x or added
//! to it: Zamba's shared block speaks to the Mamba layer after it in this way, and to nothing else.
//!
//! A Mamba layer is one stage of one branch; attention followed by an MLP two stages; parallel attention and Mamba one
//! stage of two branches. `path` and the norm paths are the parameters' names below `backbone.layers.N`.

use std::sync::Arc;

use schemars::JsonSchema;
use semisep_core::{AbacusConfig, MixerConfig, NormConfig};
use serde::{Deserialize, Serialize};

/// A whole language model.
#[derive(Debug, Clone)]
pub struct Architecture {
    /// Its name.
    pub name: String,
    /// What is not a layer.
    pub model: ModelConfig,
    /// The layers, in order.
    pub layers: Vec<Layer>,
}

/// Embedding, head, norms and scales of a model. Defaults as in mamba_ssm's `MambaConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Residual width.
    pub d_model: usize,
    /// Tokens that exist.
    pub vocab_size: usize,
    /// The embedding has `vocab_size` rows rounded up to a multiple of this.
    #[serde(default = "eight")]
    pub pad_vocab_size_multiple: usize,
    /// Whether the head is the embedding.
    #[serde(default = "yes")]
    pub tie_embeddings: bool,
    /// Kind and eps of the norms of layers and of the final norm.
    #[serde(default)]
    pub norm: NormConfig,
    /// Added under the root of the final norm, where that is another number (RWKV in transformers).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_norm_eps: Option<f64>,
    /// Whether the residual stream is f32 in a half-precision model.
    #[serde(default = "yes")]
    pub residual_in_fp32: bool,
    /// Factor on the embedding.
    #[serde(default = "one")]
    pub embedding_multiplier: f64,
    /// Factor on the logits.
    #[serde(default = "one")]
    pub logits_multiplier: f64,
    /// `cap · tanh(logits / cap)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits_soft_cap: Option<f64>,
    /// Whether a norm follows the embedding (RWKV's `ln0`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub embedding_norm: bool,
    /// Halve the residual stream after each so many layers, and add to it on that scale from there on (RWKV's way to
    /// stay within f16); 0 for never.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rescale_every: usize,
    /// Abacus positions: an embedding of each digit's place within its number, added to that of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abacus: Option<AbacusConfig>,
    /// Whether the output projections of pre-norm branches start out smaller, by the square root of the number of residual
    /// additions (GPT-2, mamba_ssm). Says how a new model begins, nothing of a loaded one.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub rescale_prenorm_residual: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn eight() -> usize {
    8
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

impl ModelConfig {
    /// This width and vocabulary, every other key at its default.
    pub fn new(d_model: usize, vocab_size: usize) -> Self {
        Self {
            d_model,
            vocab_size,
            pad_vocab_size_multiple: eight(),
            tie_embeddings: yes(),
            norm: NormConfig::default(),
            final_norm_eps: None,
            residual_in_fp32: yes(),
            embedding_multiplier: one(),
            logits_multiplier: one(),
            logits_soft_cap: None,
            embedding_norm: false,
            rescale_every: 0,
            abacus: None,
            rescale_prenorm_residual: yes(),
        }
    }

    /// The same without what decides neither parameters nor arithmetic: how a new model begins and is trained.
    pub(crate) fn of_weights(&self) -> Self {
        let abacus = self.abacus.clone().map(|abacus| AbacusConfig { max_shift: 0, ..abacus });
        Self { abacus, rescale_prenorm_residual: true, ..self.clone() }
    }

    /// Rows of the embedding.
    pub fn padded_vocab(&self) -> usize {
        self.vocab_size.next_multiple_of(self.pad_vocab_size_multiple.max(1))
    }
}

/// One layer of the stack.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The block of the blueprint that it comes from.
    pub block: String,
    /// Its stages, in order.
    pub stages: Vec<Stage>,
    /// Layers with the same id hold the same parameters (stored once, under the first of them), each its own state: the id
    /// of all branches that have none.
    pub share: Option<String>,
}

/// One residual step.
#[derive(Debug, Clone)]
pub struct Stage {
    /// At least one; several run in parallel on the same input.
    pub branches: Vec<Branch>,
    /// How parallel branches are joined.
    pub merge: Merge,
}

/// How the outputs of parallel branches become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Merge {
    /// Their sum.
    #[default]
    Sum,
    /// Their mean.
    Mean,
    /// Their sum times a factor.
    #[serde(rename = "scale")]
    Scaled(f64),
}

/// One mixer with its norms and scales.
#[derive(Debug, Clone)]
pub struct Branch {
    /// The mixer.
    pub mixer: Arc<dyn MixerConfig>,
    /// Where its parameters are, below the layer: `mixer`, `mlp`.
    pub path: String,
    /// Norm before the mixer, by its path below the layer: `norm`, `norm2`. Branches of a stage may name the same.
    pub pre_norm: Option<String>,
    /// Norm after the mixer, by its path below the layer.
    pub post_norm: Option<String>,
    /// Factor on the mixer's input (after the norm).
    pub input_multiplier: f64,
    /// Factor on the mixer's output (after the post-norm).
    pub output_multiplier: f64,
    /// What the mixer reads.
    pub input: Input,
    /// Where its output goes.
    pub output: Output,
    /// Branches with the same id hold the same parameters, norms included (stored once, below the first layer that has
    /// one), but for those that a mixer keeps for each layer: adapters.
    pub share: Option<String>,
}

impl Branch {
    /// A mixer between the residual stream and itself, without norms.
    pub fn new(mixer: Arc<dyn MixerConfig>, path: impl Into<String>) -> Self {
        Self {
            mixer,
            path: path.into(),
            pre_norm: None,
            post_norm: None,
            input_multiplier: 1.0,
            output_multiplier: 1.0,
            input: Input::Stream,
            output: Output::Stream,
            share: None,
        }
    }
}

/// What a mixer reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Input {
    /// The residual stream.
    #[default]
    Stream,
    /// What an earlier mixer of the layer left aside.
    Aside,
    /// The sum of both.
    Both,
}

/// Where a mixer's output goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// It is added to the residual stream.
    #[default]
    Stream,
    /// It is left aside for later mixers of the layer, in the place of what was there.
    Aside,
}
