//! State-space duality: a selective scan with one decay a head, computed in chunks by matrix products.
//!
//! ```text
//! Δ_t = clamp(softplus(dt_t + dt_bias), dt_limit)       (h)        bias, softplus and limits optional
//! H_t = exp(Δ_t A) H_{t-1} + (Δ_t x_t) B_tᵀ             (h, p, n)  state
//! y_t = (H_t C_t + D ⊙ x_t) ⊙ silu(z_t)                 (h, p)     skip and gate optional
//! ```
//! As a matrix mixer, head by head: `Y = M X`, `M[t,s] = (C_tᵀ B_s) exp(A Σ_{s<r≤t} Δ_r) Δ_s` for `s ≤ t`: the product
//! of a linear-attention matrix and a 1-semiseparable decay mask. Source: Dao and Gu 2024, "Transformers are SSMs",
//! sections 3 and 6.
//!
//! [`scalar_decay_scan`] is the same machine with decays and input scales given independently of each other: simple
//! gated linear attention; with a constant decay retention, without decay linear attention.

mod args;
mod backward;
mod cpu;
pub mod naive;
mod scalar;
mod step;
mod views;

pub use args::{SsdChunkScan, SsdStateUpdate};
use candle_core::{DType, Result, Shape, Tensor, bail};
pub use scalar::{ScalarDecayScan, ScalarDecayStateUpdate, scalar_decay_scan, scalar_decay_state_update};
use views::StepRule;

use crate::host::{self, state_dtype};
use crate::simd::Real;
use crate::{check, inplace, tape};

const OP: &str = "ssd_chunk_scan";
const STEP: &str = "ssd_state_update";

/// The scan over whole sequences: outputs (b, l, h, p) in `x`'s dtype, and the states after the last tokens,
/// (b or n_seq, h, p, n) in f32 (f64 for f64 data). Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, the chunk size is 0, or the data
/// is not on the CPU.
pub fn ssd_chunk_scan(args: &SsdChunkScan) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.x.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.x.dtype());
    let inputs = views::prepare(args, work)?;
    let rule = StepRule { softplus: args.dt_softplus, clamp: args::clamp(args.dt_limit) };
    Scan::new(OP, dims, rule, args.chunk_size).run(&inputs, args.x.dtype())
}

/// The node of the autograd graph.
struct Scan {
    name: &'static str,
    dims: args::Dims,
    rule: StepRule,
    chunk: usize,
}

impl Scan {
    fn new(name: &'static str, dims: args::Dims, rule: StepRule, chunk: usize) -> Self {
        let longest = dims.segments.iter().map(|s| s.len).max().unwrap_or(0);
        let chunk = chunk.min(cpu::MAX_CHUNK).min(longest).max(1);
        Self { name, dims, rule, chunk }
    }

    /// Outputs in dtype `data`, and final states.
    fn run(self, inputs: &[Option<Tensor>], data: DType) -> Result<(Tensor, Tensor)> {
        let (y, state) = match state_dtype(data) {
            DType::F64 => self.forward::<f64>(inputs),
            _ => self.forward::<f32>(inputs),
        }?;
        Ok((y.to_dtype(data)?, state))
    }

    fn forward<T: Real>(self, inputs: &[Option<Tensor>]) -> Result<(Tensor, Tensor)> {
        let dims = &self.dims;
        let (y, state) = views::with_views(inputs, 2, self.rule, |v| cpu::forward::<T>(v, dims, self.chunk))?;
        let outputs = vec![
            (host::storage(y), Shape::from((dims.b, dims.l, dims.h, dims.p))),
            (host::storage(state), Shape::from((dims.segments.len(), dims.h, dims.p, dims.n))),
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

/// One token: `state` (b, h, p, n) is advanced **in place**, and the output (b, h, p) returned in `x`'s dtype.
/// Every tensor that shares `state`'s storage sees the change. Not differentiable: the graph ends here.
///
/// # Errors
/// If a shape does not fit, or `state` is not a contiguous f32 (f64 for f64 data) tensor on the CPU.
pub fn ssd_state_update(state: &Tensor, args: &SsdStateUpdate) -> Result<Tensor> {
    check::on_cpu(STEP, state.device())?;
    let dims = args.check(state)?;
    let (x, b, h, p) = (args.x, dims.b, dims.h, dims.p);
    let rule = StepRule { softplus: args.dt_softplus, clamp: args::clamp(args.dt_limit) };
    let inputs = views::prepare_step(args, state_dtype(x.dtype()))?;
    inplace::update(state, step::Step { name: STEP, dims, rule, inputs }, x.dtype(), (b, h, p))
}
