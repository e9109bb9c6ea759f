//! `semisep verify`

use std::fmt::Write;
use std::path::{Path, PathBuf};

use candle_core::DType;
use semisep_core::WeightType;
use semisep_models::weights_by_type;
use serde_json::json;

use super::model::ModelArgs;
use super::{Outcome, print};
use crate::Result;
use crate::load::Loaded;
use crate::verify::{Comparison, Expected, tolerance};

/// Compare a checkpoint's logits with recorded ones of its reference implementation
///
/// Computes the logits in parallel form, by prefill in pieces, and (where decode_logits are recorded) by prefill followed
/// by single steps. Exits with 1 if a form differs by more than the tolerance, relative to the largest logit, or another
/// token is the likeliest where the two best are further apart than that.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// JSON with input_ids (rows of one length) and decode_start [default: tokens.json in DIR]
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Safetensors with logits, and perhaps decode_logits [default: expected.safetensors in DIR]
    #[arg(long, value_name = "FILE")]
    expected: Option<PathBuf>,
    /// Largest relative difference [default: 1e-5 in f64 (or f64_tolerance of meta.json), 3e-4 in f32, 3e-2 in bf16, f16;
    /// none for quantised weights]
    #[arg(long, value_parser = positive)]
    tolerance: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|n| *n >= 0.0 && n.is_finite()).ok_or_else(|| "expected a number from 0 on".into())
}

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        let folder = self.model.folder()?;
        let beside = if folder.is_dir() { &*folder } else { folder.parent().unwrap_or(Path::new("")) };
        let tokens = self.tokens.clone().unwrap_or_else(|| beside.join("tokens.json"));
        let expected = self.expected.clone().unwrap_or_else(|| beside.join("expected.safetensors"));
        let expected = Expected::open(&tokens, &expected)?;
        let dtype = DType::from(self.model.dtype);
        let loaded = self.model.load(&folder)?;
        let mut held = loaded.model.parameter_groups().iter().filter_map(|group| group.held);
        let blocks = held.any(|held| matches!(held, WeightType::Blocks(_)));
        let tolerance = self.tolerance.unwrap_or_else(|| match blocks {
            // How much blocks lose depends on the model: the figures are the answer.
            true => f64::INFINITY,
            false => tolerance(dtype, expected.f64_tolerance()),
        });
        let forms = expected.compare(&loaded.model, tolerance).map_err(|e| e.in_file(&tokens))?;
        let ok = forms.iter().all(|form| form.ok);
        print(&if self.json {
            as_json(&loaded, dtype, tolerance, &forms)
        } else {
            as_text(&loaded, dtype, tolerance, &forms)
        })?;
        Ok(if ok { Outcome::Good } else { Outcome::Bad })
    }
}

fn as_json(loaded: &Loaded, dtype: DType, tolerance: f64, forms: &[Comparison]) -> String {
    let report = &loaded.report;
    let value = json!({
        "model": loaded.architecture.name,
        "family": loaded.family,
        "dtype": dtype.as_str(),
        "weights": weights_by_type(loaded.model.parameter_groups()),
        "tolerance": tolerance,
        "tensors": {
            "loaded": report.loaded.len(),
            "reshaped": report.reshaped().map(|t| &t.stored_as).collect::<Vec<_>>(),
            "missing": report.missing.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "unexpected": report.unexpected,
            "ignored": report.ignored,
            "notes": report.notes,
        },
        "forms": forms,
        "ok": forms.iter().all(|form| form.ok),
    });
    format!("{value:#}\n")
}

fn as_text(loaded: &Loaded, dtype: DType, tolerance: f64, forms: &[Comparison]) -> String {
    let mut text = format!(
        "{} ({}, {}): {} parameters; {}\n",
        loaded.architecture.name,
        loaded.family,
        dtype.as_str(),
        loaded.report.elements(),
        loaded.report
    );
    let limit =
        if tolerance.is_finite() { format!("tolerance {tolerance:.0e}") } else { "no tolerance".into() };
    for form in forms {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {:<9} max |difference| {:.3e}, relative {:.3e} ({limit}), argmax differs at {} of {} \
             positions: {}",
            form.form,
            form.max_abs,
            form.relative,
            form.argmax_disagreements,
            form.positions,
            if form.ok { "ok" } else { "OUT OF TOLERANCE" }
        );
    }
    text
}
