//! What every layer of semisep shares: the [`Mixer`] contract, [`State`], [`Cost`], parameters and the small parts
//! (linear maps, norms, rotary positions, the MLP) that layers are made of.
//!
//! Letters in shape comments, everywhere: b batch, l length, d model width, e inner width, h heads, p head dimension,
//! n state, g groups, k convolution taps, r low rank of dt.

mod abacus;
mod banks;
mod blocks;
mod built;
mod config;
mod cost;
mod discretize;
mod entry;
mod heads;
mod init;
mod linear;
mod linear_map;
mod mixer;
mod mixing;
mod mlp;
mod nested;
mod norm;
mod parameters;
mod relative;
mod rotary;
mod short_conv;
mod sources;
mod state;
mod window;

pub use abacus::{AbacusConfig, AbacusEmbedding, abacus_positions};
pub use blocks::{in_blocks, in_blocks_of};
pub use candle_core::Result;
pub use config::{Issue, MAX_WIDTH, MixerConfig, divides, in_range};
pub use cost::Cost;
pub use discretize::Discretization;
pub use entry::StateKind;
pub use heads::{HeadNorm, check_expand, head_width, repeat_heads};
pub use init::{Init, Rng};
pub use linear::{Activation, Linear};
pub use linear_map::LinearMapConfig;
pub use mixer::{Context, Distilled, Mixer, Mixing, Shared};
pub use mixing::{lower_triangle, segment_sums, softplus};
pub use mlp::{Mlp, MlpConfig};
pub use nested::Nested;
pub use norm::{GatedRmsNorm, Norm, NormConfig, NormKind};
pub use parameters::{ParameterGroup, Source, VarBuilder, WeightType};
pub use relative::{RelBiasConfig, RelativeBias, alibi_slopes, alibi_table};
pub use rotary::{Rotary, RotaryConfig, RotaryScaling};
pub use semisep_kernels::{Activations, BlockFormat, Complex, Matrix};
pub use short_conv::{ShortConv, ShortConvs};
pub use sources::{Seeded, Shapes, Variables};
pub use state::State;
pub use window::WindowMode;
