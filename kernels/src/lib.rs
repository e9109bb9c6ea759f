//! Sequence kernels: the scans, convolutions, attention and dense maps that semisep's layers are made of.
//!
//! Each op is a folder with the same files: `mod.rs` (what it computes, shapes, checks, dispatch, backward), `naive.rs`
//! (the definition in plain tensor operations, differentiated by autograd: the oracle), `cpu.rs` (fast, threaded,
//! vectorised) and, where it has a CUDA path, `cuda.rs` with its `.cu` source.
//!
//! All ops are differentiable in every floating-point input and in their states, take an optional initial state, return
//! the final one, accept packed sequences, and keep states and accumulators in f32 (f64 for f64 data) whatever the
//! data's dtype.
//!
//! Letters: b batch, l length, d channels, e inner width, h heads, p head dimension, n state, g groups, k taps.

pub mod attention;
mod bspline;
pub mod causal_conv1d;
mod check;
mod complex;
pub mod cuda;
pub mod decay_scan;
pub mod delta_scan;
pub mod diagonal_scan;
pub mod dplr_kernel;
mod gate;
mod host;
mod inplace;
mod linear;
pub mod long_conv;
pub mod machine;
pub mod max_plus;
mod memory;
pub mod mimo_scan;
pub mod modal_scan;
mod norm;
mod parts;
mod phase;
pub mod rg_lru;
pub mod rnn;
mod rotary;
mod segments;
pub mod selective_scan;
mod simd;
pub mod ssd;
mod tape;
mod team;
mod tile;
pub mod token_shift;
pub mod wkv4;

pub use attention::cope::{Cope, cope_attention};
pub use attention::{Attention, Weighting, WindowMode, attention};
pub use bspline::bspline_basis;
pub use causal_conv1d::{
    CausalConv1d, CausalConv1dGrads, causal_conv1d, causal_conv1d_backward, causal_conv1d_update,
};
pub use complex::Complex;
pub use decay_scan::{DecayScan, DecayStateUpdate, decay_scan, decay_state_update};
pub use delta_scan::{
    DeltaScan, DeltaUpdate, GatedDeltaRule, GatedDeltaRuleUpdate, delta_scan, delta_update, gated_delta_rule,
    gated_delta_rule_update,
};
pub use diagonal_scan::{DiagonalScan, diagonal_scan, diagonal_state_update};
pub use dplr_kernel::{DplrKernel, dplr_kernel};
pub use gate::{Activation, activation, gated_activation};
pub use host::{set_threads, state_dtype};
pub use linear::{Activations, BlockFormat, InPlace, Matrix, Memory, Quantised, Run, linear};
pub use long_conv::{ConvMethod, LongConv, long_conv};
pub use max_plus::{MaxPlusScan, Stabilized, max_plus_scan};
pub use memory::{keep_freed_memory, return_freed_memory, use_huge_pages};
pub use mimo_scan::{MimoScan, mimo_scan};
pub use modal_scan::{ModalScan, ModalSystem, modal_filter, modal_scan, modal_update};
pub use norm::{gated_rms_norm, group_norm, layer_norm, rms_norm};
pub use phase::{phase_scan, turn_by_phase};
pub use rg_lru::{RgLru, RgLruUpdate, rg_lru, rg_lru_update};
pub use rnn::{Cell, Recurrence, recurrence};
pub use rotary::{RotaryLayout, rotary};
pub use selective_scan::{SelectiveScan, SelectiveStateUpdate, selective_scan, selective_state_update};
pub use ssd::{
    ScalarDecayScan, ScalarDecayStateUpdate, SsdChunkScan, SsdStateUpdate, scalar_decay_scan,
    scalar_decay_state_update, ssd_chunk_scan, ssd_state_update,
};
pub use token_shift::{TokenShift, token_shift};
pub use wkv4::{Wkv4, Wkv4Update, wkv4, wkv4_state, wkv4_update};

/// The definitions of the ops in plain tensor operations, differentiated by autograd: slow, and the oracle of the tests.
pub mod naive {
    pub use crate::bspline::naive::bspline_basis;
    pub use crate::gate::naive::{activation, gated_activation};
    pub use crate::linear::naive::linear;
    pub use crate::norm::naive::{gated_rms_norm, group_norm, layer_norm, rms_norm};
    pub use crate::phase::naive::{phase_scan, turn_by_phase};
}
