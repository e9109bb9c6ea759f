//! Diagonal scan: the linear recurrence of one number a channel, real or complex.
//!
//! ```text
//! h_t = a_t ⊙ h_{t-1} + x_t        h, x: (p) real, or (2, p): a row of real parts, then one of imaginary parts
//! ```
//! `a` is the same at every token (S5, S4D) or depends on it (RG-LRU, HGRN, minimal LSTMs). As a matrix mixer, channel
//! by channel: `M[t,s] = Π_{s<j≤t} a_j` for `s ≤ t`: 1-semiseparable. Backwards in time with `reverse`.
//!
//! The recurrence is associative under `(a, x) ∘ (a', x') = (a' a, a' x + x')` (Blelloch 1990; Smith et al. 2023,
//! "Simplified State Space Layers for Sequence Modeling", section 2.2 and appendix H): see `plan.rs` for how it is
//! shared among threads.

pub(crate) mod args;
mod backward;
mod forward;
pub(crate) mod lanes;
pub mod naive;
pub(crate) mod plan;
mod step;

pub use args::DiagonalScan;
use candle_core::{DType, Result, Shape, Tensor, bail};

use self::args::{Dims, INPUTS};
use crate::host::{self, state_dtype};
use crate::simd::Real;
use crate::{check, inplace, tape};

const OP: &str = "diagonal_scan";
const STEP: &str = "diagonal_state_update";

/// The scan over whole sequences: every state, in `x`'s shape and dtype, and the last one of each sequence (the first
/// token's with `reverse`), (b or n_seq, p) or (b or n_seq, 2, p) in f32 (f64 for f64 data). Differentiable in every
/// tensor and in both states; complex gradients are those with respect to real and imaginary parts.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn diagonal_scan(args: &DiagonalScan) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.x.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.x.dtype());
    let inputs = args::prepare(args, &dims, work)?;
    let node = Scan { dims, wants_a: args.a.track_op() };
    let (h, state) = match work {
        DType::F64 => node.forward::<f64>(&inputs),
        _ => node.forward::<f32>(&inputs),
    }?;
    Ok((h.to_dtype(args.x.dtype())?, state))
}

/// One token: `state` (b, p) or (b, 2, p) becomes `a ⊙ state + x` **in place**, and is returned in `x`'s dtype. `a` is
/// (p) or (2, p), or has the shape of the state, as `x` has. Not differentiable: the graph ends here.
///
/// # Errors
/// If a shape does not fit, or `state` is not a contiguous f32 (f64 for f64 data) tensor on the CPU.
pub fn diagonal_state_update(state: &Tensor, a: &Tensor, x: &Tensor) -> Result<Tensor> {
    check::on_cpu(STEP, state.device())?;
    let step = step::Step::new(state, a, x)?;
    inplace::update(state, step, x.dtype(), x.shape())
}

/// The node of the autograd graph.
struct Scan {
    dims: Dims,
    wants_a: bool,
}

impl Scan {
    fn forward<T: Real>(self, inputs: &[Option<Tensor>; INPUTS]) -> Result<(Tensor, Tensor)> {
        let dims = &self.dims;
        let (h, states) = forward::run::<T>(inputs, dims)?;
        let outputs = vec![
            (host::storage(h), Shape::from(dims.tokens_shape())),
            (host::storage(states), Shape::from(dims.states_shape())),
        ];
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        match <[Tensor; 2]>::try_from(tape::record(self, &inputs, outputs)?) {
            Ok([h, state]) => Ok((h, state)),
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
            DType::F64 => backward::gradients::<f64>(self, inputs, output, grads),
            _ => backward::gradients::<f32>(self, inputs, output, grads),
        }
    }
}
