//! `semisep generate`

use std::path::{Path, PathBuf};

use semisep_models::Session;
use semisep_models::generate::{Finish, GenerateOptions, Generation};
use semisep_models::sampler::SamplerOptions;
use serde_json::json;

use super::model::ModelArgs;
use super::{Outcome, model, print, say};
use crate::files::read_text;
use crate::load::Loaded;
use crate::state_file;
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
    /// Go on from the state in this file; a prompt is then added to what it has read
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,
    /// Keep what the model remembers at the end in this file; with -n 0, of the prompt alone
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
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
        let folder = self.save_state.as_deref().and_then(Path::parent).filter(|p| !p.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            // Before the work, not after it.
            return Err(Error::at(folder, "--save-state: expected a folder to write to, found none"));
        }
        let folder = self.model.folder()?;
        options.stop_tokens = stop_tokens(&folder)?;
        let loaded = self.model.load_for_use(&folder)?;
        let tokenizer = model::tokenizer(&loaded.folder, &loaded.architecture.model)?;
        let (mut session, prompts) = self.session(&loaded, &tokenizer, prompts)?;
        let live = prompts.len() == 1 && !self.json;
        let mut on_text = |_: usize, text: &str| if live { print(text) } else { Ok(()) };
        let (completions, generation) = complete(
            &loaded.model,
            &tokenizer,
            (&mut session, &prompts),
            &self.stop,
            &options,
            &mut on_text,
        )?;
        match (live, self.json) {
            (true, _) => print("\n")?,
            (_, true) => print(&as_json(&completions, &generation))?,
            _ => print(&as_text(&completions))?,
        }
        say(&speed(&generation));
        if let Some(path) = &self.save_state {
            state_file::save(path, &session, &loaded.architecture)?;
        }
        Ok(Outcome::Good)
    }

    /// What to continue, and the text of each sequence that this command line added.
    fn session(
        &self,
        loaded: &Loaded,
        tokenizer: &Tokenizer,
        prompts: Vec<String>,
    ) -> Result<(Session, Vec<String>)> {
        let Some(path) = &self.load_state else {
            let ids = prompts.iter().map(|p| tokenizer.encode(p)).collect::<Result<Vec<_>>>()?;
            return Ok((Session::new(&loaded.model, &ids)?, prompts));
        };
        let mut session = state_file::load(path, &loaded.model, &loaded.architecture)?;
        let rows = session.tokens().len();
        let prompts = if prompts.is_empty() { vec![String::new(); rows] } else { prompts };
        if prompts.len() != rows {
            let message =
                format!("the state has {rows} sequences, expected as many prompts, found {}", prompts.len());
            return Err(Error::at(path, message));
        }
        let ids = prompts.iter().map(|p| tokenizer.encode_piece(p)).collect::<Result<Vec<_>>>()?;
        session.extend(&ids)?;
        Ok((session, prompts))
    }

    fn prompts(&self) -> Result<Vec<String>> {
        let files = self.prompt_file.iter().map(|path| read_text(path));
        let prompts = self.prompt.iter().cloned().map(Ok).chain(files).collect::<Result<Vec<_>>>()?;
        if prompts.is_empty() && self.load_state.is_none() {
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
