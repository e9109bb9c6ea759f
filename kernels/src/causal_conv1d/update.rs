//! One token: the state rolls by one input, in place.

use std::sync::Mutex;

use candle_core::{
    CpuStorage, CudaStorage, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor, bail,
};

use super::{check_state, check_taps};
use crate::host::{self, Disjoint, state_dtype};
use crate::simd::{Real, vectorized};

const OP: &str = "causal_conv1d_update";

/// One token of [`causal_conv1d`](super::causal_conv1d): takes x (b, d), gives y (b, d) in x's dtype, and moves `state`
/// (b, d, k-1; contiguous, f32, or f64 for f64 data) one input on, in place.
///
/// For decoding: no gradient passes.
///
/// # Errors
/// If shapes, dtypes or devices do not fit each other, the state is not contiguous, or the device has no such kernel.
pub fn causal_conv1d_update(
    state: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    silu: bool,
) -> Result<Tensor> {
    let Ok((b, d)) = x.dims2() else { bail!("{OP}: x has shape {:?}, expected (b, d)", x.dims()) };
    let k = check_taps(OP, x.dtype(), d, weight, bias)?;
    let dtype = state_dtype(x.dtype());
    check_state(OP, "state", state, (b, d, k - 1), dtype)?;
    if !state.is_contiguous() {
        bail!(
            "{OP}: state has strides {:?}, expected a contiguous one: it is written in place",
            state.stride()
        );
    }
    if k == 1 {
        return pointwise(x, weight, bias, silu, dtype);
    }
    let step = Step {
        x: data(x, dtype)?.detach(),
        weight: parameter(weight, x, dtype)?,
        bias: bias.map(|b| parameter(b, x, dtype)).transpose()?,
        silu,
        size: Size { b, d, k },
        y: Mutex::new(None),
    };
    state.inplace_op1(&step)?;
    let y = step.y.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(y) = y else { bail!("{OP}: no kernel ran") };
    Tensor::from((y, (b, d))).to_dtype(x.dtype())
}

/// x as the kernels take it: on the CPU dense and in the state dtype, elsewhere in its own, rows may lie apart.
fn data(x: &Tensor, state: DType) -> Result<Tensor> {
    match (x.device(), x.stride()) {
        (Device::Cpu, _) => x.to_dtype(state)?.contiguous(),
        (_, [_, 1]) => Ok(x.clone()),
        _ => x.contiguous(),
    }
}

/// A parameter as the kernels take it: dense, in the state dtype, or, where no conversion is a launch saved, in x's.
fn parameter(t: &Tensor, x: &Tensor, state: DType) -> Result<Tensor> {
    let as_is = !x.device().is_cpu() && t.dtype() == x.dtype();
    let t = if as_is { t.clone() } else { t.to_dtype(state)? };
    Ok(t.contiguous()?.detach())
}

/// One tap: there is no state to move on.
fn pointwise(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, silu: bool, dtype: DType) -> Result<Tensor> {
    let mut y = x.to_dtype(dtype)?.broadcast_mul(&weight.squeeze(1)?.to_dtype(dtype)?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.to_dtype(dtype)?)?;
    }
    if silu { y.silu()? } else { y }.to_dtype(x.dtype())
}

/// b rows of d channels with k taps.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) b: usize,
    pub(super) d: usize,
    pub(super) k: usize,
}

pub(super) struct Step {
    pub(super) x: Tensor,
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    pub(super) silu: bool,
    pub(super) size: Size,
    /// Where the kernel leaves its output.
    y: Mutex<Option<Storage>>,
}

impl Step {
    pub(super) fn put(&self, y: Storage) {
        *self.y.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(y);
    }

    fn cpu<T: Real>(&self, state: &mut [T]) -> Result<()> {
        let (x, xl) = self.x.storage_and_layout();
        let (weight, wl) = self.weight.storage_and_layout();
        let bias = self.bias.as_ref().map(Tensor::storage_and_layout);
        let bias = bias.as_ref().map(|(b, l)| host::slice::<T>(b, l)).transpose()?;
        let taps = Taps { weight: host::slice(&weight, wl)?, bias, silu: self.silu, k: self.size.k };
        self.put(host::storage(taps.step(self.size, host::slice(&x, xl)?, state)));
        Ok(())
    }
}

impl InplaceOp1 for Step {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, state: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("{OP}: state is not contiguous") };
        match state {
            CpuStorage::F32(s) => self.cpu(&mut s[start..end]),
            CpuStorage::F64(s) => self.cpu(&mut s[start..end]),
            _ => bail!("{OP}: state is neither f32 nor f64"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, state: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.put(super::cuda::update(self, state, layout.start_offset())?);
        Ok(())
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(&self, _: &mut CudaStorage, _: &Layout) -> Result<()> {
        Err(candle_core::Error::NotCompiledWithCudaSupport)
    }
}

/// The parameters as slices: weight (d, k), bias (d).
struct Taps<'a, T> {
    weight: &'a [T],
    bias: Option<&'a [T]>,
    silu: bool,
    k: usize,
}

/// Channels a task takes, and channels in all from which threads are worth waking: some microseconds of work.
const CHANNELS: usize = 1024;
const ALONE: usize = 16 * CHANNELS;

impl<T: Real> Taps<'_, T> {
    fn step(&self, size: Size, x: &[T], state: &mut [T]) -> Vec<T> {
        let mut y = vec![T::ZERO; x.len()];
        let blocks = size.d.div_ceil(CHANNELS);
        let (ys, states) = (Disjoint::new(&mut y), Disjoint::new(state));
        let old = self.k - 1;
        let run = |task: usize| {
            let (row, c) = (task / blocks, task % blocks * CHANNELS);
            let n = CHANNELS.min(size.d - c);
            let at = row * size.d + c;
            // SAFETY: tasks own separate (row, channel block) ranges of both buffers.
            let (y, state) = unsafe { (ys.slice(at, n), states.slice(at * old, n * old)) };
            self.channels(c, &x[at..at + n], state, y);
        };
        let tasks = size.b * blocks;
        if size.b * size.d < ALONE {
            (0..tasks).for_each(run);
        } else {
            host::parallel(tasks, run);
        }
        y
    }

    /// Channels `c..` of one row.
    fn channels(&self, c: usize, x: &[T], state: &mut [T], y: &mut [T]) {
        let weight = &self.weight[c * self.k..][..x.len() * self.k];
        vectorized(
            #[inline(always)]
            || {
                match self.bias {
                    Some(bias) => y.copy_from_slice(&bias[c..][..y.len()]),
                    None => y.fill(T::ZERO),
                }
                match self.k {
                    2 => roll::<T, 2, 1>(weight, x, state, y),
                    3 => roll::<T, 3, 2>(weight, x, state, y),
                    4 => roll::<T, 4, 3>(weight, x, state, y),
                    k => roll_any(k, weight, x, state, y),
                }
                if self.silu {
                    y.iter_mut().for_each(|y| *y = y.silu());
                }
            },
        );
    }
}

/// Adds the weighted inputs to y and rolls the states, `OLD = K - 1` inputs a channel.
#[inline(always)]
fn roll<T: Real, const K: usize, const OLD: usize>(weight: &[T], x: &[T], state: &mut [T], y: &mut [T]) {
    let (weight, _) = weight.as_chunks::<K>();
    let (state, _) = state.as_chunks_mut::<OLD>();
    for (((w, &x), s), y) in weight.iter().zip(x).zip(state).zip(y) {
        let mut acc = x.mul_add(w[OLD], *y);
        for j in 0..OLD {
            acc = s[j].mul_add(w[j], acc);
        }
        *y = acc;
        for j in 1..OLD {
            s[j - 1] = s[j];
        }
        s[OLD - 1] = x;
    }
}

#[inline(always)]
fn roll_any<T: Real>(k: usize, weight: &[T], x: &[T], state: &mut [T], y: &mut [T]) {
    for (c, (&x, y)) in x.iter().zip(y).enumerate() {
        let (w, s) = (&weight[c * k..][..k], &mut state[c * (k - 1)..][..k - 1]);
        *y = s.iter().zip(w).fold(x.mul_add(w[k - 1], *y), |acc, (s, w)| s.mul_add(*w, acc));
        s.copy_within(1.., 0);
        s[k - 2] = x;
    }
}
