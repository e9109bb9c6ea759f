//! The keys of a blueprint that are not a mixer's own, as typed tables. Their doc lines are the schema's descriptions.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use crate::normal::{Input, Merge, Output};

/// Where the norms of a mixer are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Placement {
    /// Before the mixer.
    #[default]
    Pre,
    /// After the mixer, before the residual is added.
    Post,
    /// Before and after.
    Both,
    /// Nowhere.
    None,
}

impl Placement {
    pub(super) fn pre(self) -> bool {
        matches!(self, Self::Pre | Self::Both)
    }

    pub(super) fn post(self) -> bool {
        matches!(self, Self::Post | Self::Both)
    }

    pub(super) fn name(pre: bool, post: bool) -> &'static str {
        match (pre, post) {
            (true, false) => "pre",
            (false, true) => "post",
            (true, true) => "both",
            (false, false) => "none",
        }
    }
}

/// Keys of one mixer in a block, beside the mixer's own.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BranchKeys {
    /// Where the norm is: before the mixer, after it, both, or none.
    pub(super) norm: Placement,
    /// Factor on the mixer's input, after its norm.
    pub(super) input_multiplier: f64,
    /// Factor on the mixer's output, before the residual is added.
    pub(super) output_multiplier: f64,
    /// What the mixer reads: the residual `stream`, what an earlier mixer of the layer left `aside`, or the sum of `both`.
    pub(super) input: Input,
    /// Where its output goes: added to the residual `stream`, or left `aside` for later mixers of the layer.
    pub(super) output: Output,
    /// Where the mixer's parameters are, below the layer. Default: `mixer`, or the block's name in a composed block.
    pub(super) path: Option<String>,
    /// Where the norm before the mixer is, below the layer. Default: `norm`, `norm2` in a second stage, and so on.
    pub(super) norm_path: Option<String>,
    /// Where the norm after the mixer is, below the layer. Default: `post_norm`, `post_norm2`, and so on.
    pub(super) post_norm_path: Option<String>,
}

impl Default for BranchKeys {
    fn default() -> Self {
        Self {
            norm: Placement::Pre,
            input_multiplier: 1.0,
            output_multiplier: 1.0,
            input: Input::Stream,
            output: Output::Stream,
            path: None,
            norm_path: None,
            post_norm_path: None,
        }
    }
}

/// `share = true` or `share = "id"`
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[serde(untagged)]
pub(super) enum Share {
    /// Whether all layers of this block hold the same parameters.
    Flag(bool),
    /// Layers of all blocks with the same id hold the same parameters.
    Id(String),
}

impl Share {
    /// The share id of the layers of this block.
    pub(super) fn id(&self, block: &str) -> Option<String> {
        match self {
            Self::Flag(shared) => shared.then(|| block.into()),
            Self::Id(id) => Some(id.clone()),
        }
    }
}

// By hand: serde's untagged enums say nothing of what was expected.
impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Share;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("true, false or a string")
            }
            fn visit_bool<E>(self, flag: bool) -> Result<Share, E> {
                Ok(Share::Flag(flag))
            }
            fn visit_str<E>(self, id: &str) -> Result<Share, E> {
                Ok(Share::Id(id.into()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Keys of a whole layer, beside those of its mixer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LayerKeys {
    /// Whether all layers of this block hold the same parameters (each with a state of its own), or the id under which
    /// they share them with other blocks. On a part of a `series` it concerns that part alone.
    pub(super) share: Option<Share>,
}

/// A block made of other blocks that run on the same input.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ParallelKeys {
    /// Names of the blocks; each is one mixer.
    pub(super) parallel: Vec<String>,
    /// How their outputs become one: `"sum"`, `"mean"` or `{ scale = FACTOR }` (the sum times the factor).
    #[serde(default)]
    pub(super) merge: Merge,
    /// Whether one norm serves all of them; else each has its own.
    #[serde(default = "yes")]
    pub(super) shared_norm: bool,
}

fn yes() -> bool {
    true
}

/// A block made of other blocks, one after the other within one layer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SeriesKeys {
    /// Names of the blocks, each with a residual of its own.
    pub(super) series: Vec<String>,
}

/// `{ period = 8, offset = 4 }`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Every {
    /// Distance of two such layers.
    #[schemars(range(min = 1))]
    pub(super) period: usize,
    /// The first such layer, from 0; less than the period.
    #[serde(default)]
    pub(super) offset: usize,
}

/// The order of the layers: exactly one of `at`, `pattern`, `every`, `layers`. Layers count from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StackKeys {
    /// Number of layers, at most 4096. Default with `pattern` and `layers`: as many as they name.
    #[schemars(range(min = 1, max = 4096))]
    pub(super) n_layer: Option<usize>,
    /// The block of layers that `at` or `every` do not name.
    pub(super) default: Option<String>,
    /// Layers of each block by their index: `at = { attn = [9, 18] }`.
    pub(super) at: Option<BTreeMap<String, Vec<usize>>>,
    /// Blocks in turn, repeated up to `n_layer`: `pattern = ["ssd*7", "attn"]`.
    pub(super) pattern: Option<Vec<String>>,
    /// Layers of each block by period and offset: `every = { attn = { period = 8, offset = 4 } }`.
    pub(super) every: Option<BTreeMap<String, Every>>,
    /// The block of each layer: `layers = ["ssd*9", "attn", "ssd*8"]`.
    pub(super) layers: Option<Vec<String>>,
}
