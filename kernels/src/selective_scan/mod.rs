//! Selective scan: the diagonal state-space recurrence whose step size, input and output maps depend on the token.
//!
//! ```text
//! Δ_t = softplus(dt_t + dt_bias)                        (e)     bias and softplus optional
//! h_t = exp(Δ_t A) ⊙ h_{t-1} + (Δ_t x_t) B_tᵀ           (e, n)  state
//! y_t = (h_t C_t + D ⊙ x_t) ⊙ silu(z_t)                 (e)     skip and gate optional
//! ```
//! As a matrix mixer, channel by channel: `Y = M X`, `M[t,s] = C_tᵀ exp(A Σ_{s<r≤t} Δ_r) B_s Δ_s` for `s ≤ t`:
//! n-semiseparable. Source: Gu and Dao 2023, "Mamba", algorithm 2.

mod args;
mod backward;
mod block;
mod cpu;
pub mod naive;
mod step;
mod views;

pub use args::{SelectiveScan, SelectiveStateUpdate};
use candle_core::{DType, Result, Shape, Tensor, bail};

use crate::host::{self, state_dtype};
use crate::simd::Real;
use crate::{check, inplace, tape};

const OP: &str = "selective_scan";
const STEP: &str = "selective_state_update";

/// The scan over whole sequences: outputs (b, l, e) in `x`'s dtype, and the states after the last tokens,
/// (b or n_seq, e, n) in f32 (f64 for f64 data). Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn selective_scan(args: &SelectiveScan) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.x.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.x.dtype());
    let inputs = views::prepare(args, work)?;
    let node = Scan { dims, softplus: args.dt_softplus };
    let (y, state) = match work {
        DType::F64 => node.forward::<f64>(&inputs),
        _ => node.forward::<f32>(&inputs),
    }?;
    Ok((y.to_dtype(args.x.dtype())?, state))
}

/// The node of the autograd graph.
struct Scan {
    dims: args::Dims,
    softplus: bool,
}

impl Scan {
    fn forward<T: Real>(self, inputs: &[Option<Tensor>]) -> Result<(Tensor, Tensor)> {
        let dims = &self.dims;
        let (y, state) = views::with_views(inputs, 2, self.softplus, |v| cpu::forward::<T>(v, dims))?;
        let outputs = vec![
            (host::storage(y), Shape::from((dims.b, dims.l, dims.e))),
            (host::storage(state), Shape::from((dims.segments.len(), dims.e, dims.n))),
        ];
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        match <[Tensor; 2]>::try_from(tape::record(self, &inputs, outputs)?) {
            Ok([y, state]) => Ok((y, state)),
            Err(_) => bail!("{OP}: expected two outputs"),
        }
    }
}

impl tape::Backward for Scan {
    fn name(&self) -> &'static str {
        OP
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        output: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        match output.dtype() {
            DType::F64 => backward::gradients::<f64>(self, inputs, grads),
            _ => backward::gradients::<f32>(self, inputs, grads),
        }
    }
}

/// One token: `state` (b, e, n) is advanced **in place**, and the output (b, e) returned in `x`'s dtype.
/// Every tensor that shares `state`'s storage sees the change. Not differentiable: the graph ends here.
///
/// # Errors
/// If a shape does not fit, or `state` is not a contiguous f32 (f64 for f64 data) tensor on the CPU.
pub fn selective_state_update(state: &Tensor, args: &SelectiveStateUpdate) -> Result<Tensor> {
    check::on_cpu(STEP, state.device())?;
    let dims = args.check(state)?;
    let (x, b, e) = (args.x, dims.b, dims.e);
    let inputs = views::prepare_step(args, state_dtype(x.dtype()))?;
    let step = step::Step { dims, softplus: args.dt_softplus, inputs };
    inplace::update(state, step, x.dtype(), (b, e))
}
