//! Tensors on the CPU as slices, and slices as tensors.

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail};

use crate::simd::Real;

/// The elements of a contiguous CPU tensor whose storage guard and layout are at hand.
///
/// ```ignore
/// let (guard, layout) = x.storage_and_layout();
/// let x: &[f32] = host::slice(&guard, layout)?;
/// ```
pub(crate) fn slice<'a, T: WithDType>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    let Storage::Cpu(storage) = storage else { bail!("expected a tensor on the CPU") };
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, got strides {:?} for {:?}", layout.stride(), layout.shape())
    };
    // An empty view may start past the end of its storage.
    Ok(storage.as_slice::<T>()?.get(start..end).unwrap_or(&[]))
}

/// A storage of the given values.
pub(crate) fn storage<T: WithDType>(values: Vec<T>) -> Storage {
    Storage::Cpu(T::to_cpu_storage_owned(values))
}

/// A tensor of the given values.
pub(crate) fn tensor<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> Tensor {
    Tensor::from((storage(values), shape.into()))
}

/// The dtype of states and accumulators for data of this dtype: f64 for f64, else f32.
pub fn state_dtype(data: DType) -> DType {
    if data == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Work shared over the threads of candle's pool: `f(i)` for each `i < n`, in any order.
pub(crate) fn parallel(n: usize, f: impl Fn(usize) + Send + Sync) {
    use rayon::prelude::*;
    if n <= 1 || candle_core::utils::get_num_threads() == 1 {
        (0..n).for_each(f);
    } else {
        candle_core::utils::with_threadpool(|| (0..n).into_par_iter().for_each(f));
    }
}

/// A mutable buffer that parallel tasks write in disjoint places.
pub(crate) struct Disjoint<T> {
    data: *mut T,
    len: usize,
}

// SAFETY: access goes through `slice`, whose contract is that no two live slices overlap.
unsafe impl<T: Send> Send for Disjoint<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<T> {}

impl<T> Disjoint<T> {
    pub(crate) fn new(data: &mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len() }
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// While the slice lives, the buffer lives and no other slice of it overlaps this one.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.len, "slice {start}..{} of a buffer of {}", start + len, self.len);
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

/// `c = a b` (+ `c` where `accumulate`), row-major views given by their strides, on the calling thread.
///
/// `a` is (m, k) with strides `a_strides` (row, column), `b` (k, n), `c` (m, n).
#[expect(clippy::too_many_arguments, reason = "three matrices and their strides")]
pub(crate) fn gemm<T: Real>(
    (m, k, n): (usize, usize, usize),
    a: &[T],
    a_strides: (usize, usize),
    b: &[T],
    b_strides: (usize, usize),
    c: &mut [T],
    c_strides: (usize, usize),
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let last = |r: usize, c: usize, s: (usize, usize)| (r.max(1) - 1) * s.0 + (c.max(1) - 1) * s.1;
    assert!(k == 0 || (last(m, k, a_strides) < a.len() && last(k, n, b_strides) < b.len()));
    assert!(last(m, n, c_strides) < c.len());
    // SAFETY: all three views lie inside their slices by the assertions above.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            c_strides.1 as isize,
            c_strides.0 as isize,
            accumulate,
            a.as_ptr(),
            a_strides.1 as isize,
            a_strides.0 as isize,
            b.as_ptr(),
            b_strides.1 as isize,
            b_strides.0 as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Turns a zero-length vector of the state dtype into a CPU storage; a marker for outputs that were not asked for.
pub(crate) fn is_cpu(storage: &Storage) -> bool {
    matches!(storage, Storage::Cpu(CpuStorage::F32(_) | CpuStorage::F64(_)))
}
