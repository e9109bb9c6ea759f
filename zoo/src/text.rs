//! Texts from a model: prompts in, text out as it comes, up to a stop string.

use semisep_models::generate::{Finish, Flow, GenerateOptions, Generation};
use semisep_models::{LanguageModel, Session};

use crate::tokenizer::{Stream, Tokenizer};
use crate::{Error, Result};

/// A continued prompt.
#[derive(Debug, Clone)]
pub struct Completion {
    /// What was continued.
    pub prompt: String,
    /// The continuation, without the stop string.
    pub text: String,
    /// Its tokens, with those of the stop string.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Continues each sequence of a session, whose last texts were `prompts`; `on_text(row, text)` is called as text comes,
/// never with half a character or any of a stop string.
///
/// # Errors
/// If the session cannot be gone on from, or has tokens outside the model's vocabulary.
pub fn complete(
    model: &LanguageModel,
    tokenizer: &Tokenizer,
    (session, prompts): (&mut Session, &[String]),
    stops: &[String],
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(usize, &str) -> Result<()>,
) -> Result<(Vec<Completion>, Generation)> {
    let mut rows: Vec<Row> = prompts.iter().map(|_| Row::new(stops)).collect();
    let mut failure = None;
    let generation = session.generate(model, options, &mut |row, token| {
        let step =
            rows[row].push(tokenizer, token).and_then(|(text, flow)| on_text(row, &text).map(|()| flow));
        // After a failure nothing more is wanted of any row.
        match step {
            Ok(flow) if failure.is_none() => flow,
            Ok(_) => Flow::Stop,
            Err(e) => {
                failure.get_or_insert(e);
                Flow::Stop
            }
        }
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let mut completions = Vec::with_capacity(rows.len());
    for (i, mut row) in rows.into_iter().enumerate() {
        on_text(i, &row.finish(tokenizer)?)?;
        completions.push(Completion {
            prompt: prompts[i].clone(),
            text: row.text,
            tokens: generation.tokens[i].clone(),
            finish: generation.finish[i],
        });
    }
    Ok((completions, generation))
}

/// The text of one sequence so far.
struct Row {
    stream: Stream,
    stops: Stops,
    text: String,
}

impl Row {
    fn new(stops: &[String]) -> Self {
        Self { stream: Stream::default(), stops: Stops::new(stops), text: String::new() }
    }

    fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<(String, Flow)> {
        let piece = self.stream.push(tokenizer, token)?;
        let new = self.stops.push(&piece);
        self.text += &new;
        Ok((new, if self.stops.stopped { Flow::Stop } else { Flow::Continue }))
    }

    /// What was held back.
    fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let rest = self.stream.finish(tokenizer)?;
        let new = self.stops.push(&rest) + &self.stops.finish();
        self.text += &new;
        Ok(new)
    }
}

/// Holds text back while it may be the beginning of a stop string.
struct Stops {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl Stops {
    fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self { stops, held: String::new(), stopped: false }
    }

    /// The text that is certain to come before any stop string.
    fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held += piece;
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begins = |at: usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]));
        let hold = self.held.char_indices().map(|(at, _)| at).find(|&at| begins(at));
        let rest = hold.map_or_else(String::new, |at| self.held.split_off(at));
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back in vain.
    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Refuses options that mean nothing.
///
/// # Errors
/// If a probability is outside 0..=1, or a factor is negative or no number.
pub fn check_options(options: &GenerateOptions) -> Result<()> {
    let sampler = &options.sampler;
    let checks = [
        ("temperature", sampler.temperature, 0.0, f64::MAX),
        ("top-p", sampler.top_p, 0.0, 1.0),
        ("min-p", sampler.min_p, 0.0, 1.0),
        ("repetition-penalty", sampler.repetition_penalty, f64::MIN_POSITIVE, f64::MAX),
    ];
    for (name, value, low, high) in checks {
        if !(low..=high).contains(&value) {
            let range = if high == 1.0 { "a number from 0 to 1" } else { "a number above 0" };
            return Err(Error::new(format!("--{name}: expected {range}, found {value}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut stops = Stops::new(&stops);
        let given: Vec<String> = pieces.iter().map(|piece| stops.push(piece)).collect();
        (given, stops.finish())
    }

    #[test]
    fn stop_strings_that_span_tokens() {
        let (given, rest) = run(&["###", "END"], &["ab", "c#", "#", "d##", "#x", "later"]);
        assert_eq!(given, ["ab", "c", "", "##d", "", ""]);
        assert_eq!(rest, "");
    }

    #[test]
    fn what_only_looks_like_a_stop_string_is_given_at_the_end() {
        let (given, rest) = run(&["</s>"], &["a<", "/", "s"]);
        assert_eq!((given.concat().as_str(), rest.as_str()), ("a", "</s"));
        assert_eq!(run(&["é!"], &["caf", "é", "?"]).0, ["caf", "", "é?"]);
        assert_eq!(run(&[""], &["x"]).0, ["x"]);
    }

    /// The first of several in the text counts, not the first in the list.
    #[test]
    fn the_earliest_stop_string_wins() {
        assert_eq!(run(&["z", "b"], &["abcz"]).0, ["a"]);
    }
}
