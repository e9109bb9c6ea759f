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
mod backward;
mod cpu;
pub mod naive;
mod step;
mod views;

pub use args::{DecayScan, DecayStateUpdate};
use candle_core::{DType, Result, Shape, Tensor, bail};

use crate::host::{self, state_dtype};
use crate::simd::Real;
use crate::{check, inplace, tape};

const OP: &str = "decay_scan";
const STEP: &str = "decay_state_update";

/// The scan over whole sequences: outputs (b, l, h, p) in `v`'s dtype, and the states after the last tokens,
/// (b or n_seq, h, n, p) in f32 (f64 for f64 data). Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn decay_scan(args: &DecayScan) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.v.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.v.dtype());
    let inputs = views::prepare(args, work)?;
    let (y, state) = match work {
        DType::F64 => Scan { dims }.forward::<f64>(&inputs),
        _ => Scan { dims }.forward::<f32>(&inputs),
    }?;
    Ok((y.to_dtype(args.v.dtype())?, state))
}

/// The node of the autograd graph.
struct Scan {
    dims: args::Dims,
}

impl Scan {
    fn forward<T: Real>(self, inputs: &[Option<Tensor>]) -> Result<(Tensor, Tensor)> {
        let dims = &self.dims;
        let (y, state) = views::with_views(inputs, 2, |v| cpu::forward::<T>(v, dims))?;
        let outputs = vec![
            (host::storage(y), Shape::from((dims.b, dims.l, dims.h, dims.p))),
            (host::storage(state), Shape::from((dims.segments.len(), dims.h, dims.n, dims.p))),
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
