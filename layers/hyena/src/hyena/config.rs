//! `mixer = "hyena"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, VarBuilder, in_range};
use serde::{Deserialize, Serialize};

use super::{Hyena, KIND};

/// Sizes and options of a Hyena layer; names and defaults as in HyenaDNA's `HyenaOperator`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HyenaConfig {
    /// Longest sequence. The filter's positions are relative to it, so it belongs to the trained weights.
    pub l_max: usize,
    /// Depth of the recurrence: `order` gates and `order - 1` long convolutions.
    #[serde(default = "two")]
    pub order: usize,
    /// Width of the filter's network.
    #[serde(default = "sixty_four")]
    pub filter_order: usize,
    /// Positional features: time, cosines and sines; odd.
    #[serde(default = "three")]
    pub emb_dim: usize,
    /// Inner layers of the filter's network.
    #[serde(default = "two")]
    pub num_inner_mlps: usize,
    /// Initial frequency of its sines.
    #[serde(default = "one")]
    pub w: f64,
    /// Whether the frequency is a parameter.
    #[serde(default = "yes")]
    pub train_freq: bool,
    /// Taps of the short convolution.
    #[serde(default = "three")]
    pub short_filter_order: usize,
    /// Whether the filter decays.
    #[serde(default = "yes")]
    pub modulate: bool,
    /// What is left of the filter when it has decayed.
    #[serde(default = "shift")]
    pub shift: f64,
    /// Part of l_max in which the fastest channel decays to `target`.
    #[serde(default = "fast")]
    pub fast_decay_pct: f64,
    /// Part of l_max in which the slowest channel does.
    #[serde(default = "slow")]
    pub slow_decay_pct: f64,
    /// See `fast_decay_pct`.
    #[serde(default = "target")]
    pub target: f64,
    /// Learning rate of the positional features over that of the model; 0: they stay as they are.
    #[serde(default = "pos_emb")]
    pub pos_emb_lr_scale: f64,
}

fn one() -> f64 {
    1.0
}
fn two() -> usize {
    2
}
fn three() -> usize {
    3
}
fn sixty_four() -> usize {
    64
}
fn yes() -> bool {
    true
}
fn shift() -> f64 {
    0.05
}
fn fast() -> f64 {
    0.3
}
fn slow() -> f64 {
    1.5
}
fn target() -> f64 {
    0.01
}
/// 1e-5 beside the 6e-4 of the model.
fn pos_emb() -> f64 {
    1.0 / 60.0
}

impl HyenaConfig {
    /// The defaults, for sequences up to this length.
    pub fn new(l_max: usize) -> Self {
        Self {
            l_max,
            order: two(),
            filter_order: sixty_four(),
            emb_dim: three(),
            num_inner_mlps: two(),
            w: one(),
            train_freq: true,
            short_filter_order: three(),
            modulate: true,
            shift: shift(),
            fast_decay_pct: fast(),
            slow_decay_pct: slow(),
            target: target(),
            pos_emb_lr_scale: pos_emb(),
        }
    }

    fn numbers(&self) -> Vec<Issue> {
        let above = |key: &str, v: f64| {
            (!(v > 0.0 && v.is_finite()))
                .then(|| Issue::new(key, format!("expected a number above 0, found {v}")))
        };
        let mut issues: Vec<Issue> = [
            above("w", self.w),
            above("fast_decay_pct", self.fast_decay_pct),
            above("slow_decay_pct", self.slow_decay_pct),
            above("target", self.target),
        ]
        .into_iter()
        .flatten()
        .collect();
        for (key, v) in [("shift", self.shift), ("pos_emb_lr_scale", self.pos_emb_lr_scale)] {
            if !(v >= 0.0 && v.is_finite()) {
                issues.push(Issue::new(key, format!("expected a number >= 0, found {v}")));
            }
        }
        issues
    }
}

impl MixerConfig for HyenaConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        const MOST_INNER: usize = 64;
        let mut issues: Vec<Issue> = [
            in_range("l_max", self.l_max, 1),
            in_range("order", self.order, 2),
            in_range("filter_order", self.filter_order, 1),
            in_range("emb_dim", self.emb_dim, 3),
            in_range("short_filter_order", self.short_filter_order, 1),
        ]
        .into_iter()
        .flatten()
        .collect();
        if self.num_inner_mlps > MOST_INNER {
            let found = format!("expected at most {MOST_INNER}, found {}", self.num_inner_mlps);
            issues.push(Issue::new("num_inner_mlps", found).help("HyenaDNA has 2"));
        }
        issues.extend(self.numbers());
        if self.emb_dim.is_multiple_of(2) {
            let found = format!(
                "expected an odd number (time, and pairs of cosine and sine), found {}",
                self.emb_dim
            );
            issues.push(Issue::new("emb_dim", found).help("3 and 5 are usual"));
        }
        if issues.is_empty() {
            issues.extend(in_range("order", (self.order + 1).saturating_mul(d_model), 1));
            issues.extend(in_range("filter_order", self.filter_order.saturating_mul(self.filter_order), 1));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Hyena::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
