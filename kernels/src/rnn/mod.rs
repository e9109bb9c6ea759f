//! Recurrent cells that read their own output: LSTM, GRU, and the plain (Elman) cell. What they make of the inputs'
//! side, `W_ih x + b_ih`, comes in as it is (one product for all tokens); here is the rest, token after token.
//!
//! ```text
//! q = U h_{t-1} + b_hh                                            (gates · h), rows in torch's order
//! LSTM   i, f, o = σ(x + q), g = tanh(x + q)      c_t = f c_{t-1} + i g        h_t = o tanh c_t        order i, f, g, o
//! GRU    r, z = σ(x + q), n = tanh(x_n + r q_n)   h_t = (1 - z) n + z h_{t-1}                          order r, z, n
//! plain  h_t = tanh(x + q), or max(x + q, 0)
//! ```
//! Sources: Hochreiter & Schmidhuber 1997, Gers et al. 2000 (LSTM); Cho et al. 2014, in torch.nn.GRU's form, which
//! applies the reset gate after the product; Elman 1990. Not linear: there is no mixing matrix.

mod args;
mod backward;
mod cell;
mod forward;
pub mod naive;

pub use args::{Cell, Recurrence};
use candle_core::{DType, Result, Shape, Tensor, bail};

use self::args::{Dims, INPUTS};
use crate::host::{self, state_dtype};
use crate::linear::stored::{Register, Stored};
use crate::{check, tape};

const OP: &str = "recurrence";

/// The outputs `h_t` (b, l, h) in `x`'s dtype, and the states after the last tokens, (b or n_seq, s, h) in f32 (f64 for
/// f64 data): s = 2 for the LSTM, h then c, else 1. Differentiable in every tensor and in both states, through time.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn recurrence(args: &Recurrence) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.x.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.x.dtype());
    let inputs = args::prepare(args, work)?;
    let (y, state) = match work {
        DType::F64 => run::<f64>(dims, &inputs),
        _ => run::<f32>(dims, &inputs),
    }?;
    Ok((y.to_dtype(args.x.dtype())?, state))
}

fn run<T: Register + Stored<T>>(dims: Dims, inputs: &[Option<Tensor>; INPUTS]) -> Result<(Tensor, Tensor)> {
    let references: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
    let found = forward::run::<T>(&dims, inputs, tape::any_tracked(&references))?;
    let outputs = vec![
        (host::storage(found.y), Shape::from((dims.b, dims.l, dims.h))),
        (host::storage(found.state), Shape::from((dims.segments.len(), dims.cell.states(), dims.h))),
    ];
    let node = Node::<T> { dims, saved: found.saved };
    match <[Tensor; 2]>::try_from(tape::record(node, &references, outputs)?) {
        Ok([y, state]) => Ok((y, state)),
        Err(_) => bail!("{OP}: expected two outputs"),
    }
}

/// The node of the autograd graph.
struct Node<T> {
    dims: Dims,
    /// What each token's gates were, for the way back ([`Cell::saved`] rows of h a token).
    saved: Vec<T>,
}

impl<T: Register + Stored<T>> tape::Backward for Node<T> {
    fn name(&self) -> &'static str {
        OP
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        output: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        backward::gradients::<T>(&self.dims, &self.saved, inputs, output, grads)
    }
}
