//! `semisep eval`

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use super::model::ModelArgs;
use super::{Outcome, model, print};
use crate::Result;
use crate::eval::{PerplexityOptions, choose, perplexity, read_questions};
use crate::files::read_text;
use crate::load::Loaded;
use crate::tokenizer::{Tokenizer, start_token};

/// Measure how well a model predicts text
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Ppl(Ppl),
    Mc(Mc),
}

/// Perplexity of a text
///
/// Every token but the first is predicted once. Windows start from an empty state and are packed into passes; with
/// --context 0 the model reads the whole text from state to state.
#[derive(Debug, clap::Args)]
struct Ppl {
    #[command(flatten)]
    model: ModelArgs,
    /// Text in UTF-8
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Most tokens the model sees at once; 0 for the whole text
    #[arg(long, value_name = "N", default_value_t = 2048)]
    context: usize,
    /// Tokens a window predicts beyond the one before; fewer give each more context [default: context - 1]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    stride: usize,
    #[command(flatten)]
    run: Run,
}

/// Multiple choice: acc and acc_norm as lm-eval computes them
///
/// Each line of FILE is an object with context, choices and answer (an index, or the choice itself).
#[derive(Debug, clap::Args)]
struct Mc {
    #[command(flatten)]
    model: ModelArgs,
    /// JSON Lines
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,
    /// Most tokens the model sees at once, the last ones; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    context: usize,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Tokens that run at a time
    #[arg(long, value_name = "N", default_value_t = 2048)]
    chunk: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        match &self.what {
            What::Ppl(args) => args.run(),
            What::Mc(args) => args.run(),
        }
    }
}

impl Ppl {
    fn run(&self) -> Result<Outcome> {
        let text = read_text(&self.file)?;
        let (loaded, tokenizer) = open(&self.model)?;
        let options = PerplexityOptions { context: self.context, stride: self.stride, chunk: self.run.chunk };
        let (begin, bar) = (Instant::now(), bar());
        let found =
            perplexity(&loaded.model, &tokenizer, &text, options, &mut |done, of| show(&bar, done, of));
        bar.finish_and_clear();
        let (found, seconds) = (found.map_err(|e| e.in_file(&self.file))?, begin.elapsed().as_secs_f64());
        let line = format!(
            "perplexity {:.4}, {:.4} bits a byte, {:.2} a word; {:.1} % of tokens are the likeliest\n{} tokens, {} \
             bytes in {seconds:.2} s",
            found.perplexity,
            found.bits_per_byte,
            found.word_perplexity,
            100.0 * found.accuracy,
            found.tokens,
            found.bytes
        );
        self.run.print(&loaded, &found, &line, seconds)
    }
}

impl Mc {
    fn run(&self) -> Result<Outcome> {
        let questions = read_questions(&read_text(&self.file)?, &self.file)?;
        let (loaded, tokenizer) = open(&self.model)?;
        let start = start_token(&loaded.folder)?;
        let (begin, bar) = (Instant::now(), bar());
        let how = (start, self.context, self.run.chunk);
        let found = choose(&loaded.model, &tokenizer, &questions, how, &mut |done, of| show(&bar, done, of));
        bar.finish_and_clear();
        let (found, seconds) = (found.map_err(|e| e.in_file(&self.file))?, begin.elapsed().as_secs_f64());
        let line = format!(
            "acc {:.4} ± {:.4}, acc_norm {:.4} ± {:.4}; {} questions in {seconds:.2} s",
            found.acc, found.acc_stderr, found.acc_norm, found.acc_norm_stderr, found.questions
        );
        self.run.print(&loaded, &found, &line, seconds)
    }
}

impl Run {
    fn print(&self, loaded: &Loaded, found: &impl Serialize, line: &str, seconds: f64) -> Result<Outcome> {
        let name = &loaded.architecture.name;
        print(&if self.json {
            let value = json!({ "model": name, "result": found, "seconds": seconds });
            format!("{value:#}\n")
        } else {
            format!("{name}: {line}\n")
        })?;
        Ok(Outcome::Good)
    }
}

fn open(model: &ModelArgs) -> Result<(Loaded, Tokenizer)> {
    let loaded = model.load(&model.folder()?)?;
    let tokenizer = model::tokenizer(&loaded.folder, &loaded.architecture.model)?;
    Ok((loaded, tokenizer))
}

/// A bar on a terminal.
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} tokens, {per_sec}, {eta} left");
    match style {
        Ok(style) => ProgressBar::new(0).with_style(style),
        Err(_) => ProgressBar::new(0),
    }
}

fn show(bar: &ProgressBar, done: usize, of: usize) {
    bar.set_length(of as u64);
    bar.set_position(done as u64);
}
