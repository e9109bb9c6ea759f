//! Scan of a diagonal system with many inputs and many outputs, from input to output without the states between.
//!
//! ```text
//! h_t = a ⊙ h_{t-1} + B u_t        h: (p) real, or (2, p): real parts, then imaginary parts
//! y_t = C h_t + D ⊙ u_t            B and C: real maps to and from the numbers of a state
//! ```
//! S5 is such a system (Smith, Warrington & Linderman 2023, "Simplified State Space Layers for Sequence Modeling",
//! section 3). As a matrix mixer: `Y = Σ_p M_p ⊗ (C_p B_p)`, every `M_p[t,s] = a_p^(t-s)` 1-semiseparable.
//!
//! A token's state is several times wider than the token: a scan that reads and writes states in memory waits for it.
//! Here tokens go through in blocks that stay in a core's cache: product with B, scan, product with C; of the states
//! only those between blocks are kept, and the backward pass computes the others again. See `relay.rs` for how blocks
//! are shared among threads.

mod args;
mod backward;
mod forward;
pub mod naive;
mod relay;
mod rows;

pub use args::MimoScan;
use candle_core::{DType, Result, Shape, Tensor, bail};

use self::args::{Dims, INPUTS};
use self::forward::Found;
use crate::host::{self, state_dtype};
use crate::linear::stored::{Register, Stored};
use crate::{check, tape};

const OP: &str = "mimo_scan";

/// The system over whole sequences: outputs (b, l, o) in `u`'s dtype, and the last state of each sequence (the first
/// token's with `reverse`), (b or n_seq, p) or (b or n_seq, 2, p) in f32 (f64 for f64 data). Differentiable in every
/// tensor and in both states; complex gradients are those with respect to real and imaginary parts.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn mimo_scan(args: &MimoScan) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.u.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.u.dtype());
    let inputs = args::prepare(args, work)?;
    let (y, state) = match work {
        DType::F64 => run::<f64>(dims, &inputs),
        _ => run::<f32>(dims, &inputs),
    }?;
    Ok((y.to_dtype(args.u.dtype())?, state))
}

fn run<T: Register + Stored<T>>(dims: Dims, inputs: &[Option<Tensor>; INPUTS]) -> Result<(Tensor, Tensor)> {
    let inputs_of = inputs.each_ref().map(Option::as_ref);
    let wanted = inputs_of.map(|t| t.is_some_and(Tensor::track_op));
    let Found { y, states, starts } =
        args::with_views::<T, _>(inputs, |v| forward::run(v, &dims, wanted.contains(&true)))?;
    let outputs = vec![
        (host::storage(y), Shape::from((dims.b, dims.l, dims.outputs))),
        (host::storage(states), Shape::from(dims.states_shape())),
    ];
    let kept = (starts.len() / dims.width(), dims.width());
    let starts = host::tensor(starts, kept);
    match <[Tensor; 2]>::try_from(tape::record(Scan { dims, wanted, starts }, &inputs_of, outputs)?) {
        Ok([y, state]) => Ok((y, state)),
        Err(_) => bail!("{OP}: expected two outputs"),
    }
}

/// The node of the autograd graph.
struct Scan {
    dims: Dims,
    /// Which inputs ask for a gradient.
    wanted: [bool; INPUTS],
    /// The state before each block, (blocks, states); empty if nothing asks for a gradient.
    starts: Tensor,
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
