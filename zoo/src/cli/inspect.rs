//! `semisep inspect`

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use comfy_table::{Cell, CellAlignment, Table, presets};
use semisep_core::{Rng, VarBuilder};
use semisep_models::LanguageModel;
use semisep_models::normal::Architecture;
use serde_json::json;

use super::model::Dtype;
use super::{Outcome, architecture, model, print, say};
use crate::inspect::{Inspected, Scale, inspect, png};
use crate::load::{LoadOptions, load};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, files};

/// Look at what a model's layers multiply by: mixing matrices as pictures, and the ranks below their diagonals
///
/// Every layer of this zoo that mixes along the sequence is a matrix over the tokens of one text. The table shows the
/// numerical rank of the blocks below its diagonal, the largest over heads and splits: at most the state for a state-space
/// layer, as high as it can be for attention. Blueprints get random weights.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Shipped blueprint, blueprint file, checkpoint folder, or model of the Hugging Face Hub
    #[arg(value_name = "NAME|FILE|DIR|OWNER/NAME")]
    model: String,
    /// Text to run through the model
    #[arg(long, short, value_name = "TEXT", conflicts_with = "tokens")]
    prompt: Option<String>,
    /// Run this many random tokens instead of a text
    #[arg(long, value_name = "N", default_value_t = 64)]
    tokens: usize,
    /// Folder for the pictures and inspect.json; made if there is none
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write into a folder that has files already
    #[arg(long)]
    force: bool,
    /// Pictures of this many heads a layer; ranks are of all heads
    #[arg(long, value_name = "N", default_value_t = 8)]
    heads: usize,
    /// Shades by the logarithm, over six decades
    #[arg(long)]
    log: bool,
    /// What counts as rank, relative to the largest. Default: 1e-10 in f64, 1e-5 otherwise
    #[arg(long, value_name = "X", value_parser = tolerance)]
    tolerance: Option<f64>,
    /// Dtype of the weights in memory
    #[arg(long, value_enum, default_value = "f64")]
    dtype: Dtype,
    /// Seed of random weights and tokens
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn tolerance(text: &str) -> Result<f64, String> {
    let x: Option<f64> = text.parse().ok();
    x.filter(|x| (0.0..1.0).contains(x)).ok_or_else(|| "expected a number from 0 to below 1".into())
}

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        self.check_folder()?;
        let (architecture, model, tokenizer) = self.open()?;
        let ids = match (&self.prompt, tokenizer) {
            (Some(text), tokenizer) => tokenizer?.encode(text)?,
            (None, _) => {
                let mut rng = Rng::named(self.seed, "tokens");
                (0..self.tokens).map(|_| rng.below(architecture.model.vocab_size) as u32).collect()
            }
        };
        let exact = matches!(self.dtype, Dtype::F64);
        let tolerance = self.tolerance.unwrap_or(if exact { 1e-10 } else { 1e-5 });
        let scale = if self.log { Scale::Log } else { Scale::Linear };
        let mut pictures = 0;
        let mut picture = |of: &Inspected, head: usize, matrix: &Tensor| {
            self.make_folder()?;
            pictures += 1;
            let name = format!("layer{:02}.{}.head{head:03}.png", of.layer, of.path);
            files::write(&self.out.join(name), &png(matrix, scale)?)
        };
        let found = inspect(&model, &architecture, &ids, tolerance, self.heads, &mut picture)?;
        self.make_folder()?;
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": architecture.name,
            "dtype": DType::from(self.dtype).as_str(),
            "tokens": ids.len(),
            "tolerance": tolerance,
            "mixers": found,
        });
        let report = format!("{report:#}\n");
        files::write(&self.out.join("inspect.json"), report.as_bytes())?;
        print(&if self.json { report } else { as_text(&architecture.name, ids.len(), tolerance, &found) })?;
        say(&format!("[{pictures} pictures and inspect.json in {}]", self.out.display()));
        Ok(Outcome::Good)
    }

    /// Before anything is computed: whether the folder may be written to.
    fn check_folder(&self) -> Result<()> {
        let Ok(mut entries) = std::fs::read_dir(&self.out) else {
            if self.out.exists() {
                return Err(Error::at(&self.out, "expected a folder, found a file"));
            }
            return Ok(());
        };
        if entries.next().is_some() && !self.force {
            return Err(Error::at(&self.out, "the folder has files already")
                .hint("name another folder, or give --force to write into this one"));
        }
        Ok(())
    }

    fn make_folder(&self) -> Result<()> {
        let fail = |e| Error::at(&self.out, format!("cannot be made: {e}"));
        std::fs::create_dir_all(&self.out).map_err(fail)
    }

    fn open(&self) -> Result<(Architecture, LanguageModel, Result<Tokenizer>)> {
        let dtype = self.dtype.into();
        if let Some(folder) = model::folder(Path::new(&self.model))? {
            let loaded = load(&folder, &LoadOptions { dtype, ..LoadOptions::default() })?;
            let tokenizer = model::tokenizer(&folder, &loaded.architecture.model);
            return Ok((loaded.architecture, loaded.model, tokenizer));
        }
        let architecture = architecture::open(&self.model)?;
        let model = LanguageModel::new(&architecture, &VarBuilder::seeded(self.seed, dtype, Device::Cpu))?;
        let vocabulary = architecture.model.vocab_size;
        let tokenizer = if vocabulary < 256 {
            let message = format!("a vocabulary of {vocabulary} has no room for bytes (256)");
            Err(Error::new(message).hint("give --tokens N instead of a text"))
        } else {
            Ok(Tokenizer::Bytes)
        };
        Ok((architecture, model, tokenizer))
    }
}

fn as_text(name: &str, tokens: usize, tolerance: f64, found: &[Inspected]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["layer", "block", "mixer", "kind", "heads", "rank", "possible", "d_state"]);
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    for of in found {
        let (rank, possible) = match &of.note {
            Some(note) => (note.clone(), String::new()),
            None => (of.max_off_diagonal_rank.to_string(), of.possible_rank.to_string()),
        };
        table.add_row([
            right(of.layer.to_string()),
            Cell::new(&of.block),
            Cell::new(&of.path),
            Cell::new(&of.kind),
            right(of.heads.to_string()),
            right(rank),
            right(possible),
            right(of.d_state.map_or_else(|| "-".into(), |n| n.to_string())),
        ]);
    }
    format!(
        "{name}: highest rank of blocks below the diagonal, {tokens} tokens, relative tolerance {tolerance:e}\n{table}\n"
    )
}
