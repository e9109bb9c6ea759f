//! Architectures side by side: prefill and decode speed over lengths, state and key-value bytes, peak memory.

mod machine;
mod measure;
mod memory;
mod report;

use candle_core::DType;
pub use machine::Machine;
pub use measure::measure;
pub use report::table;
use semisep_core::{Activations, BlockFormat};
use semisep_models::WeightRow;
use semisep_models::normal::Architecture;
use serde::Serialize;

/// What to measure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchOptions {
    /// Context lengths, tokens.
    pub lengths: Vec<usize>,
    /// Time given to each figure at the most, seconds; every figure is measured once at least.
    pub seconds: f64,
    /// Sequences at once.
    pub batch: usize,
    /// Seed of random weights and tokens.
    pub seed: u64,
}

/// One architecture to measure.
pub struct Subject {
    /// What the user called it.
    pub name: String,
    /// Its normal form.
    pub architecture: Architecture,
    /// Its weights, or `None` for random ones.
    pub model: Option<semisep_models::LanguageModel>,
    /// Dtype of the weights.
    pub dtype: DType,
    /// Format of matrices, where the weights are random.
    pub quant: Option<BlockFormat>,
    /// What quantised matrices are multiplied by.
    pub activations: Activations,
}

/// Everything measured in one run.
#[derive(Debug, Serialize)]
pub struct BenchReport {
    /// Version of this program.
    pub version: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// What was asked for.
    pub options: BenchOptions,
    /// One entry a subject.
    pub models: Vec<ModelReport>,
}

/// One architecture's figures.
#[derive(Debug, Serialize)]
pub struct ModelReport {
    /// Name.
    pub name: String,
    /// Parameters, shared ones once.
    pub parameters: u64,
    /// Dtype of the weights that are no blocks.
    pub dtype: String,
    /// The weights by what they are held in.
    pub weights: Vec<WeightRow>,
    /// Whether quantised matrices met activations as they are, not rounded to eight bits.
    pub exact_activations: bool,
    /// Whether the weights are random.
    pub random_weights: bool,
    /// What computed: device and instruction set.
    pub backend: String,
    /// One entry a length.
    pub lengths: Vec<LengthReport>,
    /// Highest resident memory of the process while this model was measured; `None` where the system does not say.
    pub peak_bytes: Option<u64>,
}

/// The figures at one length.
#[derive(Debug, Clone, Serialize)]
pub struct LengthReport {
    /// Tokens a sequence.
    pub length: usize,
    /// Tokens read a second, all sequences together (median).
    pub prefill_tokens_per_second: f64,
    /// Share of the machine's matrix-product rate that prefill reached, by the model's own count of operations.
    pub prefill_of_gemm_rate: f64,
    /// Tokens written a second after `length` tokens of context, all sequences together (median).
    pub decode_tokens_per_second: f64,
    /// Bytes of weights and states that a single-token pass reads, over its time and the machine's read bandwidth, measured
    /// just before and after.
    pub decode_of_read_bandwidth: f64,
    /// Bytes of recurrent state.
    pub state_bytes: u64,
    /// Bytes of keys and values.
    pub kv_bytes: u64,
}
