//! One-token updates: a state advanced in place, and an output beside it.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail};

use crate::host::{self, state_dtype};
use crate::simd::Real;

/// The CPU half of a one-token update.
pub(crate) trait Update {
    /// The operator's name in error messages.
    fn name(&self) -> &'static str;

    /// What it reads while it holds the state.
    fn inputs(&self) -> &[Option<Tensor>];

    /// Advances the state and gives the output.
    fn run<T: Real>(&self, state: &mut [T]) -> Result<Vec<T>>;
}

/// Runs the update on `state`, which every tensor of that storage sees, and gives the output in dtype `data`.
///
/// # Errors
/// If the state is not a contiguous tensor of the state dtype that belongs to `data`.
pub(crate) fn update(
    state: &Tensor,
    update: impl Update,
    data: DType,
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    let (name, dtype) = (update.name(), state_dtype(data));
    if state.dtype() != dtype {
        bail!(
            "{name}: state is {:?}, expected {dtype:?}: states are f32, or f64 for f64 data",
            state.dtype()
        );
    }
    if !state.is_contiguous() {
        bail!(
            "{name}: state has strides {:?}, expected a contiguous one: it is written in place",
            state.stride()
        );
    }
    if update.inputs().iter().flatten().any(|input| share_storage(state, input)) {
        bail!("{name}: an input lies in the state's own storage, which is written in place: copy it first");
    }
    let op = Op { update, y: Mutex::new(None) };
    state.inplace_op1(&op)?;
    let Some(y) = op.y.into_inner().unwrap_or_else(PoisonError::into_inner) else {
        bail!("{name}: no kernel ran");
    };
    Tensor::from((y, shape.into())).to_dtype(data)
}

fn share_storage(a: &Tensor, b: &Tensor) -> bool {
    let ((a, _), (b, _)) = (a.storage_and_layout(), b.storage_and_layout());
    std::ptr::eq(&raw const *a, &raw const *b)
}

struct Op<U> {
    update: U,
    y: Mutex<Option<Storage>>,
}

impl<U: Update> Op<U> {
    fn cpu<T: Real>(&self, state: &mut [T]) -> Result<()> {
        let y = self.update.run(state)?;
        *self.y.lock().unwrap_or_else(PoisonError::into_inner) = Some(host::storage(y));
        Ok(())
    }
}

impl<U: Update> InplaceOp1 for Op<U> {
    fn name(&self) -> &'static str {
        self.update.name()
    }

    fn cpu_fwd(&self, state: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("{}: state is not contiguous", self.name())
        };
        match state {
            CpuStorage::F32(s) => self.cpu(&mut s[start..end]),
            CpuStorage::F64(s) => self.cpu(&mut s[start..end]),
            _ => bail!("{}: state is neither f32 nor f64", self.name()),
        }
    }

    fn cuda_fwd(&self, _: &mut CudaStorage, _: &Layout) -> Result<()> {
        bail!("{} has no CUDA path yet", self.name())
    }
}
