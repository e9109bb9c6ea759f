//! `semisep generate`

use std::path::PathBuf;

use semisep_models::generate::{Finish, GenerateOptions, Generation};
use semisep_models::sampler::SamplerOptions;
use serde_json::json;

use super::model::ModelArgs;
use super::{Outcome, print, say};
use crate::files::read_text;
use crate::text::{Completion, check_options, complete};
use crate::tokenizer::{Tokenizer, stop_tokens};
use crate::{Error, Result};

/// Continue prompts with a model
///
/// The text of a single prompt appears as it is made; several prompts run as one batch and are printed at the end. Speed
/// goes to standard error. The same seed gives the same text.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue; may be given several times
    #[arg(long, short, value_name = "TEXT")]
    prompt: Vec<String>,
    /// File with a text to continue; may be given several times
    #[arg(long, value_name = "FILE")]
    prompt_file: Vec<PathBuf>,
    /// Most tokens a prompt gets
    #[arg(long, short = 'n', default_value_t = 128)]
    max_tokens: usize,
    /// 0 takes the likeliest token; higher is more random
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Keep the likeliest tokens that together reach this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Keep tokens at least this likely, relative to the likeliest
    #[arg(long, default_value_t = 0.0)]
    min_p: f64,
    /// Make tokens seen before less likely; 1 is off
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Seed of the random choice
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Prompt tokens a forward pass
    #[arg(long, default_value_t = 512, value_name = "N")]
    prefill_chunk: usize,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        let prompts = self.prompts()?;
        let mut options = GenerateOptions {
            max_tokens: self.max_tokens,
            sampler: SamplerOptions {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                seed: self.seed,
            },
            prefill_chunk: self.prefill_chunk,
            stop_tokens: Vec::new(),
        };
        check_options(&options)?;
        options.stop_tokens = stop_tokens(&self.model.folder)?;
        let loaded = self.model.load()?;
        let tokenizer = Tokenizer::open(&loaded.folder, &loaded.architecture.model)?;
        let live = prompts.len() == 1 && !self.json;
        let mut on_text = |_: usize, text: &str| if live { print(text) } else { Ok(()) };
        let (completions, generation) =
            complete(&loaded.model, &tokenizer, &prompts, &self.stop, &options, &mut on_text)?;
        match (live, self.json) {
            (true, _) => print("\n")?,
            (_, true) => print(&as_json(&completions, &generation))?,
            _ => print(&as_text(&completions))?,
        }
        say(&speed(&generation));
        Ok(Outcome::Good)
    }

    fn prompts(&self) -> Result<Vec<String>> {
        let files = self.prompt_file.iter().map(|path| read_text(path));
        let prompts = self.prompt.iter().cloned().map(Ok).chain(files).collect::<Result<Vec<_>>>()?;
        if prompts.is_empty() {
            return Err(
                Error::new("expected a prompt, found none").hint("give --prompt TEXT or --prompt-file FILE")
            );
        }
        Ok(prompts)
    }
}

fn as_text(completions: &[Completion]) -> String {
    completions.iter().enumerate().map(|(i, c)| format!("== {i}\n{}{}\n", c.prompt, c.text)).collect()
}

fn as_json(completions: &[Completion], generation: &Generation) -> String {
    let rows: Vec<_> = completions
        .iter()
        .map(|c| {
            let finish = match c.finish {
                Finish::Length => "length",
                Finish::StopToken => "stop_token",
                Finish::Stopped => "stop",
            };
            json!({ "prompt": c.prompt, "text": c.text, "tokens": c.tokens, "finish": finish })
        })
        .collect();
    let value = json!({
        "completions": rows,
        "prompt_tokens": generation.prompt_tokens,
        "first_token_s": generation.first_token.as_secs_f64(),
        "decode_s": generation.decode.as_secs_f64(),
        "tokens_per_s": tokens_per_second(generation),
    });
    format!("{value:#}\n")
}

/// Of all sequences together, after the first token of each.
fn tokens_per_second(generation: &Generation) -> Option<f64> {
    let later: usize = generation.tokens.iter().map(|tokens| tokens.len().saturating_sub(1)).sum();
    (later > 0).then(|| later as f64 / generation.decode.as_secs_f64().max(1e-9))
}

fn speed(generation: &Generation) -> String {
    let made: usize = generation.tokens.iter().map(Vec::len).sum();
    let rate = tokens_per_second(generation).map_or_else(String::new, |rate| format!(", {rate:.1} tokens/s"));
    format!(
        "[{} prompt tokens, first token after {:.3} s; {made} tokens in {:.3} s{rate}]",
        generation.prompt_tokens,
        generation.first_token.as_secs_f64(),
        generation.decode.as_secs_f64()
    )
}
