//! Long convolution: every channel with a filter of its own, as long as the sequence.
//!
//! ```text
//! y[t, c] = Σ_j k[c, j] · u[t + ahead - j, c] + bias[c] · u[t, c]          inputs outside of the sequence are zero
//! ```
//! `ahead = 0` is the causal convolution `Σ_{s≤t} k[t-s] u_s`. With `ahead = lk - 1` and k turned around the filter looks
//! ahead only; with both halves side by side it is bidirectional (S4). Inputs before the first, the *history*, let a
//! sequence be convolved in pieces: a convolution's whole state is what it has seen.
//!
//! As a matrix mixer: every channel is a Toeplitz matrix, `M[t,s] = k[t - s + ahead] + bias [t = s]`.
//!
//! | symbol | here | shape |
//! |---|---|---|
//! | u | [`LongConv::u`] | (b, l, d) |
//! | k | [`LongConv::k`] | (d, lk), youngest lag first; a transposed (lk, d) is as good |
//! | bias | [`LongConv::bias`] | (d) |
//! | state | [`LongConv::history`] | (sequences, capacity, d), oldest first |
//!
//! Short problems are summed directly, exactly causal; long ones by real FFTs of at least l + lk, equal to them up to
//! rounding (which a change of a later input moves too: see [`ConvMethod`]). Source: Poli et al. 2023 (Hyena), section 3;
//! Gu et al. 2021 (S4).

mod args;
mod cpu;
pub mod naive;

pub use args::{ConvMethod, LongConv};
use args::{Dims, prepared};
use candle_core::{DType, Result, Shape, Tensor, bail};
use cpu::{FftReal, Views};

use crate::host::{self, Rows, state_dtype};
use crate::{check, tape};

const OP: &str = "long_conv";

/// Convolves every channel: (b, l, d) in `u`'s dtype. Differentiable in u, k, bias and the history.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, a history is shorter than its
/// stated length, or the data is not on the CPU.
pub fn long_conv(args: &LongConv) -> Result<Tensor> {
    check::on_cpu(OP, args.u.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.u.dtype());
    let inputs = prepared(args, work)?;
    let node = Conv { dims };
    let y = match work {
        DType::F64 => node.forward::<f64>(&inputs),
        _ => node.forward::<f32>(&inputs),
    }?;
    y.to_dtype(args.u.dtype())
}

/// The node of the autograd graph; its inputs are u, k, bias and the history.
struct Conv {
    dims: Dims,
}

impl Conv {
    fn forward<T: FftReal>(self, inputs: &[Option<Tensor>]) -> Result<Tensor> {
        let Dims { b, l, d, .. } = self.dims;
        let y = with_views::<T, _>(inputs, |v| cpu::forward(&self.dims, v))?;
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        match tape::record(self, &inputs, vec![(host::storage(y), Shape::from((b, l, d)))])?.pop() {
            Some(y) => Ok(y),
            None => bail!("{OP}: expected an output"),
        }
    }

    fn gradients<T: FftReal>(&self, inputs: &[Option<Tensor>], dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Dims { b, l, d, lk, capacity, .. } = self.dims;
        let (guard, layout) = dy.storage_and_layout();
        let dy = Rows::<T>::new(&guard, layout, 2)?;
        let grads = with_views::<T, _>(inputs, |v| cpu::backward(&self.dims, v, &dy))?;
        let bias = inputs[2].as_ref().map(|_| host::tensor(grads.bias, d));
        let sequences = self.dims.segments.len();
        let history = inputs[3].as_ref().map(|_| host::tensor(grads.history, (sequences, capacity, d)));
        Ok(vec![Some(host::tensor(grads.u, (b, l, d))), Some(host::tensor(grads.k, (d, lk))), bias, history])
    }
}

impl tape::Backward for Conv {
    fn name(&self) -> &'static str {
        OP
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        output: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(Some(dy)) = grads.first() else { bail!("{OP}: no gradient of y") };
        match output.dtype() {
            DType::F64 => self.gradients::<f64>(inputs, dy),
            _ => self.gradients::<f32>(inputs, dy),
        }
    }
}

/// Calls `f` with the prepared inputs as rows.
fn with_views<T: FftReal, R>(inputs: &[Option<Tensor>], f: impl FnOnce(&Views<T>) -> R) -> Result<R> {
    let guards: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let [Some((u, u_layout)), Some((k, k_layout)), bias, history] = &guards[..] else {
        bail!("{OP}: u and k are needed")
    };
    let u = Rows::new(u, u_layout, 2)?;
    let k = cpu::Filter::new(k, k_layout)?;
    let bias = bias.as_ref().map(|(s, l)| host::slice::<T>(s, l)).transpose()?;
    let history = history.as_ref().map(|(s, l)| Rows::new(s, l, 2)).transpose()?;
    Ok(f(&Views { u, k, bias, history }))
}
