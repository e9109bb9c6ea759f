//! Blueprints, language models and generation.

pub mod generate;
mod language_model;
pub mod normal;
pub mod sampler;
mod stack;

pub use language_model::{LanguageModel, ModelState};
pub use stack::Stack;
