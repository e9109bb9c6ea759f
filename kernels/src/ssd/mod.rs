//! State-space duality: a selective scan with one decay a head, computed in chunks by matrix products.
//!
//! ```text
//! Δ_t = clamp(softplus(dt_t + dt_bias), dt_limit)       (h)        bias, softplus and limits optional
//! H_t = exp(Δ_t A) H_{t-1} + (Δ_t x_t) B_tᵀ             (h, p, n)  state
//! y_t = (H_t C_t + D ⊙ x_t) ⊙ silu(z_t)                 (h, p)     skip and gate optional
//! ```
//! As a matrix mixer, head by head: `Y = M X`, `M[t,s] = (C_tᵀ B_s) exp(A Σ_{s<r≤t} Δ_r) Δ_s` for `s ≤ t`: the product
//! of a linear-attention matrix and a 1-semiseparable decay mask. Source: Dao and Gu 2024, "Transformers are SSMs",
//! sections 3 and 6. With a constant decay it is retention, without decay linear attention.

mod args;
pub mod naive;

pub use args::{SsdChunkScan, SsdStateUpdate};
use candle_core::{Result, Tensor, bail};

use crate::host::state_dtype;

const OP: &str = "ssd_chunk_scan";
const STEP: &str = "ssd_state_update";

/// The scan over whole sequences: outputs (b, l, h, p) in `x`'s dtype, and the states after the last tokens,
/// (b or n_seq, h, p, n) in f32 (f64 for f64 data). Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, the chunk size is 0, or the data
/// is not on the CPU.
pub fn ssd_chunk_scan(args: &SsdChunkScan) -> Result<(Tensor, Tensor)> {
    crate::check::on_cpu(OP, args.x.device())?;
    naive::ssd_chunk_scan(args)
}

/// One token: `state` (b, h, p, n) is advanced **in place**, and the output (b, h, p) returned in `x`'s dtype.
/// Every tensor that shares `state`'s storage sees the change. Not differentiable: the graph ends here.
///
/// # Errors
/// If a shape does not fit, or `state` is not a contiguous f32 (f64 for f64 data) tensor on the CPU.
pub fn ssd_state_update(state: &Tensor, args: &SsdStateUpdate) -> Result<Tensor> {
    crate::check::on_cpu(STEP, state.device())?;
    args.check(state)?;
    if !state.is_contiguous() || state.dtype() != state_dtype(args.x.dtype()) {
        bail!(
            "{STEP}: the state is updated in place and must be contiguous {:?}",
            state_dtype(args.x.dtype())
        );
    }
    let (x, dt) = (args.x.detach().unsqueeze(1)?, args.dt.detach().unsqueeze(1)?);
    let (b, c) = (args.b.detach().unsqueeze(1)?, args.c.detach().unsqueeze(1)?);
    let z = args.z.map(|z| z.detach().unsqueeze(1)).transpose()?;
    let scan = SsdChunkScan {
        d: args.d,
        dt_bias: args.dt_bias,
        z: z.as_ref(),
        dt_softplus: args.dt_softplus,
        dt_limit: args.dt_limit,
        initial_state: Some(state),
        ..SsdChunkScan::new(&x, &dt, args.a, &b, &c, 1)
    };
    let (y, next) = naive::ssd_chunk_scan(&scan)?;
    state.slice_set(&next.detach(), 0, 0)?;
    y.detach().squeeze(1)
}
