//! RWKV-4's mixing: an average of all values so far, weighted by exponentials of keys that fade with time.
//!
//! ```text
//! y_t = (Σ_{s<t} exp(k_s + (t-1-s) w) v_s + exp(u + k_t) v_t) / (the same sum without v)         (c), elementwise
//! ```
//! Weights grow without bounds, so the state is (numerator, denominator, max): both sums scaled by exp(-max), where max
//! is the largest exponent seen:
//! ```text
//! m' = max(m + w, k)   a' = exp(m + w - m') a + exp(k - m') v   b' = exp(m + w - m') b + exp(k - m')
//! ```
//! As a matrix mixer, channel by channel: row t of `M` is the softmax over `s ≤ t` of `k_s + (t-1-s) w`, and `u + k_t` at
//! `s = t`. Source: Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", eq. 16 and appendix D; the layout
//! of the state and the empty maximum of -1e38 as in BlinkDL's `wkv_cuda.cu`.
//!
//! | symbol | here | shape |
//! |---|---|---|
//! | w | [`Wkv4::w`] | (c), log of the decay factor: `-exp(time_decay)` |
//! | u | [`Wkv4::u`] | (c), `time_first` |
//! | a, b, m | [`Wkv4::state`] | (sequences, 3, c) |

mod args;
mod backward;
mod cpu;
pub mod naive;
mod step;
mod views;

pub use args::{Wkv4, Wkv4Update};
use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use crate::host::{self, state_dtype};
use crate::simd::Real;
use crate::{check, inplace, tape};

const OP: &str = "wkv4";
const STEP: &str = "wkv4_update";

/// The maximum of a state that has seen nothing: below any key, and far enough from the end of f32 to be added to.
const EMPTY: f64 = -1e38;

/// The averages over whole sequences: outputs (b, l, c) in `v`'s dtype, and the states after the last tokens,
/// (b or n_seq, 3, c) in f32 (f64 for f64 data). Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn wkv4(args: &Wkv4) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.v.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.v.dtype());
    let inputs = views::prepare(args, work)?;
    let node = Average { dims };
    let (y, state) = match work {
        DType::F64 => node.forward::<f64>(&inputs),
        _ => node.forward::<f32>(&inputs),
    }?;
    Ok((y.to_dtype(args.v.dtype())?, state))
}

/// The state before the first token of `batch` sequences, (batch, 3, c), for data of this dtype.
///
/// # Errors
/// If memory cannot be had.
pub fn wkv4_state(batch: usize, c: usize, data: DType, device: &Device) -> Result<Tensor> {
    let dtype = state_dtype(data);
    let sums = Tensor::zeros((batch, 2, c), dtype, device)?;
    Tensor::cat(&[&sums, &Tensor::full(EMPTY, (batch, 1, c), device)?.to_dtype(dtype)?], 1)
}

/// One token: `state` (b, 3, c) is advanced **in place**, and the output (b, c) returned in `v`'s dtype.
/// Every tensor that shares `state`'s storage sees the change. Not differentiable: the graph ends here.
///
/// # Errors
/// If a shape does not fit, or `state` is not a contiguous f32 (f64 for f64 data) tensor on the CPU.
pub fn wkv4_update(state: &Tensor, args: &Wkv4Update) -> Result<Tensor> {
    check::on_cpu(STEP, state.device())?;
    let (b, c) = args.check(state)?;
    let inputs = views::prepare_step(args, state_dtype(args.v.dtype()))?;
    inplace::update(state, step::Step { c, inputs }, args.v.dtype(), (b, c))
}

/// The node of the autograd graph.
struct Average {
    dims: args::Dims,
}

impl Average {
    fn forward<T: Real>(self, inputs: &[Option<Tensor>]) -> Result<(Tensor, Tensor)> {
        let dims = &self.dims;
        let (y, state) = views::with_views(inputs, 2, |v| cpu::forward::<T>(v, dims))?;
        let outputs = vec![
            (host::storage(y), Shape::from((dims.b, dims.l, dims.c))),
            (host::storage(state), Shape::from((dims.segments.len(), 3, dims.c))),
        ];
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        match <[Tensor; 2]>::try_from(tape::record(self, &inputs, outputs)?) {
            Ok([y, state]) => Ok((y, state)),
            Err(_) => bail!("{OP}: expected two outputs"),
        }
    }
}

impl tape::Backward for Average {
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
            DType::F64 => backward::gradients::<f64>(&self.dims, inputs, grads),
            _ => backward::gradients::<f32>(&self.dims, inputs, grads),
        }
    }
}
