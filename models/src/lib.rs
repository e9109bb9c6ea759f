//! Blueprints, language models and generation.

pub mod normal;
