//! How well a model predicts: log-likelihoods of tokens, perplexity of a text, multiple choice.

mod choice;
mod perplexity;

use candle_core::{DType, Device, Tensor};
pub use choice::{Choices, Score, choose, read_questions};
pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
use rayon::prelude::*;
use semisep_models::LanguageModel;

use crate::{Error, Result};

/// Rows of logits that exist at a time.
const ROWS: usize = 128;

/// Tokens, of which those from `from` on are to be predicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// All tokens.
    pub ids: Vec<u32>,
    /// The first predicted one, at least 1.
    pub from: usize,
}

/// A predicted token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Predicted {
    /// The natural logarithm of the probability it had.
    pub log_likelihood: f64,
    /// Whether no other token was likelier.
    pub greedy: bool,
}

/// The predicted tokens of each sequence, over all rows of the head, padding included, as the references compute them.
///
/// About `chunk` tokens run at a time: short sequences packed side by side, long ones in pieces from state to state.
/// `tick(tokens)` is called as tokens are done.
///
/// # Errors
/// If the model is not causal, an id is outside the vocabulary, or a sequence predicts its first token.
pub fn predict(
    model: &LanguageModel,
    sequences: &[Sequence],
    chunk: usize,
    tick: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<Predicted>>> {
    if let Some(i) = model.stack().mixers().position(|mixer| !mixer.causal()) {
        return Err(Error::new(format!("mixer {i} looks ahead: there is no likelihood of the next token")));
    }
    if let Some(i) = sequences.iter().position(|s| s.from == 0) {
        return Err(Error::new(format!("sequence {i}: nothing comes before its first token to predict it")));
    }
    let chunk = chunk.max(1);
    let mut all = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while let Some(first) = rest.first() {
        let mut total = 0;
        let together = rest.iter().take_while(|s| {
            total += s.ids.len();
            total <= chunk
        });
        let (now, later) = rest.split_at(together.count().max(1));
        if first.ids.len() > chunk {
            all.push(long(model, first, chunk, tick)?);
        } else {
            all.extend(packed(model, now)?);
            tick(now.iter().map(|s| s.ids.len()).sum());
        }
        rest = later;
    }
    Ok(all)
}

/// One sequence, piece by piece.
fn long(
    model: &LanguageModel,
    sequence: &Sequence,
    chunk: usize,
    tick: &mut dyn FnMut(usize),
) -> Result<Vec<Predicted>> {
    let mut state = model.new_state(1)?;
    let mut all = Vec::new();
    let last = sequence.ids.len() - 1;
    for start in (0..last).step_by(chunk) {
        let end = (start + chunk).min(last);
        let hidden = model.hidden(&row(&sequence.ids[start..end])?, Some(&mut state), None)?.squeeze(0)?;
        let begin = start.max(sequence.from - 1);
        if begin < end {
            let targets = &sequence.ids[begin + 1..=end];
            all.extend(likelihoods(model, &hidden.narrow(0, begin - start, end - begin)?, targets)?);
        }
        tick(end - start);
    }
    Ok(all)
}

/// Sequences side by side.
fn packed(model: &LanguageModel, sequences: &[Sequence]) -> Result<Vec<Vec<Predicted>>> {
    let mut cu_seqlens = vec![0];
    for sequence in sequences {
        cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + sequence.ids.len());
    }
    let ids: Vec<u32> = sequences.iter().flat_map(|s| &s.ids).copied().collect();
    if ids.is_empty() {
        return Ok(vec![Vec::new(); sequences.len()]);
    }
    let hidden = model.hidden(&row(&ids)?, None, Some(&cu_seqlens))?.squeeze(0)?; // (total, d)
    let pieces = sequences.iter().zip(&cu_seqlens).map(|(sequence, start)| {
        let n = sequence.ids.len().saturating_sub(sequence.from);
        match n {
            0 => Ok(Vec::new()),
            _ => likelihoods(
                model,
                &hidden.narrow(0, start + sequence.from - 1, n)?,
                &sequence.ids[sequence.from..],
            ),
        }
    });
    pieces.collect()
}

fn row(ids: &[u32]) -> Result<Tensor> {
    Ok(Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)
}

/// hidden (n, d) and the n tokens that follow.
fn likelihoods(model: &LanguageModel, hidden: &Tensor, targets: &[u32]) -> Result<Vec<Predicted>> {
    let mut all = Vec::with_capacity(targets.len());
    for (i, targets) in targets.chunks(ROWS).enumerate() {
        let logits = model.logits(&hidden.narrow(0, i * ROWS, targets.len())?)?;
        let rows = logits.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        all.par_extend(rows.into_par_iter().zip(targets).map(|(row, &target)| {
            let best = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|logit| (logit - best).exp()).sum();
            let logit = row.get(target as usize).copied().unwrap_or(f64::NEG_INFINITY);
            Predicted { log_likelihood: logit - best - sum.ln(), greedy: logit == best }
        }));
    }
    Ok(all)
}
