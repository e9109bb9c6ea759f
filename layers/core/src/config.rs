//! What a blueprint says of a mixer, checked before any weight exists.

use std::fmt::Debug;

use candle_core::Result;

use crate::banks::Banks;
use crate::{Mixer, Nested, VarBuilder};

/// Largest width, count or length that a configuration may name: sizes are bounded before anything is allocated.
pub const MAX_WIDTH: usize = 1 << 24;

/// One problem in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// The configuration key at fault, as the user wrote it: the blueprint reader finds its line by it.
    pub key: String,
    /// What was expected and what was found.
    pub message: String,
    /// One thing to try.
    pub help: Option<String>,
}

impl Issue {
    /// An issue without advice.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into(), help: None }
    }

    /// Adds one thing to try.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// The configuration of one kind of mixer: what stands in `[blocks.NAME]` beside `mixer = "KIND"`.
///
/// Implementors also derive `Deserialize` (with `deny_unknown_fields`), `Serialize` and `JsonSchema`; the registry of
/// `semisep-models` asks for them.
pub trait MixerConfig: Debug + Send + Sync {
    /// The name under which the mixer is registered.
    fn kind(&self) -> &'static str;

    /// Everything wrong with this configuration at this width; empty if it can be built.
    fn check(&self, d_model: usize) -> Vec<Issue>;

    /// Builds the layer with the parameters of `vb`. Call [`MixerConfig::check`] first.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>>;

    /// Builds it with several outputs a token: forward gives (b, l, banks, d), step (b, banks, d). Layers that take their
    /// summaries of the past from any mixer (the Block-State Transformer) ask for it.
    ///
    /// By default the banks are independent copies. A state-space layer overrides this with one state that all banks
    /// read, each through a readout of its own.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    fn build_banks(&self, d_model: usize, banks: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Banks::new(self, d_model, banks, &vb)?))
    }

    /// The mixers inside this configuration by their keys, to be filled in by the reader. [`MixerConfig::check`] checks
    /// them, too ([`Nested::check`]).
    fn nested(&mut self) -> Vec<(&'static str, &mut Nested)> {
        Vec::new()
    }

    /// What is wrong with it in a stack where no earlier layer hands on what it receives under this name
    /// ([`Mixer::receives`]), at the key that asks for it; `None` leaves the words to the stack.
    fn unreceived(&self, _name: &str) -> Option<Issue> {
        None
    }

    /// The configuration as JSON, for blueprints written from checkpoints and for state files' hashes.
    fn to_json(&self) -> serde_json::Value;
}

/// An issue if `value` lies outside `[min, MAX_WIDTH]`.
pub fn in_range(key: &str, value: usize, min: usize) -> Option<Issue> {
    (!(min..=MAX_WIDTH).contains(&value))
        .then(|| Issue::new(key, format!("expected {min} to {MAX_WIDTH}, found {value}")))
}

/// An issue at `key` if `part` does not divide `whole` (called `what`). Zero divides nothing.
pub fn divides(key: &str, part: usize, what: &str, whole: usize) -> Option<Issue> {
    if part != 0 && whole.is_multiple_of(part) {
        return None;
    }
    let nearest = (1..=part.min(whole)).rev().find(|&d| whole.is_multiple_of(d));
    let issue = Issue::new(key, format!("{part} does not divide {what} = {whole}"));
    Some(match nearest {
        Some(d) => issue.help(format!("the next smaller divisor is {d}")),
        None => issue,
    })
}
