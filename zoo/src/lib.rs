//! The zoo: checkpoints of many families and formats as models, and the `semisep` command.

pub mod bench;
pub mod catalogue;
pub mod checkpoint;
pub mod cli;
mod error;
pub mod eval;
pub mod export;
pub mod files;
pub mod hub;
pub mod import;
pub mod inspect;
pub mod load;
pub mod state_file;
pub mod text;
pub mod tokenizer;
pub mod units;
pub mod verify;

pub use error::{Error, Result};
