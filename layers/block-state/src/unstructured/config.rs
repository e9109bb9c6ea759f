//! `mixer = "unstructured"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, in_range};
use serde::{Deserialize, Serialize};

use super::{KIND, Unstructured};

/// Sizes of a filter that is no state space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnstructuredConfig {
    /// Features of the position embedding, odd: the time, and pairs of sine and cosine.
    #[serde(default = "features")]
    pub emb_dim: usize,
    /// Tokens for which the embedding's time runs from 0 to 1, and the longest initial time constant. The filter depends
    /// on it, not on the length of the input, and goes on beyond.
    pub l_max: usize,
}

fn features() -> usize {
    33
}

impl MixerConfig for UnstructuredConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, _: usize) -> Vec<Issue> {
        let mut issues: Vec<Issue> = [in_range("emb_dim", self.emb_dim, 3), in_range("l_max", self.l_max, 2)]
            .into_iter()
            .flatten()
            .collect();
        if issues.is_empty() && self.emb_dim.is_multiple_of(2) {
            let issue =
                Issue::new("emb_dim", format!("expected an odd number of features, found {}", self.emb_dim));
            issues.push(issue.help(format!("{} is the next", self.emb_dim + 1)));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Unstructured::new(d_model, None, self, &vb)?))
    }

    /// The banks share what they have seen; each has filters of its own.
    fn build_banks(&self, d_model: usize, banks: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Unstructured::new(d_model, Some(banks), self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
