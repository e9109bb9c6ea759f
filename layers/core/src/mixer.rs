//! The one contract of everything that maps (b, l, d) to (b, l, d).

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};

use crate::{Cost, ParameterGroup, State};

/// What layers hand to later ones within one pass over a stack: (b, l, ·), or (b, ·) in a step. RWKV-7's value residual
/// and layers that read the embedding again live on it.
#[derive(Debug, Default, Clone)]
pub struct Shared(BTreeMap<&'static str, Tensor>);

impl Shared {
    /// Under this name every layer of a stack finds the residual stream as it entered the stack.
    pub const EMBEDDING: &'static str = "embedding";

    /// What an earlier layer left under this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// Everything in it.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = (&'static str, Tensor)> {
        self.0.into_iter()
    }

    /// Leaves a tensor for later layers.
    pub fn set(&mut self, name: &'static str, tensor: Tensor) {
        self.0.insert(name, tensor);
    }
}

/// What a forward pass may know besides its input.
#[derive(Debug, Default)]
pub struct Context<'a> {
    /// Where to start from and what to leave behind; `None` starts from zero and leaves nothing.
    pub state: Option<&'a mut State>,
    /// Boundaries of the sequences packed into a batch of one: `[0, l_0, l_0 + l_1, ..., l]`. States then have one row
    /// a sequence, and reset at the boundaries.
    pub cu_seqlens: Option<&'a [usize]>,
    /// What earlier layers left, and where this one leaves something; `None` for a layer that stands alone.
    pub shared: Option<&'a mut Shared>,
}

impl<'a> Context<'a> {
    /// Continues from `state`.
    pub fn with_state(state: &'a mut State) -> Self {
        Self { state: Some(state), ..Self::default() }
    }

    /// Sequences packed into one row.
    pub fn packed(cu_seqlens: &'a [usize]) -> Self {
        Self { cu_seqlens: Some(cu_seqlens), ..Self::default() }
    }

    /// The state of a step.
    ///
    /// # Errors
    /// If there is none: a step continues from somewhere.
    pub fn state_mut(&mut self) -> Result<&mut State> {
        match self.state.as_deref_mut() {
            Some(state) => Ok(state),
            None => bail!("a step needs a state: make one with `new_state`"),
        }
    }

    /// What an earlier layer of this pass left under this name.
    ///
    /// # Errors
    /// If no layer did.
    pub fn received(&self, name: &str) -> Result<Tensor> {
        match self.shared.as_ref().and_then(|s| s.get(name)) {
            Some(tensor) => Ok(tensor.clone()),
            None => bail!("no earlier layer leaves `{name}`: put one that does before this one"),
        }
    }

    /// Leaves a tensor for later layers of this pass.
    pub fn hand_on(&mut self, name: &'static str, tensor: &Tensor) {
        if let Some(shared) = self.shared.as_deref_mut() {
            shared.set(name, tensor.clone());
        }
    }

    /// The entry `name` of the state to start from, if there is a state.
    ///
    /// # Errors
    /// If the state has no such entry.
    pub fn initial(&self, name: &str) -> Result<Option<Tensor>> {
        self.state.as_ref().map(|s| s.get(name).cloned()).transpose()
    }

    /// Refuses a state of another layer kind or batch size; gives the lengths as [`Context::lengths`] does.
    ///
    /// # Errors
    /// If the state is not for this layer and batch.
    pub fn check(&self, layer: &str, b: usize, l: usize) -> Result<Vec<usize>> {
        let lengths = self.lengths(b, l);
        if let Some(state) = &self.state {
            state.check(layer, lengths.len())?;
        }
        Ok(lengths)
    }

    /// Leaves the new recurrent entries and counts the tokens, if there is a state.
    ///
    /// # Errors
    /// If the state has no such entry.
    pub fn leave(&mut self, entries: &[(&str, Tensor)], lengths: &[usize]) -> Result<()> {
        if let Some(state) = self.state.as_deref_mut() {
            for (name, tensor) in entries {
                state.set(name, tensor.clone())?;
            }
            state.advance(lengths);
        }
        Ok(())
    }

    /// How many tokens each state row receives from an input of `b` rows and `l` tokens.
    pub fn lengths(&self, b: usize, l: usize) -> Vec<usize> {
        match self.cu_seqlens {
            Some(cu) => cu.windows(2).map(|w| w[1] - w[0]).collect(),
            None => vec![l; b],
        }
    }
}

/// The linear map that a layer applied to one input, materialised.
#[derive(Debug, Clone)]
pub struct Mixing {
    /// (b, h, l, l), lower triangular for causal layers.
    pub matrix: Tensor,
    /// What the matrix multiplies: (b, h, l, p).
    pub values: Tensor,
    /// What the layer's own kernel made of the values, before gates, norms and the output projection: (b, h, l, p).
    /// Equals `matrix · values`.
    pub output: Tensor,
}

/// A layer that stands in for another, and how near it comes: see [`Mixer::distilled`].
pub struct Distilled {
    /// The layer.
    pub mixer: Box<dyn Mixer>,
    /// What is approximated, over all its channels: RMS of the difference over RMS of the original.
    pub error: f64,
    /// The same of the channel where it is largest.
    pub worst: f64,
}

/// A sequence mixer (or a channel mixer, which mixes nothing along the sequence).
///
/// The guarantees that the conformance suite proves for each implementation: forward equals step by step; prefilling
/// in any split of chunks gives the same outputs and final state; packed sequences equal separate ones; rows of a batch
/// do not touch each other; causal layers do not look ahead; the gradient of every parameter, input and state is exact.
pub trait Mixer: Send + Sync {
    /// The parallel form, for training and prefill: (b, l, d) -> (b, l, d).
    ///
    /// # Errors
    /// If shapes disagree, or the state belongs to another layer or batch size; the state is then unchanged.
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor>;

    /// One token a row, constant work for recurrent layers, the context's state updated in place: (b, d) -> (b, d).
    ///
    /// # Errors
    /// As for [`Mixer::forward`], and if the context has no state.
    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor>;

    /// Whether no output depends on a later input. A layer that looks both ways has nothing to step from: it takes no
    /// state, and [`Mixer::step`] is an error.
    fn causal(&self) -> bool {
        true
    }

    /// What it needs from earlier layers through [`Context::shared`]: names and widths.
    fn receives(&self) -> Vec<(&'static str, usize)> {
        Vec::new()
    }

    /// What it leaves for later layers there ([`Context::hand_on`]): names and widths. Whoever puts layers in a row knows
    /// by it, before any of them runs, whether each finds what it receives.
    fn hands_on(&self) -> Vec<(&'static str, usize)> {
        Vec::new()
    }

    /// A layer of constant work and state a token in place of this one, for inference, by `modes` modes a channel: where a
    /// step of this one goes over all that it has seen, and such a form exists (Hyena). An approximation; `None` where
    /// there is nothing to gain.
    ///
    /// # Errors
    /// If there are no modes, or memory cannot be had.
    fn distilled(&self, _modes: usize) -> Result<Option<Distilled>> {
        Ok(None)
    }

    /// The state before the first token, for `batch` sequences.
    ///
    /// # Errors
    /// If memory cannot be had.
    fn new_state(&self, batch: usize) -> Result<State>;

    /// What forward costs for `batch` sequences of `seqlen` tokens.
    fn cost(&self, batch: usize, seqlen: usize) -> Cost;

    /// Parameters that one token meets: all, but for those of experts that it does not pass through.
    fn active_parameters(&self) -> u64 {
        self.parameter_groups().iter().map(|group| group.elements() as u64).sum()
    }

    /// Every parameter with its training metadata, in the order in which they were built.
    fn parameter_groups(&self) -> Vec<ParameterGroup>;

    /// The mixing matrix applied to `x` (b, l, d), from a zero state; `None` if the layer mixes nothing along the
    /// sequence. Quadratic in l.
    ///
    /// # Errors
    /// As for [`Mixer::forward`].
    fn matrix(&self, x: &Tensor) -> Result<Option<Mixing>>;
}
