//! Linear attention, plain and gated: layers whose state is a sum of `v kᵀ`, decayed by nothing or by a gate.
//!
//! | mixer | state | source |
//! |---|---|---|
//! | [`gated`]: `mixer = "gla"` | `S_t = diag(α_t) S_{t-1} + k_t v_tᵀ`, a gate a key feature | Yang et al. 2023 |
//! | [`linear`]: `mixer = "linear_attention"` | `S_t = S_{t-1} + φ(k_t) v_tᵀ` | Katharopoulos et al. 2020 |

pub mod gated;
pub mod linear;

pub use gated::{Gla, GlaConfig};
pub use linear::{FeatureMap, LinearAttention, LinearAttentionConfig, OutputNorm};
