//! Blueprints, language models and generation.

pub mod blueprint;
pub mod blueprints;
mod describe;
pub mod generate;
mod language_model;
mod links;
mod model_state;
pub mod normal;
mod rank;
mod registry;
pub mod sampler;
mod session;
mod stack;

pub use blueprint::Blueprint;
pub use describe::{Description, LayerRow, Totals, WeightRow, Weights, describe, weights_by_type};
pub use language_model::LanguageModel;
pub use model_state::ModelState;
pub use rank::{OffDiagonal, off_diagonal_rank, rank};
pub use registry::{Registry, RegistryError};
pub use session::Session;
pub use stack::{DistilledLayer, Stack};
