//! The scan with a decay a key channel: gated linear attention, RWKV-5 and RWKV-6.
//!
//! ```text
//! S_t = diag(exp g_t) S_{t-1} + k_t v_tᵀ                  (h, n, p)  state; g = log_decay ≤ 0
//! y_t = q_tᵀ S_t                                          (h, p)     without a bonus
//! y_t = q_tᵀ (S_{t-1} + diag(u) k_t v_tᵀ)                 (h, p)     with a bonus u: RWKV
//! ```
//! As a matrix mixer, head by head: `Y = M V`, `M[t,s] = Σ_n q_t[n] k_s[n] exp(Σ_{s<r≤t} g_r[n])` for `s ≤ t`; with a
//! bonus the sum runs over `s < r < t`, and `M[t,t] = Σ_n q_t[n] u[n] k_t[n]`. Scaling of queries is the caller's.
//! Sources: Yang et al. 2023, "Gated Linear Attention Transformers with Hardware-Efficient Training", section 4; Peng et
//! al. 2024, "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", section 4.

mod args;
pub mod naive;
mod step;
#[expect(dead_code, reason = "the scan runs by its definition as yet")]
mod views;

pub use args::{DecayScan, DecayStateUpdate};
use candle_core::{Result, Tensor};

use crate::host::state_dtype;
use crate::{check, inplace};

const OP: &str = "decay_scan";
const STEP: &str = "decay_state_update";

/// The scan over whole sequences: outputs (b, l, h, p) in `v`'s dtype, and the states after the last tokens,
/// (b or n_seq, h, n, p) in f32 (f64 for f64 data). Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn decay_scan(args: &DecayScan) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.v.device())?;
    naive::decay_scan(args)
}

/// One token: `state` (b, h, n, p) is advanced **in place**, and the output (b, h, p) returned in `v`'s dtype.
/// Every tensor that shares `state`'s storage sees the change. Not differentiable: the graph ends here.
///
/// # Errors
/// If a shape does not fit, or `state` is not a contiguous f32 (f64 for f64 data) tensor on the CPU.
pub fn decay_state_update(state: &Tensor, args: &DecayStateUpdate) -> Result<Tensor> {
    check::on_cpu(STEP, state.device())?;
    let dims = args.check(state)?;
    let (b, h, p) = (dims.b, dims.h, dims.p);
    let inputs = views::prepare_step(args, state_dtype(args.v.dtype()))?;
    inplace::update(state, step::Step { dims, inputs }, args.v.dtype(), (b, h, p))
}
