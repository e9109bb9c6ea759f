//! Perplexity of a text, in windows.

use semisep_models::LanguageModel;
use serde::Serialize;

use super::{Sequence, predict};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// How to cut a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Most tokens that the model sees at once; 0 for the whole text.
    pub context: usize,
    /// Tokens that each window after the first predicts: fewer give each more context. At most `context - 1`, which 0
    /// stands for.
    pub stride: usize,
    /// Tokens that run at a time.
    pub chunk: usize,
}

/// How well a text was predicted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// Tokens of the text.
    pub tokens: usize,
    /// Predicted tokens: all but the first.
    pub predicted: usize,
    /// Bytes of the text.
    pub bytes: usize,
    /// Sum of the negative log-likelihoods, in nats.
    pub nll: f64,
    /// `exp(nll / predicted)`
    pub perplexity: f64,
    /// `nll / ln 2 / bytes`: independent of the tokenizer.
    pub bits_per_byte: f64,
    /// `exp(nll / words)`, words being what white space separates.
    pub word_perplexity: f64,
    /// Share of tokens that no other was likelier than.
    pub accuracy: f64,
}

/// The perplexity of `text`; `tick(done, of)` is called with tokens as they are done.
///
/// Every token but the first is predicted once, from at least one token before it: the first window predicts all its
/// tokens but one, each later one the `stride` tokens that follow. With the smallest context, 2, that is a bigram model.
///
/// # Errors
/// If the text has fewer than two tokens, `context` is 1, or `stride` leaves no context.
pub fn perplexity(
    model: &LanguageModel,
    tokenizer: &Tokenizer,
    text: &str,
    options: PerplexityOptions,
    tick: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity> {
    let ids = tokenizer.encode(text)?;
    if ids.len() < 2 {
        return Err(Error::new(format!("expected a text of at least two tokens, found {}", ids.len())));
    }
    let windows = windows(&ids, options)?;
    let of = windows.iter().map(|w| w.ids.len()).sum();
    let mut done = 0;
    let predicted = predict(model, &windows, options.chunk, &mut |tokens| {
        done += tokens;
        tick(done, of);
    })?;
    let (n, words) = (ids.len() - 1, text.split_whitespace().count());
    let nll: f64 = predicted.iter().flatten().map(|p| -p.log_likelihood).sum();
    Ok(Perplexity {
        tokens: ids.len(),
        predicted: n,
        bytes: text.len(),
        nll,
        perplexity: (nll / n as f64).exp(),
        bits_per_byte: nll / std::f64::consts::LN_2 / text.len().max(1) as f64,
        word_perplexity: (nll / words.max(1) as f64).exp(),
        accuracy: predicted.iter().flatten().filter(|p| p.greedy).count() as f64 / n as f64,
    })
}

fn windows(ids: &[u32], options: PerplexityOptions) -> Result<Vec<Sequence>> {
    let context = if options.context == 0 { ids.len() } else { options.context };
    if context < 2 {
        return Err(Error::new(format!("--context: expected at least 2 tokens, found {context}")));
    }
    let stride = if options.stride == 0 { context - 1 } else { options.stride };
    if options.context != 0 && stride >= context {
        return Err(Error::new(format!(
            "--stride: expected less than the context of {context}, found {stride}: some tokens would have nothing \
             before them"
        )));
    }
    let first = context.min(ids.len());
    let mut windows = vec![Sequence { ids: ids[..first].to_vec(), from: 1 }];
    let mut done = first;
    while done < ids.len() {
        let end = (done + stride).min(ids.len());
        let start = end.saturating_sub(context);
        windows.push(Sequence { ids: ids[start..end].to_vec(), from: done - start });
        done = end;
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_predicted_once() {
        let ids: Vec<u32> = (0..103).collect();
        for (context, stride) in [(0, 0), (10, 0), (10, 9), (10, 3), (10, 1), (2, 0), (103, 0), (500, 0)] {
            let windows = windows(&ids, PerplexityOptions { context, stride, chunk: 16 }).unwrap();
            let predicted: Vec<u32> = windows.iter().flat_map(|w| w.ids[w.from..].to_vec()).collect();
            assert_eq!(predicted, ids[1..], "{context} {stride}");
            let most = if context == 0 { 103 } else { context };
            assert!(windows.iter().all(|w| w.from >= 1 && w.ids.len() <= most), "{context} {stride}");
        }
        for (context, stride, part) in [(1, 0, "--context"), (10, 10, "--stride"), (10, 11, "--stride")] {
            let message =
                windows(&ids, PerplexityOptions { context, stride, chunk: 16 }).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
