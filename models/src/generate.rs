//! How to generate, and what came out; [`Session`] does it.

use std::time::Duration;

use candle_core::Result;

use crate::language_model::LanguageModel;
use crate::sampler::SamplerOptions;
use crate::session::Session;

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

/// Continues each prompt: a [`Session`] that is not kept.
///
/// # Errors
/// If a prompt is empty or holds an id outside the vocabulary.
pub fn generate(
    model: &LanguageModel,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(usize, u32) -> Flow,
) -> Result<Generation> {
    Session::new(model, prompts)?.generate(model, options, on_token)
}
