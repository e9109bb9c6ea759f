//! Products of small matrices, such as a chunk of tokens makes: without the packing of a general product, whose price a
//! few dozen rows do not earn back.
//!
//! A tile of the result stays in registers while one row after the other of `b` passes: with AVX-512 8 rows of two
//! vectors, elsewhere 4. Every element is the sum over k in order, whatever the sizes: rows of a result do not depend on
//! how many there are, to the last bit.

use crate::host;
use crate::simd::Real;

/// Most terms of a sum: a panel of `b` then stays in the first-level cache.
const MAX_DEPTH: usize = 256;

/// Most columns of a panel: two vectors of the widest kind.
const MAX_PANEL: usize = 32;

/// Most rows of a tile.
const MAX_ROWS: usize = 8;

/// `c = a b` (+ `c` where `accumulate`): as [`host::gemm`], which it calls where the sizes or strides are not its own
/// (`c` by rows, `b` by rows or columns, sums not too long).
pub(crate) fn product<T: Real>(
    sizes: (usize, usize, usize),
    a: &[T],
    a_strides: (usize, usize),
    b: &[T],
    b_strides: (usize, usize),
    c: &mut [T],
    c_strides: (usize, usize),
    accumulate: bool,
) {
    let (m, k, n) = sizes;
    let by_rows = b_strides.1 == 1;
    if c_strides.1 != 1 || !(by_rows || b_strides.0 == 1) || k > MAX_DEPTH || k == 0 {
        return host::gemm(sizes, a, a_strides, b, b_strides, c, c_strides, accumulate);
    }
    if m == 0 || n == 0 {
        return;
    }
    host::check_views(sizes, (a.len(), a_strides), (b.len(), b_strides), (c.len(), c_strides));
    let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    let b_stride = if by_rows { b_strides.0 } else { b_strides.1 };
    let c_row = c_strides.0;
    pulp::Arch::new().dispatch(Product { sizes, a, a_strides, b, b_stride, by_rows, c, c_row, accumulate });
}

/// Views that lie inside their slices, as [`product`] has checked.
struct Product<T> {
    sizes: (usize, usize, usize),
    a: *const T,
    a_strides: (usize, usize),
    b: *const T,
    /// The distance between rows of `b`, or between its columns.
    b_stride: usize,
    by_rows: bool,
    c: *mut T,
    c_row: usize,
    accumulate: bool,
}

impl<T: Real> pulp::WithSimd for Product<T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        if size_of::<S::f32s>() == 64 { self.run::<S, 8>(simd) } else { self.run::<S, 4>(simd) }
    }
}

impl<T: Real> Product<T> {
    /// Panel by panel of columns, each two vectors wide, or one, or less than one at the end.
    #[inline(always)]
    fn run<S: pulp::Simd, const M: usize>(&self, simd: S) {
        let lanes = size_of::<T::Lanes<S>>() / size_of::<T>();
        let n = self.sizes.2;
        let mut scratch = [const { std::mem::MaybeUninit::<T>::uninit() }; MAX_DEPTH * MAX_PANEL];
        let scratch = scratch.as_mut_ptr().cast::<T>();
        let mut j = 0;
        while j + 2 * lanes <= n {
            // SAFETY: the columns from j to j + 2 lanes lie inside; lanes are at most half a panel.
            unsafe { self.panel::<S, M, 2>(simd, j, scratch) };
            j += 2 * lanes;
        }
        while j + lanes <= n {
            // SAFETY: as above.
            unsafe { self.panel::<S, M, 1>(simd, j, scratch) };
            j += lanes;
        }
        if j < n {
            // SAFETY: as above; fewer columns than lanes are left.
            unsafe { self.rest::<S, M>(simd, j, scratch) };
        }
    }

    /// The columns of `V` vectors from `j` on.
    ///
    /// # Safety
    /// There are as many columns, and `scratch` has room for a panel.
    #[inline(always)]
    unsafe fn panel<S: pulp::Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        j: usize,
        scratch: *mut T,
    ) {
        let width = V * (size_of::<T::Lanes<S>>() / size_of::<T>());
        let (m, k, _) = self.sizes;
        // SAFETY: all reads and writes are inside the views, by the caller's promise.
        unsafe {
            let b = if self.by_rows {
                (self.b.add(j), self.b_stride)
            } else {
                turn(self.b.add(j * self.b_stride), self.b_stride, (k, width), scratch);
                (scratch.cast_const(), width)
            };
            let c = |i: usize| (self.c.add(i * self.c_row + j), self.c_row);
            let mut i = 0;
            while i + M <= m {
                self.tile::<S, M, V>(simd, i, b, c(i), self.accumulate);
                i += M;
            }
            while i + 2 <= m {
                self.tile::<S, 2, V>(simd, i, b, c(i), self.accumulate);
                i += 2;
            }
            if i < m {
                self.tile::<S, 1, V>(simd, i, b, c(i), self.accumulate);
            }
        }
    }

    /// `M` rows of the product from `i` on, for the columns of `V` vectors whose rows are at `b`, at `c`.
    ///
    /// # Safety
    /// There are as many rows and columns in all three.
    #[inline(always)]
    unsafe fn tile<S: pulp::Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        i: usize,
        (b, b_row): (*const T, usize),
        (c, c_row): (*mut T, usize),
        accumulate: bool,
    ) {
        let lanes = size_of::<T::Lanes<S>>() / size_of::<T>();
        let k = self.sizes.1;
        let (row, column) = self.a_strides;
        // SAFETY: rows, columns and terms lie inside the views, by the caller's promise; vectors need no alignment.
        unsafe {
            let a = self.a.add(i * row);
            let at = |r: usize, v: usize| c.add(r * c_row + v * lanes).cast::<T::Lanes<S>>();
            let mut sums = [[T::splat(simd, T::ZERO); V]; M];
            for x in 0..k {
                let b = b.add(x * b_row);
                let mut values = [T::splat(simd, T::ZERO); V];
                for (v, value) in values.iter_mut().enumerate() {
                    *value = b.add(v * lanes).cast::<T::Lanes<S>>().read_unaligned();
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let factor = T::splat(simd, *a.add(r * row + x * column));
                    for (sum, &value) in sums.iter_mut().zip(&values) {
                        *sum = T::lanes_mul_add(simd, factor, value, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, &sum) in sums.iter().enumerate() {
                    let sum =
                        if accumulate { T::lanes_add(simd, at(r, v).read_unaligned(), sum) } else { sum };
                    at(r, v).write_unaligned(sum);
                }
            }
        }
    }

    /// The columns from `j` on, which fill no vector: with zeros beside them, into a tile of their own.
    ///
    /// # Safety
    /// There are fewer columns than lanes, and `scratch` has room for a panel.
    #[inline(always)]
    unsafe fn rest<S: pulp::Simd, const M: usize>(&self, simd: S, j: usize, scratch: *mut T) {
        let lanes = size_of::<T::Lanes<S>>() / size_of::<T>();
        let (m, k, n) = self.sizes;
        let width = n - j;
        let (b_row, b_column) = if self.by_rows { (self.b_stride, 1) } else { (1, self.b_stride) };
        let mut tile = [T::ZERO; MAX_ROWS * MAX_PANEL];
        // SAFETY: all reads and writes are inside the views, by the caller's promise, or inside scratch and tile, which
        // are a panel, and as many rows of one as a tile has at most.
        unsafe {
            for x in 0..k {
                for l in 0..lanes {
                    let value = if l < width { *self.b.add(x * b_row + (j + l) * b_column) } else { T::ZERO };
                    *scratch.add(x * lanes + l) = value;
                }
            }
            let mut i = 0;
            while i < m {
                let (b, c) = ((scratch.cast_const(), lanes), (tile.as_mut_ptr(), lanes));
                let rows = if i + M <= m {
                    self.tile::<S, M, 1>(simd, i, b, c, false);
                    M
                } else {
                    self.tile::<S, 1, 1>(simd, i, b, c, false);
                    1
                };
                for (r, l) in (0..rows).flat_map(|r| (0..width).map(move |l| (r, l))) {
                    let (c, sum) = (self.c.add((i + r) * self.c_row + j + l), tile[r * lanes + l]);
                    *c = if self.accumulate { *c + sum } else { sum };
                }
                i += rows;
            }
        }
    }
}

/// `out[x, j] = b[x, j]`, rows of `width` columns, from columns `stride` apart.
///
/// # Safety
/// `b` has `width` columns of `k`, `out` room for them.
#[inline(always)]
unsafe fn turn<T: Real>(b: *const T, stride: usize, (k, width): (usize, usize), out: *mut T) {
    /// Elements of a column at a time.
    const RUN: usize = 8;
    let whole = k / RUN * RUN;
    for x in (0..whole).step_by(RUN) {
        for j in 0..width {
            // SAFETY: inside, by the caller's promise.
            unsafe {
                let run = b.add(j * stride + x).cast::<[T; RUN]>().read_unaligned();
                for (i, value) in run.into_iter().enumerate() {
                    *out.add((x + i) * width + j) = value;
                }
            }
        }
    }
    for x in whole..k {
        for j in 0..width {
            // SAFETY: as above.
            unsafe { *out.add(x * width + j) = *b.add(j * stride + x) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values<T: Real>(len: usize, seed: usize) -> Vec<T> {
        (0..len).map(|i| T::real(((i * 37 + seed * 11) % 23) as f64 - 11.0)).collect()
    }

    /// Small whole numbers: sums are exact, in any order.
    fn check<T: Real + std::fmt::Debug>((m, k, n): (usize, usize, usize)) {
        for (a_strides, a_len) in [((k + 3, 1), m * (k + 3)), ((1, m + 1), k * (m + 1))] {
            for (b_strides, b_len) in [((n + 2, 1), k * (n + 2)), ((1, k + 5), n * (k + 5))] {
                for accumulate in [false, true] {
                    let (a, b) = (values::<T>(a_len, 1), values::<T>(b_len, 2));
                    let mut c = values::<T>(m * (n + 1), 3);
                    let mut want = c.clone();
                    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                        let term =
                            |x| a[i * a_strides.0 + x * a_strides.1] * b[x * b_strides.0 + j * b_strides.1];
                        let sum: T = (0..k).map(term).sum();
                        let old = want[i * (n + 1) + j];
                        want[i * (n + 1) + j] = if accumulate { old + sum } else { sum };
                    }
                    product((m, k, n), &a, a_strides, &b, b_strides, &mut c, (n + 1, 1), accumulate);
                    assert_eq!(c, want, "{m} {k} {n} {a_strides:?} {b_strides:?} {accumulate}");
                }
            }
        }
    }

    #[test]
    fn products_of_all_sizes_and_strides() {
        for m in [0, 1, 2, 7, 8, 11, 16, 33] {
            for k in [1, 5, 8, 16, 64, 257] {
                for n in [0, 1, 3, 15, 16, 31, 33, 48, 64] {
                    check::<f32>((m, k, n));
                    check::<f64>((m, k, n));
                }
            }
        }
    }
}
