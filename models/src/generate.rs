//! Text out of a model: prompts in chunks, then one token at a time.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::language_model::{LanguageModel, ModelState};
use crate::sampler::{Sampler, SamplerOptions};

/// How to generate.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most tokens a sequence gets.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Prompt tokens a forward pass, all sequences together.
    pub prefill_chunk: usize,
    /// Tokens that end a sequence; they are not part of it.
    pub stop_tokens: Vec<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 128,
            sampler: SamplerOptions::default(),
            prefill_chunk: 512,
            stop_tokens: Vec::new(),
        }
    }
}

/// What the receiver of a token wants next for its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Another token.
    Continue,
    /// No more.
    Stop,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It has `max_tokens` tokens.
    Length,
    /// A stop token came.
    StopToken,
    /// The receiver said so.
    Stopped,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Tokens of each sequence, without prompt and stop token.
    pub tokens: Vec<Vec<u32>>,
    /// Why each ended.
    pub finish: Vec<Finish>,
    /// Prompt tokens of all sequences.
    pub prompt_tokens: usize,
    /// Until the first token of every sequence was there.
    pub first_token: Duration,
    /// From then until the end.
    pub decode: Duration,
    /// Single-token passes made.
    pub steps: usize,
}

/// Continues each prompt. Prompts may differ in length: they are packed, not padded, so no sequence sees another.
///
/// `on_token(row, token)` is called as tokens come.
///
/// # Errors
/// If a prompt is empty or holds an id outside the vocabulary.
pub fn generate(
    model: &LanguageModel,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(usize, u32) -> Flow,
) -> Result<Generation> {
    if let Some(row) = prompts.iter().position(Vec::is_empty) {
        bail!("prompt {row} is empty: give at least one token, such as the tokenizer's start token");
    }
    let begin = Instant::now();
    let vocab = model.config().vocab_size;
    let mut samplers: Vec<Sampler> =
        prompts.iter().enumerate().map(|(i, p)| Sampler::new(&options.sampler, i, vocab, p)).collect();
    let mut out = Generation {
        tokens: vec![Vec::new(); prompts.len()],
        finish: vec![Finish::Length; prompts.len()],
        prompt_tokens: prompts.iter().map(Vec::len).sum(),
        first_token: Duration::ZERO,
        decode: Duration::ZERO,
        steps: 0,
    };
    if prompts.is_empty() || options.max_tokens == 0 {
        return Ok(out);
    }
    let mut state = model.new_state(prompts.len())?;
    let mut logits = prefill(model, prompts, options.prefill_chunk.max(1), &mut state)?;
    let mut running = vec![true; prompts.len()];
    loop {
        let rows = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let mut next = Vec::with_capacity(rows.len());
        for (row, logits) in rows.iter().enumerate() {
            // Rows that have ended go along with any token; nothing of it is kept.
            let token = if running[row] { samplers[row].sample(logits) } else { 0 };
            next.push(token);
            if running[row] {
                running[row] = accept(&mut out, row, token, options, on_token);
            }
        }
        if out.steps == 0 {
            out.first_token = begin.elapsed();
        }
        if !running.contains(&true) {
            break;
        }
        logits = model.step(&next, &mut state)?;
        out.steps += 1;
    }
    out.decode = begin.elapsed().saturating_sub(out.first_token);
    Ok(out)
}

/// Takes `token` into sequence `row`; whether the sequence goes on.
fn accept(
    out: &mut Generation,
    row: usize,
    token: u32,
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(usize, u32) -> Flow,
) -> bool {
    if options.stop_tokens.contains(&token) {
        out.finish[row] = Finish::StopToken;
        return false;
    }
    out.tokens[row].push(token);
    if on_token(row, token) == Flow::Stop {
        out.finish[row] = Finish::Stopped;
        return false;
    }
    out.tokens[row].len() < options.max_tokens
}

/// Reads all prompts into `state`, about `chunk` tokens a pass; logits of each prompt's last position, (n, V).
///
/// # Errors
/// If an id is outside the vocabulary.
pub fn prefill(
    model: &LanguageModel,
    prompts: &[Vec<u32>],
    chunk: usize,
    state: &mut ModelState,
) -> Result<Tensor> {
    let share = chunk.div_ceil(prompts.len().max(1));
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let mut last: Vec<Option<Tensor>> = vec![None; prompts.len()];
    for start in (0..longest).step_by(share) {
        let pieces: Vec<&[u32]> =
            prompts.iter().map(|p| &p[start.min(p.len())..(start + share).min(p.len())]).collect();
        let mut cu_seqlens = vec![0];
        for piece in &pieces {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + piece.len());
        }
        let ids = pieces.concat();
        let ids = Tensor::from_vec(ids.clone(), (1, ids.len()), &Device::Cpu)?;
        let packed = (prompts.len() > 1).then_some(&cu_seqlens[..]);
        let hidden = model.hidden(&ids, Some(state), packed)?.squeeze(0)?; // (total, d)
        for (row, prompt) in prompts.iter().enumerate() {
            if (start + 1..=start + share).contains(&prompt.len()) {
                last[row] = Some(hidden.narrow(0, cu_seqlens[row + 1] - 1, 1)?);
            }
        }
    }
    let last: Vec<Tensor> = last.into_iter().flatten().collect();
    model.logits(&Tensor::cat(&last, 0)?)
}
