//! Tensors on the CPU as slices, and slices as tensors.

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail};

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

/// The rows of a CPU tensor: its leading dimensions flattened, the elements of a row side by side, the rows some
/// distance apart, as in a part of a wider projection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    data: &'a [T],
    stride: usize,
    /// Number of rows.
    pub(crate) rows: usize,
    /// Elements of a row.
    pub(crate) width: usize,
}

impl<'a, T> Rows<'a, T> {
    /// Rows over the first `lead` dimensions; a tensor that has none is turned into one that has by [`in_rows`].
    pub(crate) fn new(storage: &'a Storage, layout: &Layout, lead: usize) -> Result<Self>
    where
        T: WithDType,
    {
        let Storage::Cpu(storage) = storage else { bail!("expected a tensor on the CPU") };
        let Some(stride) = row_stride(layout, lead) else {
            bail!("expected contiguous rows, got strides {:?} for {:?}", layout.stride(), layout.shape())
        };
        let width = layout.dims()[lead..].iter().product();
        let rows: usize = layout.dims()[..lead].iter().product();
        let len = if rows * width == 0 { 0 } else { (rows - 1) * stride + width };
        let start = layout.start_offset();
        // An empty view may start past the end of its storage.
        let data = storage.as_slice::<T>()?.get(start..start + len).unwrap_or(&[]);
        Ok(Self { data, stride: if len == 0 { 0 } else { stride }, rows, width })
    }

    /// The rows of a matrix that lie one after the other.
    pub(crate) fn dense(data: &'a [T], width: usize) -> Self {
        let rows = data.len().checked_div(width).unwrap_or(0);
        Self { data, stride: width, rows, width }
    }

    /// Rows over all dimensions but the last.
    pub(crate) fn of_last(storage: &'a Storage, layout: &Layout) -> Result<Self>
    where
        T: WithDType,
    {
        Self::new(storage, layout, layout.dims().len().saturating_sub(1))
    }

    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> &'a [T] {
        &self.data[i * self.stride..][..self.width]
    }

    /// [`prefetch`] of these elements of row `i`, if there is such a row.
    #[inline(always)]
    pub(crate) fn prefetch(&self, i: usize, columns: std::ops::Range<usize>) {
        if let Some(part) = self.data.get(i * self.stride..).and_then(|row| row.get(columns)) {
            prefetch(part.as_ptr(), part.len());
        }
    }

    /// The rows from `i` on as one slice, rows [`Rows::stride`] apart, beginning with element `column` of row `i`.
    pub(crate) fn tail(&self, i: usize, column: usize) -> &'a [T] {
        &self.data[i * self.stride + column..]
    }

    pub(crate) fn stride(&self) -> usize {
        self.stride
    }
}

/// Asks the cache for `len` elements from `start` on.
#[inline(always)]
fn prefetch<T>(start: *const T, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for i in (0..len).step_by(64 / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint; it reads nothing the program can see and faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(i).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (start, len);
}

/// The distance between rows over the first `lead` dimensions, if they are evenly spaced and contiguous each.
fn row_stride(layout: &Layout, lead: usize) -> Option<usize> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let mut expected = 1;
    for (&dim, &stride) in dims[lead..].iter().zip(&strides[lead..]).rev() {
        if dim != 1 && stride != expected {
            return None;
        }
        expected *= dim;
    }
    let mut rows = None; // (stride of the rows, that of the next dimension outwards)
    for (&dim, &stride) in dims[..lead].iter().zip(&strides[..lead]).rev().filter(|(d, _)| **d != 1) {
        match rows {
            None => rows = Some((stride, stride * dim)),
            Some((row, next)) if next == stride => rows = Some((row, next * dim)),
            Some(_) => return None,
        }
    }
    Some(rows.map_or(expected, |(row, _)| row))
}

/// The tensor itself if its first `lead` dimensions are evenly spaced contiguous rows, else a contiguous copy.
pub(crate) fn in_rows(t: &Tensor, lead: usize) -> Result<Tensor> {
    if row_stride(t.layout(), lead).is_some() { Ok(t.clone()) } else { t.contiguous() }
}

/// A storage of the given values.
pub(crate) fn storage<T: WithDType>(values: Vec<T>) -> Storage {
    Storage::Cpu(T::to_cpu_storage_owned(values))
}

/// Zeros for a kernel to fill. Large buffers ask for huge pages, without which a third of the time of a kernel that
/// streams through fresh memory goes to page faults.
pub(crate) fn zeros<T: Real>(len: usize) -> Vec<T> {
    let mut values = vec![T::ZERO; len];
    advise_huge_pages(values.as_mut_ptr(), len);
    values
}

/// Memory for a kernel that writes every element before anything reads one: unlike [`zeros`], it costs no pass of its own
/// where the allocator hands out memory that has been used before.
pub(crate) struct Unwritten<T> {
    /// Without elements, and room for `len`.
    room: Vec<T>,
    len: usize,
}

impl<T: Real> Unwritten<T> {
    pub(crate) fn new(len: usize) -> Self {
        let mut room = Vec::with_capacity(len);
        advise_huge_pages(room.as_mut_ptr(), len);
        Self { room, len }
    }

    /// The places to be written.
    pub(crate) fn places(&mut self) -> Disjoint<T> {
        Disjoint { data: self.room.as_mut_ptr(), len: self.len }
    }

    /// The values.
    ///
    /// # Safety
    /// All `len` elements have been written.
    pub(crate) unsafe fn written(mut self) -> Vec<T> {
        // SAFETY: there is room for `len` elements, and the caller has written them.
        unsafe { self.room.set_len(self.len) };
        self.room
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages<T>(start: *mut T, len: usize) {
    const HUGE: usize = 2 << 20;
    let bytes = len * size_of::<T>();
    if bytes < 2 * HUGE {
        return;
    }
    let start = start.cast::<u8>();
    let skip = start.align_offset(HUGE);
    let len = bytes.saturating_sub(skip) / HUGE * HUGE;
    // SAFETY: whole pages inside the buffer, whose contents the advice leaves as they are. A refusal changes nothing.
    unsafe { libc::madvise(start.add(skip).cast(), len, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages<T>(_: *mut T, _: usize) {}

/// A tensor of the given values.
pub(crate) fn tensor<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> Tensor {
    Tensor::from((storage(values), shape.into()))
}

/// The dtype of states and accumulators for data of this dtype: f64 for f64, else f32.
pub fn state_dtype(data: DType) -> DType {
    if data == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Threads of candle's pools. (candle's own count reads the processor list from the system at each call.)
pub(crate) fn all_threads() -> usize {
    static THREADS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *THREADS.get_or_init(candle_core::utils::get_num_threads)
}

/// The most threads that kernels may use, from now on.
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Lets the kernels of this process use at most `threads` threads, and no more than the machine (or
/// `RAYON_NUM_THREADS`) offers; 0 counts as 1. candle's own operations are not concerned.
pub fn set_threads(threads: usize) {
    LIMIT.store(threads.max(1), Ordering::Relaxed);
}

/// Threads that kernels may use.
pub(crate) fn threads() -> usize {
    all_threads().min(LIMIT.load(Ordering::Relaxed))
}

/// Short work shared over threads that wait for it spinning (see [`crate::team`]), which costs about a microsecond:
/// `f(range)` for ranges that make up `0..n`, each a multiple of `grain` long but the last.
pub(crate) fn spinning(n: usize, grain: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
    let units = n.div_ceil(grain.max(1));
    if units <= 1 || threads() == 1 {
        return f(0..n);
    }
    let cursor = AtomicUsize::new(0);
    // Long ranges first, short ones last: few starts, and an even end.
    let take = |start: usize| (start < units).then(|| start + ((units - start) / (2 * threads())).max(1));
    crate::team::together(&|| {
        while let Ok(start) = cursor.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            let end = take(start).unwrap_or(units);
            f(start * grain..n.min(end * grain));
        }
    });
}

/// Tasks shared over threads, whoever is free taking the next: `f(i)` for each `i < n`, in any order.
pub(crate) fn parallel(n: usize, f: impl Fn(usize) + Send + Sync) {
    if n <= 1 || threads() == 1 {
        return (0..n).for_each(f);
    }
    let next = AtomicUsize::new(0);
    crate::team::together(&|| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                return;
            }
            f(i);
        }
    });
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

    /// Where element `start` is, or would be: following the pointer is for those who know that nobody else does.
    pub(crate) fn at(&self, start: usize) -> *mut T {
        self.data.wrapping_add(start)
    }

    /// Asks the cache for `len` elements from `start` on, if there are as many.
    #[inline(always)]
    pub(crate) fn prefetch(&self, start: usize, len: usize) {
        if start + len <= self.len {
            prefetch(self.data.wrapping_add(start), len);
        }
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
pub(crate) fn gemm<T: Real>(
    sizes: (usize, usize, usize),
    a: &[T],
    a_strides: (usize, usize),
    b: &[T],
    b_strides: (usize, usize),
    c: &mut [T],
    c_strides: (usize, usize),
    accumulate: bool,
) {
    check_views(sizes, (a.len(), a_strides), (b.len(), b_strides), (c.len(), c_strides));
    let (a, b, c) = ((a.as_ptr(), a_strides), (b.as_ptr(), b_strides), (c.as_mut_ptr(), c_strides));
    // SAFETY: all three views lie inside their slices, as checked.
    unsafe { gemm_views(sizes, a, b, c, accumulate) };
}

/// [`gemm`] on all threads: each takes a block of columns of `c` (of rows, where those are more).
pub(crate) fn gemm_parallel<T: Real>(
    (m, k, n): (usize, usize, usize),
    a: &[T],
    a_strides: (usize, usize),
    b: &[T],
    b_strides: (usize, usize),
    c: &mut [T],
    c_strides: (usize, usize),
    accumulate: bool,
) {
    /// Columns (rows) of a block are a multiple of this: whole tiles of the product's inner kernel.
    const TILE: usize = 48;
    check_views((m, k, n), (a.len(), a_strides), (b.len(), b_strides), (c.len(), c_strides));
    let columns = n >= m;
    let whole = if columns { n } else { m };
    let block = whole.div_ceil(threads()).next_multiple_of(TILE);
    let c = Disjoint::new(c);
    spinning(whole, block, |range| {
        let (sizes, a_start, b_start, c_start) = if columns {
            ((m, k, range.len()), 0, range.start * b_strides.1, range.start * c_strides.1)
        } else {
            ((range.len(), k, n), range.start * a_strides.0, 0, range.start * c_strides.0)
        };
        // Of an empty view (k = 0) nothing is read.
        let (a, b) = (a.as_ptr().wrapping_add(a_start), b.as_ptr().wrapping_add(b_start));
        // SAFETY: parts of views that lie inside their slices, as checked; ranges do not overlap, hence neither do the
        // elements of `c` that they stand for.
        unsafe { gemm_views(sizes, (a, a_strides), (b, b_strides), (c.at(c_start), c_strides), accumulate) };
    });
}

/// Panics unless the views (length of the slice, strides) of an (m, k, n) product lie inside their slices.
pub(crate) fn check_views(
    (m, k, n): (usize, usize, usize),
    a: (usize, (usize, usize)),
    b: (usize, (usize, usize)),
    c: (usize, (usize, usize)),
) {
    let inside = |rows: usize, columns: usize, (len, strides): (usize, (usize, usize))| {
        rows == 0 || columns == 0 || (rows - 1) * strides.0 + (columns - 1) * strides.1 < len
    };
    assert!(inside(m, k, a) && inside(k, n, b) && inside(m, n, c), "a matrix reaches past its elements");
}

/// # Safety
/// `a` (m, k) and `b` (k, n) can be read, and `c` (m, n) written by this thread alone, at their strides.
unsafe fn gemm_views<T: Real>(
    (m, k, n): (usize, usize, usize),
    (a, a_strides): (*const T, (usize, usize)),
    (b, b_strides): (*const T, (usize, usize)),
    (c, c_strides): (*mut T, (usize, usize)),
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            c_strides.1 as isize,
            c_strides.0 as isize,
            accumulate,
            a,
            a_strides.1 as isize,
            a_strides.0 as isize,
            b,
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

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};

    use super::*;

    #[test]
    fn rows_of_views() -> Result<()> {
        let wide = Tensor::arange(0f32, 60.0, &Device::Cpu)?.reshape((2, 3, 10))?;
        for t in [
            wide.clone(),
            wide.narrow(2, 4, 5)?,
            wide.narrow(1, 1, 1)?,
            wide.narrow(1, 0, 2)?,
            wide.narrow(0, 1, 1)?.narrow(2, 1, 1)?,
            wide.transpose(0, 1)?,
            wide.transpose(1, 2)?,
            wide.narrow(1, 0, 1)?.broadcast_as((2, 4, 10))?,
            wide.narrow(0, 0, 0)?,
        ] {
            let rowed = in_rows(&t, 2)?;
            let want: Vec<Vec<f32>> = t.contiguous()?.flatten_to(D::Minus2)?.to_vec2()?;
            let (guard, layout) = rowed.storage_and_layout();
            let rows = Rows::<f32>::new(&guard, layout, 2)?;
            for (i, want) in want.iter().enumerate() {
                assert_eq!(rows.row(i), want, "{:?}", t.layout());
            }
        }
        let view = wide.narrow(2, 4, 5)?;
        assert_eq!(in_rows(&view, 2)?.id(), view.id(), "a part of a projection is not copied");
        Ok(())
    }
}
