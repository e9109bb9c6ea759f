//! Delta rules: linear recurrences whose state is read and corrected by each token.
//!
//! ```text
//! S_t = diag(exp g_t) S_{t-1} + b_t (a_tᵀ S_{t-1}) + k_t v_tᵀ           (h, n, p)     delta_scan
//! S_t = exp(g_t) S_{t-1} + k_t (β_t (v_t - k_tᵀ exp(g_t) S_{t-1}))      (h, n, p)     gated_delta_rule
//! y_t = scale · q_tᵀ S_t                                                (h, p)
//! ```
//! The first, diagonal plus low rank, is RWKV-7's recurrence (Peng et al. 2025, eq. 16; its kernels keep the transposed
//! state); the second, the case `a = -β exp(g) k`, `b = k` with `β v` for `v`, is DeltaNet (Schlag et al. 2021; Yang et
//! al. 2024) without decay, gated DeltaNet (Yang et al. 2025) with a decay a head, and Kimi delta attention with one a
//! key channel. As a matrix mixer: `Y = M V` with `M[t,s] = q_tᵀ (Π_{s<r≤t} (diag(exp g_r) + b_r a_rᵀ)) k_s`.

#[allow(dead_code, reason = "for the chunked path")]
mod args;
pub mod naive;
mod step;
#[allow(dead_code, reason = "for the chunked path")]
mod views;

pub use args::{DeltaScan, DeltaUpdate, GatedDeltaRule, GatedDeltaRuleUpdate};
use candle_core::{Result, Tensor};

use crate::check;

/// The scan over whole sequences: outputs (b, l, h, p) in `v`'s dtype, and the states after the last tokens,
/// (b or n_seq, h, n, p) in f32 (f64 for f64 data). Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn delta_scan(args: &DeltaScan) -> Result<(Tensor, Tensor)> {
    check::on_cpu("delta_scan", args.q.device())?;
    naive::delta_scan(args)
}

/// The (gated) delta rule over whole sequences: outputs and states as [`delta_scan`] gives them.
///
/// # Errors
/// As for [`delta_scan`].
pub fn gated_delta_rule(args: &GatedDeltaRule) -> Result<(Tensor, Tensor)> {
    check::on_cpu("gated_delta_rule", args.q.device())?;
    naive::gated_delta_rule(args)
}

/// One token of [`delta_scan`]: `state` (b, h, n, p) is advanced **in place**, and the output (b, h, p) returned in `v`'s
/// dtype. Every tensor that shares `state`'s storage sees the change. Not differentiable: the graph ends here.
///
/// # Errors
/// If a shape does not fit, or `state` is not a contiguous f32 (f64 for f64 data) tensor on the CPU.
pub fn delta_update(state: &Tensor, args: &DeltaUpdate) -> Result<Tensor> {
    step::update(state, &args.op())
}

/// One token of [`gated_delta_rule`], as [`delta_update`].
///
/// # Errors
/// As for [`delta_update`].
pub fn gated_delta_rule_update(state: &Tensor, args: &GatedDeltaRuleUpdate) -> Result<Tensor> {
    step::update(state, &args.op())
}
