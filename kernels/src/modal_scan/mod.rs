//! Modal scan: banks of linear time-invariant systems in modal form, from input to output without the states between.
//!
//! ```text
//! h_t = Λ ⊙ h_{t-1} - P (2 Re Qᵀ h_{t-1}) + B u_t         (n) complex, half of n conjugate pairs; P, Q of rank r, or none
//! y_t = 2 Re Cᵀ h_t + D u_t                               (c) outputs, which share the state
//! ```
//! As a matrix mixer, channel by channel: a Toeplitz matrix, `M[t,s] = 2 Re Cᵀ Ā^(t-s) B + D [t = s]` for `s ≤ t`,
//! 2n-semiseparable. S4D, H3's diagonal system and S4 after discretisation are such banks: see Gu et al. 2022, "On the
//! Parameterization and Initialization of Diagonal State Space Models"; Gu, Goel and Ré 2021, appendix C, for the
//! discretised diagonal-plus-low-rank matrix.
//!
//! On the CPU the recurrence itself is the fastest form: with channels in vector lanes a mode costs eight multiply-adds a
//! token, less than the convolution by FFTs costs with its filter. Poles are kept as `Λ - 1`, which f32 holds to its
//! full precision.

mod args;
mod backward;
mod block;
mod cpu;
pub mod naive;
mod step;

use args::{Dims, Sizes};
pub use args::{ModalScan, ModalSystem};
use candle_core::{DType, Result, Shape, Tensor, bail};

use crate::host::{self, Rows, state_dtype};
use crate::simd::Real;
use crate::{check, inplace, tape};

const OP: &str = "modal_scan";

/// The scan over whole sequences: outputs (b, l, c, d) in `u`'s dtype, and the states after the last tokens,
/// (b or n_seq, d, n, 2) in f32 (f64 for f64 data). Differentiable in every tensor, and in both states.
///
/// # Errors
/// If a shape does not fit the others, `cu_seqlens` is not a partition of the length, or the data is not on the CPU.
pub fn modal_scan(args: &ModalScan) -> Result<(Tensor, Tensor)> {
    check::on_cpu(OP, args.u.device())?;
    let dims = args.check()?;
    let work = state_dtype(args.u.dtype());
    let inputs = prepare(args, work)?;
    let (y, state) = match work {
        DType::F64 => Scan { dims }.forward::<f64>(&inputs),
        _ => Scan { dims }.forward::<f32>(&inputs),
    }?;
    Ok((y.to_dtype(args.u.dtype())?, state))
}

/// One token: `state` (b, d, n, 2) is advanced **in place**, and the outputs (b, c, d) returned in `u`'s (b, d) dtype.
/// Every tensor that shares `state`'s storage sees the change. Not differentiable: the graph ends here.
///
/// # Errors
/// If a shape does not fit, or `state` is not a contiguous f32 (f64 for f64 data) tensor on the CPU.
pub fn modal_update(state: &Tensor, u: &Tensor, system: &ModalSystem) -> Result<Tensor> {
    check::on_cpu(step::OP, state.device())?;
    let (b, d) = u.dims2()?;
    let sizes = system.check(d)?;
    check::shape(step::OP, "u", u, &[b, d], "(b, d)")?;
    check::shape(step::OP, "state", state, &[b, d, sizes.n, 2], "(b, d, n, 2)")?;
    let u_rows = u.to_dtype(state_dtype(u.dtype()))?.contiguous()?.detach();
    let [poles, input, output, left, right, skip] = wide(system)?.map(|t| t.map(|t| t.detach()));
    let inputs = [Some(u_rows), poles, input, output, left, right, skip];
    inplace::update(state, step::Step { sizes, inputs }, u.dtype(), (b, sizes.c, d))
}

/// The first `length` taps of every system's filters without their skips, `2 Re Cᵀ Ā^t B`: (c, p, length) in f64, what
/// the systems make of an impulse. Differentiable.
///
/// # Errors
/// If a shape does not fit the others, or the data is not on the CPU.
pub fn modal_filter(system: &ModalSystem, length: usize) -> Result<Tensor> {
    let p = system.poles.dim(0)?;
    let impulse: Vec<f64> = (0..length * p).map(|i| if i < p { 1.0 } else { 0.0 }).collect();
    let u = Tensor::from_vec(impulse, (1, length, p), system.poles.device())?;
    let system = ModalSystem { skip: None, ..*system };
    let (y, _) = modal_scan(&ModalScan { u: &u, system, initial_state: None, cu_seqlens: None })?;
    y.squeeze(0)?.permute((1, 2, 0))
}

/// A bank's tensors in f64: poles, input, output, left and right factor, skip.
fn wide(system: &ModalSystem) -> Result<[Option<Tensor>; 6]> {
    let wide = |t: Option<&Tensor>| t.map(|t| t.to_dtype(DType::F64)?.contiguous()).transpose();
    Ok([
        wide(Some(system.poles))?,
        wide(Some(system.input))?,
        wide(Some(system.output))?,
        wide(system.low_rank.map(|p| p.0))?,
        wide(system.low_rank.map(|p| p.1))?,
        wide(system.skip)?,
    ])
}

/// The tensors in the order of the autograd graph: u, those of [`wide`], initial state.
fn prepare(args: &ModalScan, work: DType) -> Result<[Option<Tensor>; 8]> {
    let u = host::in_rows(&args.u.to_dtype(work)?, 2)?;
    let state = args.initial_state.map(|t| t.to_dtype(work)?.contiguous()).transpose()?;
    let [poles, input, output, left, right, skip] = wide(&args.system)?;
    Ok([Some(u), poles, input, output, left, right, skip, state])
}

/// A bank's tensors as slices.
#[derive(Clone, Copy)]
struct SystemView<'a> {
    poles: &'a [f64],
    input: &'a [f64],
    output: &'a [f64],
    left: &'a [f64],
    right: &'a [f64],
    skip: Option<&'a [f64]>,
}

/// Prepared arguments as slices; token `t` of the flattened batch is row `t`.
#[derive(Clone, Copy)]
struct Views<'a, T> {
    u: Rows<'a, T>,
    system: SystemView<'a>,
    state: Option<&'a [T]>,
}

/// Hands the prepared arguments to `f` as slices; `lead` dimensions of u count tokens.
fn with_views<T: Real, R>(
    inputs: &[Option<Tensor>],
    lead: usize,
    f: impl FnOnce(&Views<T>) -> R,
) -> Result<R> {
    let guards: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let wide =
        |k: usize| guards[k].as_ref().map(|(guard, layout)| host::slice::<f64>(guard, layout)).transpose();
    let state = guards.get(7).and_then(Option::as_ref);
    let state = state.map(|(guard, layout)| host::slice::<T>(guard, layout)).transpose()?;
    let (Some((u, layout)), Some(poles), Some(input), Some(output)) =
        (&guards[0], wide(1)?, wide(2)?, wide(3)?)
    else {
        bail!("{OP}: u, poles, input and output are needed");
    };
    let (left, right) = (wide(4)?.unwrap_or(&[]), wide(5)?.unwrap_or(&[]));
    let system = SystemView { poles, input, output, left, right, skip: wide(6)? };
    Ok(f(&Views { u: Rows::new(u, layout, lead)?, system, state }))
}

/// The node of the autograd graph.
struct Scan {
    dims: Dims,
}

impl Scan {
    fn forward<T: Real>(self, inputs: &[Option<Tensor>]) -> Result<(Tensor, Tensor)> {
        let Dims { b, l, sizes: Sizes { d, n, c, .. }, .. } = self.dims;
        let (y, state) = with_views(inputs, 2, |v| cpu::forward::<T>(v, &self.dims))?;
        let outputs = vec![
            (host::storage(y), Shape::from((b, l, c, d))),
            (host::storage(state), Shape::from((self.dims.segments.len(), d, n, 2))),
        ];
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        match <[Tensor; 2]>::try_from(tape::record(self, &inputs, outputs)?) {
            Ok([y, state]) => Ok((y, state)),
            Err(_) => bail!("{OP}: expected two outputs"),
        }
    }

    fn gradients<T: Real>(
        &self,
        inputs: &[Option<Tensor>],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let Dims { b, l, sizes: Sizes { d, p, n, c, rank }, .. } = self.dims;
        let guards: Vec<_> = grads.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
        let slice = |k: usize| guards[k].as_ref().map(|(g, layout)| host::slice::<T>(g, layout)).transpose();
        let (dy, d_state) = (slice(0)?, slice(1)?);
        let g = with_views(inputs, 2, |v| backward::gradients::<T>(v, &self.dims, dy, d_state))?;
        let of = |k: usize, values: Vec<f64>, shape: &[usize]| {
            inputs[k].as_ref().map(|_| host::tensor(values, shape))
        };
        Ok(vec![
            Some(host::tensor(g.u, (b, l, d))),
            of(1, g.system.poles, &[p, n, 2]),
            of(2, g.system.input, &[p, n, 2]),
            of(3, g.system.output, &[c, p, n, 2]),
            of(4, g.system.left, &[rank, p, n, 2]),
            of(5, g.system.right, &[rank, p, n, 2]),
            of(6, g.system.skip, &[c, p]),
            inputs[7].as_ref().map(|_| host::tensor(g.state, (self.dims.segments.len(), d, n, 2))),
        ])
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
            DType::F64 => self.gradients::<f64>(inputs, grads),
            _ => self.gradients::<f32>(inputs, grads),
        }
    }
}
