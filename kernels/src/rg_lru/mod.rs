//! The real-gated linear recurrent unit of Griffin.
//!
//! ```text
//! log a_t = -c softplus(Λ) σ(r_t)        h_t = a_t ⊙ h_{t-1} + √(1 - a_t²) ⊙ σ(i_t) ⊙ x_t        (d)
//! ```
//! At the first token of a sequence nothing is carried and the input is not scaled down: `h = σ(i) ⊙ x`. As a matrix
//! mixer, channel by channel: `M[t,s] = Π_{s<j≤t} a_j · √(1 - a_s²) σ(i_s)`: 1-semiseparable.
//! Source: De et al. 2024, "Griffin" (arXiv 2402.19427), section 2.4, eq. 1 to 4; the first token, and the bound on the
//! root's gradient near `a = 1`, as in the RecurrentGemma code.

mod args;
mod cpu;
pub mod naive;
mod step;

pub use args::{RgLru, RgLruUpdate};
use candle_core::{DType, Result, Shape, Tensor, bail};

use self::args::{INPUTS, Sizes};
use crate::host::{self, state_dtype};
use crate::simd::Real;
use crate::{check, inplace, tape};

const OP: &str = "rg_lru";
const STEP: &str = "rg_lru_update";

/// The root's gradient is no larger than this.
const MAX_ROOT_GRADIENT: f64 = 1000.0;

/// The unit over whole sequences: outputs (b, l, d) in `x`'s dtype, and the last one of each sequence, (b or n_seq, d)
/// in f32 (f64 for f64 data). Differentiable in every tensor and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn rg_lru(args: &RgLru) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.x.device())?;
    let sizes = args.check()?;
    let work = state_dtype(args.x.dtype());
    let inputs = args::prepare(args, work)?;
    let node = Unit { sizes };
    let (h, state) = match work {
        DType::F64 => node.forward::<f64>(&inputs),
        _ => node.forward::<f32>(&inputs),
    }?;
    Ok((h.to_dtype(args.x.dtype())?, state))
}

/// One token: `state` (b, d) is advanced **in place**, and returned in `x`'s dtype. Not differentiable: the graph ends
/// here.
///
/// # Errors
/// If a shape does not fit, or `state` is not a contiguous f32 (f64 for f64 data) tensor on the CPU.
pub fn rg_lru_update(state: &Tensor, args: &RgLruUpdate) -> Result<Tensor> {
    check::on_cpu(STEP, state.device())?;
    let step = step::Step::new(state, args)?;
    inplace::update(state, step, args.x.dtype(), args.x.shape())
}

/// The node of the autograd graph.
struct Unit {
    sizes: Sizes,
}

impl Unit {
    fn forward<T: Real>(self, inputs: &[Option<Tensor>; INPUTS]) -> Result<(Tensor, Tensor)> {
        let (h, states) = cpu::forward::<T>(inputs, &self.sizes)?;
        let dims = &self.sizes.dims;
        let outputs = vec![
            (host::storage(h), Shape::from((dims.b, dims.l, dims.p))),
            (host::storage(states), Shape::from((dims.segments.len(), dims.p))),
        ];
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        match <[Tensor; 2]>::try_from(tape::record(self, &inputs, outputs)?) {
            Ok([h, state]) => Ok((h, state)),
            Err(_) => bail!("{OP}: expected two outputs"),
        }
    }
}

impl tape::Backward for Unit {
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
            DType::F64 => cpu::gradients::<f64>(&self.sizes, inputs, output, grads),
            _ => cpu::gradients::<f32>(&self.sizes, inputs, output, grads),
        }
    }
}
