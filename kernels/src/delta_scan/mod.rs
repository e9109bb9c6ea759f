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

mod args;
mod backward;
mod cpu;
pub mod naive;
mod step;
mod views;

pub use args::{DeltaScan, DeltaUpdate, GatedDeltaRule, GatedDeltaRuleUpdate};
use candle_core::{DType, Result, Shape, Tensor, bail};

use crate::host::{self, state_dtype};
use crate::simd::Real;
use crate::{check, tape};

/// The scan over whole sequences: outputs (b, l, h, p) in `v`'s dtype, and the states after the last tokens,
/// (b or n_seq, h, n, p) in f32 (f64 for f64 data). Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn delta_scan(args: &DeltaScan) -> Result<(Tensor, Tensor)> {
    scan(&args.op())
}

/// The (gated) delta rule over whole sequences: outputs and states as [`delta_scan`] gives them.
///
/// # Errors
/// As for [`delta_scan`].
pub fn gated_delta_rule(args: &GatedDeltaRule) -> Result<(Tensor, Tensor)> {
    scan(&args.op())
}

fn scan(op: &args::Op) -> Result<(Tensor, Tensor)> {
    check::on_cpu(op.name, op.q.device())?;
    let (name, scale, dims, data) = (op.name, op.scale, op.check()?, op.v.dtype());
    let inputs = views::prepare(op, 2, state_dtype(data))?;
    let node = Scan { name, scale, dims };
    let (y, state) = match state_dtype(data) {
        DType::F64 => node.forward::<f64>(&inputs),
        _ => node.forward::<f32>(&inputs),
    }?;
    Ok((y.to_dtype(data)?, state))
}

/// The node of the autograd graph.
struct Scan {
    name: &'static str,
    scale: f64,
    dims: args::Dims,
}

impl Scan {
    fn forward<T: Real>(self, inputs: &[Option<Tensor>]) -> Result<(Tensor, Tensor)> {
        let dims = &self.dims;
        let (y, state) = views::with_views(inputs, 2, self.scale, |v| cpu::forward::<T>(v, dims))?;
        let outputs = vec![
            (host::storage(y), Shape::from((dims.b, dims.l, dims.h, dims.p))),
            (host::storage(state), Shape::from((dims.segments.len(), dims.h, dims.n, dims.p))),
        ];
        let name = self.name;
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        match <[Tensor; 2]>::try_from(tape::record(self, &inputs, outputs)?) {
            Ok([y, state]) => Ok((y, state)),
            Err(_) => bail!("{name}: expected two outputs"),
        }
    }
}

impl tape::Backward for Scan {
    fn name(&self) -> &'static str {
        self.name
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
