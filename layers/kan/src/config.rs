//! `mixer = "kan"` in a blueprint.

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Activation, Init, Issue, Mixer, MixerConfig, VarBuilder, in_range};
use serde::{Deserialize, Serialize};

use crate::{KIND, Kan};

/// Highest order of the splines: the recursion's work grows with its square.
const MAX_ORDER: usize = 16;

/// Sizes and options of a Kolmogorov-Arnold channel mixer; names and defaults as in efficient-kan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KanConfig {
    /// Widths between the layers; none: one layer from d_model to d_model.
    pub hidden: Vec<usize>,
    /// Intervals of the inner grid (G).
    pub grid_size: usize,
    /// Order of the splines; 3 is cubic.
    pub spline_order: usize,
    /// Ends of the inner grid; the splines reach `spline_order` intervals further.
    pub grid_range: (f64, f64),
    /// The activation of the base term.
    pub base_activation: Activation,
    /// A learned factor on every edge's spline.
    pub spline_scaler: bool,
}

impl Default for KanConfig {
    fn default() -> Self {
        Self {
            hidden: Vec::new(),
            grid_size: 5,
            spline_order: 3,
            grid_range: (-1.0, 1.0),
            base_activation: Activation::Silu,
            spline_scaler: true,
        }
    }
}

impl KanConfig {
    /// Basis functions of each input.
    pub fn functions(&self) -> usize {
        self.grid_size + self.spline_order
    }

    /// Knots of each input.
    pub fn knots(&self) -> usize {
        self.grid_size + 2 * self.spline_order + 1
    }

    /// Evenly spaced knots, the same for each input.
    pub(crate) fn grid(&self) -> Init {
        let ((lo, hi), order, size) = (self.grid_range, self.spline_order as f64, self.grid_size as f64);
        Init::custom(move |shape, _| {
            let step = (hi - lo) / size;
            let row: Vec<f32> = (0..shape[1]).map(|j| ((j as f64 - order) * step + lo) as f32).collect();
            row.repeat(shape[0])
        })
    }
}

impl MixerConfig for KanConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, d_model: usize) -> Vec<Issue> {
        let mut issues = Vec::new();
        for (i, &width) in self.hidden.iter().enumerate() {
            issues.extend(in_range(&format!("hidden[{i}]"), width, 1));
        }
        issues.extend(in_range("grid_size", self.grid_size, 1));
        if self.spline_order > MAX_ORDER {
            let message = format!("expected 0 to {MAX_ORDER}, found {}", self.spline_order);
            issues.push(Issue::new("spline_order", message).help("3, cubic splines, is usual"));
        }
        let (lo, hi) = self.grid_range;
        if !(lo.is_finite() && hi.is_finite() && lo < hi) {
            let message = format!("expected two numbers, the second larger, found {lo} and {hi}");
            issues.push(Issue::new("grid_range", message));
        }
        if issues.is_empty() {
            let widest = self.hidden.iter().copied().max().unwrap_or(0).max(d_model);
            issues.extend(in_range("grid_size", widest.saturating_mul(self.knots()), 1));
        }
        issues
    }

    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Kan::new(d_model, self, &vb)?))
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}
