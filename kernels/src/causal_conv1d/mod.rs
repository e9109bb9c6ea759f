//! Depthwise causal convolution over time, with the SiLU that follows it in Mamba-like layers.
//!
//! ```text
//! y[t, c] = act(bias[c] + Σ_{j<k} weight[c, j] · x[t - (k-1) + j, c])        act = SiLU or nothing
//! ```
//! Inputs before the first token come from the initial state (zeros if there is none); the final state is the last k-1
//! inputs, before the convolution. A sequence shorter than k-1 keeps the younger part of the state it began with.
//!
//! As a matrix mixer: every channel is a Toeplitz band matrix of k diagonals (before the activation).
//!
//! | symbol | here | shape |
//! |---|---|---|
//! | x | [`CausalConv1d::x`] | (b, l, d) |
//! | w | [`CausalConv1d::weight`] | (d, k), oldest tap first |
//! | state | [`CausalConv1d::initial_state`] | (sequences, d, k-1), oldest input first |
//!
//! Source: Gu & Dao 2023 (Mamba), section 3.4; layout of the states as in state-spaces/mamba.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod naive;
pub(crate) mod special;
mod update;

use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};

use crate::host::{self, state_dtype};
use crate::segments::{Segment, segments};
use crate::simd::Real;
use crate::tape;

pub use update::causal_conv1d_update;

const OP: &str = "causal_conv1d";

/// The inputs of [`causal_conv1d`].
#[derive(Debug, Clone, Copy)]
pub struct CausalConv1d<'a> {
    /// (b, l, d), f32, f64, bf16 or f16; may be a view whose rows lie apart, as a narrowed projection is.
    pub x: &'a Tensor,
    /// (d, k) with k >= 1, the oldest tap first; any floating dtype.
    pub weight: &'a Tensor,
    /// (d), any floating dtype.
    pub bias: Option<&'a Tensor>,
    /// Whether SiLU follows.
    pub silu: bool,
    /// (b, d, k-1), or (sequences, d, k-1) for packed ones: the inputs before the first, oldest first; f32 (f64 for
    /// f64 data).
    pub initial_state: Option<&'a Tensor>,
    /// Boundaries `[0, l0, l0 + l1, ..., l]` of the sequences packed in the only row.
    pub cu_seqlens: Option<&'a [usize]>,
}

/// Convolves every channel over time. Gives y, (b, l, d) in x's dtype, and the final state, (b, d, k-1) or
/// (sequences, d, k-1) in the state dtype.
///
/// Differentiable in x, weight, bias and the initial state, through y and the final state.
///
/// # Errors
/// If shapes, dtypes or sequence boundaries do not fit each other, or the device has no such kernel.
pub fn causal_conv1d(args: CausalConv1d) -> Result<(Tensor, Tensor)> {
    let p = Problem::new(&args)?;
    let inputs = prepared(&args, p.state)?;
    let inputs = inputs.each_ref().map(Option::as_ref);
    let shapes = [Shape::from((p.b, p.l, p.d)), Shape::from((p.segments.len(), p.d, p.k - 1))];
    let conv = Conv { p, silu: args.silu };
    let outputs = conv.forward(&inputs)?.into_iter().zip(shapes).collect();
    match &tape::record(conv, &inputs, outputs)?[..] {
        [y, state] => Ok((y.to_dtype(args.x.dtype())?, state.clone())),
        other => bail!("{OP}: {} outputs", other.len()),
    }
}

/// What [`causal_conv1d_backward`] gives.
#[derive(Debug)]
pub struct CausalConv1dGrads {
    /// (b, l, d), in x's dtype.
    pub x: Tensor,
    /// (d, k), in the state dtype.
    pub weight: Tensor,
    /// (d), in the state dtype; if there is a bias.
    pub bias: Option<Tensor>,
    /// As the initial state; if there is one.
    pub initial_state: Option<Tensor>,
}

/// The gradients of [`causal_conv1d`] without a graph: from `dy` (b, l, d), that of y, and `dfinal`, that of the final
/// state. For callers who keep track themselves (checkpointing, fused layers, measurements).
///
/// # Errors
/// As there, and if the gradients' shapes do not fit.
pub fn causal_conv1d_backward(
    args: CausalConv1d,
    dy: &Tensor,
    dfinal: Option<&Tensor>,
) -> Result<CausalConv1dGrads> {
    let p = Problem::new(&args)?;
    if dy.dims() != args.x.dims() {
        bail!("{OP}_backward: dy has shape {:?}, expected {:?}, as x", dy.dims(), args.x.dims());
    }
    if let Some(dfinal) = dfinal {
        check_state(OP, "dfinal", dfinal, (p.segments.len(), p.d, p.k - 1), p.state)?;
    }
    let inputs = prepared(&args, p.state)?.map(|t| t.map(|t| t.detach()));
    let inputs = inputs.each_ref().map(Option::as_ref);
    let dy = dy.to_dtype(inputs[0].map_or(p.state, Tensor::dtype))?.contiguous()?;
    let dfinal = dfinal.map(Tensor::contiguous).transpose()?;
    let grads = Conv { p, silu: args.silu }.backward(&inputs, [Some(&dy), dfinal.as_ref()])?;
    let Ok([Some(x), Some(weight), bias, initial_state]) = <[_; 4]>::try_from(grads) else {
        bail!("{OP}_backward: a gradient is missing");
    };
    Ok(CausalConv1dGrads { x: x.to_dtype(args.x.dtype())?, weight, bias, initial_state })
}

/// The inputs as the kernels take them: x in the state dtype on the CPU and in its own elsewhere, its rows apart or
/// not; the rest dense and in the state dtype.
fn prepared(args: &CausalConv1d, state: DType) -> Result<[Option<Tensor>; 4]> {
    let data = if args.x.device().is_cpu() { state } else { args.x.dtype() };
    let x = rows_apart(&args.x.to_dtype(data)?)?;
    let weight = args.weight.to_dtype(state)?.contiguous()?;
    let bias = args.bias.map(|b| b.to_dtype(state)?.contiguous()).transpose()?;
    Ok([Some(x), Some(weight), bias, args.initial_state.map(Tensor::contiguous).transpose()?])
}

/// The tensor with its last dimension dense; rows may lie apart.
fn rows_apart(x: &Tensor) -> Result<Tensor> {
    match x.stride() {
        [_, _, 1] => Ok(x.clone()),
        _ => x.contiguous(),
    }
}

/// Checked sizes of a call.
struct Problem {
    b: usize,
    l: usize,
    d: usize,
    k: usize,
    segments: Vec<Segment>,
    /// dtype of states, weights and accumulators.
    state: DType,
}

impl Problem {
    fn new(args: &CausalConv1d) -> Result<Self> {
        let Ok((b, l, d)) = args.x.dims3() else {
            bail!("{OP}: x has shape {:?}, expected (b, l, d)", args.x.dims());
        };
        let k = check_taps(OP, args.x.dtype(), d, args.weight, args.bias)?;
        let segments = segments(OP, b, l, args.cu_seqlens)?;
        let state = state_dtype(args.x.dtype());
        if let Some(s) = args.initial_state {
            check_state(OP, "initial_state", s, (segments.len(), d, k - 1), state)?;
        }
        Ok(Self { b, l, d, k, segments, state })
    }
}

/// x (b, l, d) with dense channels, weight (d, k), bias (d), initial state (sequences, d, k-1).
type Inputs<'a> = [Option<&'a Tensor>];

/// The operator as it stands in the graph.
struct Conv {
    p: Problem,
    silu: bool,
}

impl Conv {
    /// y and the final state.
    fn forward(&self, inputs: &Inputs) -> Result<[Storage; 2]> {
        let [Some(x), ..] = inputs else { bail!("{OP}: no x") };
        match (x.device(), x.dtype()) {
            (Device::Cpu, DType::F64) => self.cpu_forward::<f64>(inputs),
            (Device::Cpu, _) => self.cpu_forward::<f32>(inputs),
            #[cfg(feature = "cuda")]
            (Device::Cuda(device), _) => cuda::forward(self, device, inputs),
            (device, _) => bail!("{OP}: no kernel for {:?} in this build", device.location()),
        }
    }

    /// Gradients of the inputs from those of y and the final state.
    fn backward(&self, inputs: &Inputs, grads: [Option<&Tensor>; 2]) -> Result<Vec<Option<Tensor>>> {
        let [Some(x), ..] = inputs else { bail!("{OP}: no x") };
        match (x.device(), x.dtype()) {
            (Device::Cpu, DType::F64) => self.cpu_backward::<f64>(inputs, grads),
            (Device::Cpu, _) => self.cpu_backward::<f32>(inputs, grads),
            #[cfg(feature = "cuda")]
            (Device::Cuda(device), _) => cuda::backward(self, device, inputs, grads),
            (device, _) => bail!("{OP}: no kernel for {:?} in this build", device.location()),
        }
    }

    fn cpu_forward<T: Real>(&self, inputs: &Inputs) -> Result<[Storage; 2]> {
        self.on_slices(inputs, |conv| {
            let (y, state) = conv.forward();
            Ok([y, state].map(host::storage::<T>))
        })
    }

    fn cpu_backward<T: Real>(
        &self,
        inputs: &Inputs,
        grads: [Option<&Tensor>; 2],
    ) -> Result<Vec<Option<Tensor>>> {
        let Problem { b, l, d, k, ref segments, .. } = self.p;
        let grads = grads.map(|g| g.map(Tensor::storage_and_layout));
        let [dy, dfinal] =
            [&grads[0], &grads[1]].map(|g| g.as_ref().map(|(s, l)| host::slice::<T>(s, l)).transpose());
        let (Some(dy), dfinal) = (dy?, dfinal?) else { bail!("{OP}: no gradient of y") };
        self.on_slices(inputs, |conv| {
            let g = conv.backward(dy, dfinal);
            let initial = g.initial.map(|g| host::tensor(g, (segments.len(), d, k - 1)));
            let bias = inputs[2].map(|_| host::tensor(g.bias, d));
            Ok(vec![Some(host::tensor(g.x, (b, l, d))), Some(host::tensor(g.weight, (d, k))), bias, initial])
        })
    }

    /// Calls `f` with the inputs as slices.
    fn on_slices<T: Real, R>(&self, inputs: &Inputs, f: impl FnOnce(cpu::Conv<T>) -> Result<R>) -> Result<R> {
        let [Some(x), Some(weight), bias, initial] = inputs else { bail!("{OP}: {} inputs", inputs.len()) };
        let (x, layout) = x.storage_and_layout();
        let Storage::Cpu(x) = &*x else { bail!("{OP}: x is not on the CPU") };
        let rows = cpu::Rows {
            data: x.as_slice::<T>()?.get(layout.start_offset()..).unwrap_or(&[]),
            batch_stride: layout.stride()[0],
            row_stride: layout.stride()[1],
        };
        let (weight, wl) = weight.storage_and_layout();
        let [bias, initial] = [bias, initial].map(|t| t.map(Tensor::storage_and_layout));
        let bias = bias.as_ref().map(|(s, l)| host::slice(s, l)).transpose()?;
        let initial = initial.as_ref().map(|(s, l)| host::slice(s, l)).transpose()?;
        f(cpu::Conv::new(&self.p, self.silu, rows, host::slice(&weight, wl)?, bias, initial))
    }
}

impl tape::Backward for Conv {
    fn name(&self) -> &'static str {
        OP
    }

    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        _: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        let [dy, dfinal] = grads else { bail!("{OP}: {} gradients", grads.len()) };
        self.backward(&inputs, [dy.as_ref(), dfinal.as_ref()])
    }
}

/// Checks dtype of the data and shapes of weight and bias against d channels; the number of taps.
fn check_taps(op: &str, data: DType, d: usize, weight: &Tensor, bias: Option<&Tensor>) -> Result<usize> {
    if !matches!(data, DType::F32 | DType::F64 | DType::BF16 | DType::F16) {
        bail!("{op}: x is {data:?}, expected f32, f64, bf16 or f16");
    }
    let k = match weight.dims() {
        &[channels, k] if channels == d && k >= 1 => k,
        other => {
            bail!("{op}: weight has shape {other:?}, expected ({d}, k) with k >= 1: a row of taps a channel")
        }
    };
    if let Some(bias) = bias
        && bias.dims() != [d]
    {
        bail!("{op}: bias has shape {:?}, expected ({d}), one a channel", bias.dims());
    }
    for (name, t) in [("weight", Some(weight)), ("bias", bias)] {
        if let Some(t) = t
            && !t.dtype().is_float()
        {
            bail!("{op}: {name} is {:?}, expected a floating dtype", t.dtype());
        }
    }
    Ok(k)
}

/// Checks a state's shape and dtype.
fn check_state(op: &str, name: &str, s: &Tensor, shape: (usize, usize, usize), dtype: DType) -> Result<()> {
    if s.dims() != [shape.0, shape.1, shape.2] {
        bail!("{op}: {name} has shape {:?}, expected {shape:?}: (sequences, channels, taps - 1)", s.dims());
    }
    if s.dtype() != dtype {
        bail!("{op}: {name} is {:?}, expected {dtype:?}: states are f32, or f64 for f64 data", s.dtype());
    }
    Ok(())
}
