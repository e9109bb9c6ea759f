//! Sequences and what a model remembers of them: a long text is read once, kept, copied, and gone on from.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::generate::{Finish, Flow, GenerateOptions, Generation};
use crate::language_model::LanguageModel;
use crate::model_state::ModelState;
use crate::sampler::Sampler;

/// Sequences of tokens beside the state of the model that has read them.
///
/// The last token of a sequence is always unread, so that there is something to continue from. Sequences may differ in
/// length: they are packed, not padded, so none sees another.
#[derive(Debug, Clone)]
pub struct Session {
    state: ModelState,
    tokens: Vec<Vec<u32>>,
    /// Tokens of each sequence that the state has read.
    read: Vec<usize>,
    /// A sequence that ended before others of its batch: its state has gone on without it.
    ended: Option<usize>,
}

impl Session {
    /// Begins with these tokens, all unread.
    ///
    /// # Errors
    /// If a sequence is empty, or memory cannot be had.
    pub fn new(model: &LanguageModel, tokens: &[Vec<u32>]) -> Result<Self> {
        if let Some(row) = tokens.iter().position(Vec::is_empty) {
            bail!("prompt {row} is empty: give at least one token, such as the tokenizer's start token");
        }
        let state = model.new_state(tokens.len())?;
        Ok(Self { state, tokens: tokens.to_vec(), read: vec![0; tokens.len()], ended: None })
    }

    /// Goes on from a state that has read all but the last of these tokens.
    ///
    /// # Errors
    /// If a sequence is empty, or its length is not one more than the state has seen.
    pub fn resume(state: ModelState, tokens: Vec<Vec<u32>>) -> Result<Self> {
        let read: Vec<usize> = tokens.iter().map(|row| row.len().saturating_sub(1)).collect();
        if tokens.iter().any(Vec::is_empty) || state.states().iter().any(|s| s.seen() != read) {
            let seen = state.states().first().map_or(&[][..], |s| s.seen());
            bail!("the state has seen {seen:?} tokens, expected all but the last of {:?}", lengths(&tokens));
        }
        Ok(Self { state, tokens, read, ended: None })
    }

    /// The tokens of each sequence: what was given and what was generated, stop tokens included.
    pub fn tokens(&self) -> &[Vec<u32>] {
        &self.tokens
    }

    /// The state, and how many tokens of each sequence it has read.
    ///
    /// # Errors
    /// If a sequence ended before others of its batch, see [`Session::generate`].
    pub fn state(&self) -> Result<(&ModelState, &[usize])> {
        self.whole()?;
        Ok((&self.state, &self.read))
    }

    /// Adds tokens to each sequence, unread; there may be none.
    ///
    /// # Errors
    /// If there are not as many sequences as here, or as for [`Session::state`].
    pub fn extend(&mut self, tokens: &[Vec<u32>]) -> Result<()> {
        self.whole()?;
        if tokens.len() != self.tokens.len() {
            bail!("expected a continuation of {} sequences, found {}", self.tokens.len(), tokens.len());
        }
        for (row, new) in self.tokens.iter_mut().zip(tokens) {
            row.extend(new);
        }
        Ok(())
    }

    /// A copy that nothing done to this one touches.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn fork(&self) -> Result<Self> {
        Ok(Self { state: self.state.fork()?, ..self.clone() })
    }

    /// Forgets all but the first `len` tokens of each sequence.
    ///
    /// # Errors
    /// If `len` is 0, or the state holds a recurrent part and has read more: fork before going on from it.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len == 0 {
            bail!("cannot truncate to 0 tokens: begin a new session");
        }
        if self.read.iter().any(|&read| read >= len) {
            self.state.truncate(len - 1)?;
        }
        for (tokens, read) in self.tokens.iter_mut().zip(&mut self.read) {
            tokens.truncate(len);
            *read = (*read).min(len - 1);
        }
        Ok(())
    }

    /// Reads all but the last token of each sequence, about `chunk` tokens a pass.
    ///
    /// # Errors
    /// If an id is outside the vocabulary, or as for [`Session::state`].
    pub fn read(&mut self, model: &LanguageModel, chunk: usize) -> Result<()> {
        self.feed(model, chunk, 1).map(drop)
    }

    /// Continues each sequence; `on_token(row, token)` is called as tokens come. Draws depend on the seed and the row.
    ///
    /// While one sequence of a batch goes on, those that have ended take tokens that nobody asked for into their state:
    /// from then on the session can only be looked at. Sessions of one sequence, or whose sequences end together, go on.
    ///
    /// # Errors
    /// If an id is outside the vocabulary, or as for [`Session::state`].
    pub fn generate(
        &mut self,
        model: &LanguageModel,
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(usize, u32) -> Flow,
    ) -> Result<Generation> {
        self.whole()?;
        let begin = Instant::now();
        let rows = self.tokens.len();
        let mut out = Generation::new(rows, self.unread());
        if rows == 0 || options.max_tokens == 0 {
            self.read(model, options.prefill_chunk)?;
            out.first_token = begin.elapsed();
            return Ok(out);
        }
        let vocab = model.config().vocab_size;
        let samplers = self.tokens.iter().enumerate();
        let mut samplers: Vec<Sampler> =
            samplers.map(|(i, tokens)| Sampler::new(&options.sampler, i, vocab, tokens)).collect();
        let last = self.feed(model, options.prefill_chunk, 0)?;
        let mut logits = model.logits(&Tensor::cat(&last, 0)?)?;
        let mut running = vec![true; rows];
        loop {
            let before = running.clone();
            let choices = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            let mut next = vec![0; rows];
            for row in (0..rows).filter(|&row| before[row]) {
                next[row] = samplers[row].sample(&choices[row]);
                self.tokens[row].push(next[row]);
                running[row] = out.accept(row, next[row], options, on_token);
            }
            if out.steps == 0 {
                out.first_token = begin.elapsed();
            }
            self.ended = self.ended.or(before.iter().position(|&goes_on| !goes_on));
            if !running.contains(&true) {
                break;
            }
            logits = model.step(&next, &mut self.state)?;
            self.read.iter_mut().for_each(|read| *read += 1);
            out.steps += 1;
        }
        out.decode = begin.elapsed().saturating_sub(out.first_token);
        Ok(out)
    }

    /// Reads all but the last `leave` tokens of each sequence; the last hidden state of each, (1, d), if it read any.
    fn feed(&mut self, model: &LanguageModel, chunk: usize, leave: usize) -> Result<Vec<Tensor>> {
        self.whole()?;
        let share = chunk.max(1).div_ceil(self.tokens.len().max(1));
        let mut last: Vec<Option<Tensor>> = vec![None; self.tokens.len()];
        loop {
            let tokens = self.tokens.iter().zip(&self.read);
            let pieces: Vec<&[u32]> = tokens
                .map(|(row, &read)| &row[read..(read + share).min(row.len() - leave).max(read)])
                .collect();
            let ends = pieces.iter().scan(0, |end, piece| {
                *end += piece.len();
                Some(*end)
            });
            let cu_seqlens: Vec<usize> = [0].into_iter().chain(ends).collect();
            let ids = pieces.concat();
            if ids.is_empty() {
                return Ok(last.into_iter().flatten().collect());
            }
            let ids = Tensor::from_vec(ids.clone(), (1, ids.len()), &Device::Cpu)?;
            let packed = (pieces.len() > 1).then_some(&cu_seqlens[..]);
            let hidden = model.hidden(&ids, Some(&mut self.state), packed)?.squeeze(0)?; // (total, d)
            for (row, ends) in cu_seqlens.windows(2).enumerate().filter(|(_, ends)| ends[1] > ends[0]) {
                last[row] = Some(hidden.narrow(0, ends[1] - 1, 1)?);
                self.read[row] += ends[1] - ends[0];
            }
        }
    }

    fn unread(&self) -> usize {
        self.tokens.iter().zip(&self.read).map(|(tokens, read)| tokens.len() - read).sum()
    }

    fn whole(&self) -> Result<()> {
        match self.ended {
            Some(row) => bail!(
                "sequence {row} ended before others of its batch and cannot be gone on from: run sequences one by one"
            ),
            None => Ok(()),
        }
    }
}

impl Generation {
    fn new(rows: usize, prompt_tokens: usize) -> Self {
        Self {
            tokens: vec![Vec::new(); rows],
            finish: vec![Finish::Length; rows],
            prompt_tokens,
            first_token: std::time::Duration::ZERO,
            decode: std::time::Duration::ZERO,
            steps: 0,
        }
    }

    /// Takes `token` into sequence `row`; whether the sequence goes on.
    fn accept(
        &mut self,
        row: usize,
        token: u32,
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(usize, u32) -> Flow,
    ) -> bool {
        if options.stop_tokens.contains(&token) {
            self.finish[row] = Finish::StopToken;
            return false;
        }
        self.tokens[row].push(token);
        if on_token(row, token) == Flow::Stop {
            self.finish[row] = Finish::Stopped;
            return false;
        }
        self.tokens[row].len() < options.max_tokens
    }
}

fn lengths(tokens: &[Vec<u32>]) -> Vec<usize> {
    tokens.iter().map(Vec::len).collect()
}
