//! `semisep bench`

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use semisep_models::blueprints;

use super::model::{ActivationsArg, Dtype, QuantArg};
use super::{Outcome, architecture, model, print};
use crate::bench::{BenchOptions, BenchReport, Machine, Subject, measure, table};
use crate::load::{LoadOptions, load};
use crate::{Error, Result, files};

/// Longest context that may be asked for.
const MAX_LENGTH: usize = 1 << 24;

/// Compare architectures: prefill and decode speed over lengths, state and key-value bytes, peak memory
///
/// Each subject is a shipped blueprint by its name, a blueprint file, a checkpoint folder or a model of the Hub; without
/// any, four small architectures of equal size are compared. Blueprints get random weights.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Shipped blueprint, blueprint file, checkpoint folder, or model of the Hugging Face Hub
    #[arg(value_name = "NAME|FILE|DIR|OWNER/NAME")]
    subjects: Vec<String>,
    /// Context lengths, tokens
    #[arg(long, value_delimiter = ',', default_value = "128,512,2048,8192", value_parser = length)]
    lengths: Vec<usize>,
    /// Sequences at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Time for each figure, seconds; each is measured once at least
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Seed of random weights and tokens
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Dtype of the weights in memory
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    #[command(flatten)]
    quant: QuantArg,
    #[command(flatten)]
    activations: ActivationsArg,
    /// Also write the figures here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn length(text: &str) -> Result<usize, String> {
    let n: Option<usize> = text.parse().ok();
    n.filter(|n| (1..=MAX_LENGTH).contains(n))
        .ok_or_else(|| format!("expected a length from 1 to {MAX_LENGTH}"))
}

fn seconds(text: &str) -> Result<f64, String> {
    let n: Option<f64> = text.parse().ok();
    n.filter(|n| (0.0..=3600.0).contains(n)).ok_or_else(|| "expected 0 to 3600 seconds".into())
}

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        let words: Vec<&str> = match self.subjects.is_empty() {
            true => blueprints::SUITE.to_vec(),
            false => self.subjects.iter().map(String::as_str).collect(),
        };
        // Every mistake in a blueprint comes before the first measurement.
        let mut folders = Vec::with_capacity(words.len());
        for word in &words {
            let folder = model::folder(Path::new(word))?;
            if folder.is_none() {
                architecture::open(word)?;
            }
            folders.push(folder);
        }
        let options = BenchOptions {
            lengths: self.lengths.clone(),
            seconds: self.seconds,
            batch: usize::from(self.batch),
            seed: self.seed,
        };
        let bar = progress((words.len() * options.lengths.len()) as u64);
        bar.set_message("measuring the machine");
        let machine = Machine::measure();
        let mut models = Vec::with_capacity(words.len());
        for (name, folder) in words.into_iter().zip(&folders) {
            let subject = self.subject(name, folder.as_deref())?;
            let mut tick = |what: &str| {
                bar.set_message(what.to_string());
                bar.inc(1);
            };
            let report = measure(subject, &options, &machine, &mut tick);
            models.push(report.map_err(|e| Error::new(format!("{name}: {e}")))?);
        }
        bar.finish_and_clear();
        let report = BenchReport { version: env!("CARGO_PKG_VERSION"), machine, options, models };
        print(&table(&report))?;
        if let Some(path) = &self.json {
            let json = serde_json::to_string_pretty(&report).map_err(|e| Error::at(path, e))?;
            files::write(path, format!("{json}\n").as_bytes())?;
        }
        Ok(Outcome::Good)
    }

    fn subject(&self, name: &str, folder: Option<&Path>) -> Result<Subject> {
        let (dtype, quant, activations) = (self.dtype.into(), self.quant.quant, self.activations.into());
        let (architecture, model) = match folder {
            Some(folder) => {
                let loaded =
                    load(folder, &LoadOptions { dtype, quant, activations, ..LoadOptions::default() })?;
                (loaded.architecture, Some(loaded.model))
            }
            None => (architecture::open(name)?, None),
        };
        Ok(Subject { name: name.into(), architecture, model, dtype, quant, activations })
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}
