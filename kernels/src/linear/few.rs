//! The dense map of few rows: each weight is read once, for all rows.
//!
//! Its floor is the memory's read bandwidth: the outputs are shared out over spinning threads in contiguous blocks, a
//! few weight rows are read side by side, and partial sums stay in registers.

use half::{bf16, f16};

use crate::host::{self, Disjoint, Rows};
use crate::simd::{Real, vectorized};

/// A stored number that the arithmetic type `T` holds exactly.
pub(crate) trait Stored<T>: candle_core::WithDType + Send + Sync {
    /// The value, without branches or calls.
    fn widen(self) -> T;
}

impl Stored<f32> for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Stored<f64> for f64 {
    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }
}

impl Stored<f32> for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Stored<f32> for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        // Exponent and mantissa in place, the bias mended by an exact product that also normalises subnormals.
        let finite = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
        let special = magnitude | 0x7f80_0000;
        let value = if magnitude >= 0x0f80_0000 { special } else { finite };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }
}

/// Partial sums of a dot product; two AVX2 registers or one AVX-512 register.
const LANES: usize = 16;

/// Weights that a thread must have to itself to be worth waking: about a microsecond's read.
const GRAIN_BYTES: usize = 32 << 10;

/// `y = x wᵀ + bias` for `w` (outputs, x.width) row-major and `y` (x.rows, outputs).
pub(super) fn linear<T: Real, W: Stored<T>>(x: Rows<T>, w: &[W], bias: Option<&[T]>, y: &mut [T]) {
    let outputs = y.len() / x.rows;
    let y = Disjoint::new(y);
    let grain = (GRAIN_BYTES / (x.width * size_of::<W>()).max(1)).max(1);
    host::spinning(outputs, grain, |range| {
        vectorized(|| block(x, w, bias, &y, outputs, range.start, range.end));
    });
}

/// Outputs `start..end` of all rows.
#[inline(always)]
fn block<T: Real, W: Stored<T>>(
    x: Rows<T>,
    w: &[W],
    bias: Option<&[T]>,
    y: &Disjoint<T>,
    outputs: usize,
    start: usize,
    end: usize,
) {
    let mut o = start;
    while o < end {
        // A tile holds 4 sums of LANES: as many weight rows as leave room for the rows of x.
        let tile = end - o;
        let step = match (x.rows, tile) {
            (1, 4..) => 4,
            (_, 2..) => 2,
            _ => 1,
        };
        let mut row = 0;
        while row < x.rows {
            let left = x.rows - row;
            let at = Tile { x, w, bias, y, outputs, row, o };
            row += match (step, left) {
                (4, _) => at.run::<1, 4>(),
                (2, 1) => at.run::<1, 2>(),
                (2, _) => at.run::<2, 2>(),
                (_, 1) => at.run::<1, 1>(),
                (_, 2 | 3) => at.run::<2, 1>(),
                _ => at.run::<4, 1>(),
            };
        }
        o += step;
    }
}

/// Rows `row..row + M` of x against weight rows `o..o + R`.
struct Tile<'a, T, W> {
    x: Rows<'a, T>,
    w: &'a [W],
    bias: Option<&'a [T]>,
    y: &'a Disjoint<T>,
    outputs: usize,
    row: usize,
    o: usize,
}

impl<T: Real, W: Stored<T>> Tile<'_, T, W> {
    #[inline(always)]
    fn run<const M: usize, const R: usize>(&self) -> usize {
        let k = self.x.width;
        let xs: [&[T]; M] = std::array::from_fn(|m| self.x.row(self.row + m));
        let ws: [&[W]; R] = std::array::from_fn(|r| &self.w[(self.o + r) * k..(self.o + r + 1) * k]);
        let sums = dots(&xs, &ws);
        for (m, sums) in sums.iter().enumerate() {
            // SAFETY: outputs o..o + R of a row belong to the one thread whose range holds them.
            let y = unsafe { self.y.slice((self.row + m) * self.outputs + self.o, R) };
            for r in 0..R {
                y[r] = sums[r] + self.bias.map_or(T::ZERO, |b| b[self.o + r]);
            }
        }
        M
    }
}

/// All dot products of M rows of x with R rows of weights, all of one length.
#[inline(always)]
fn dots<T: Real, W: Stored<T>, const M: usize, const R: usize>(xs: &[&[T]; M], ws: &[&[W]; R]) -> [[T; R]; M] {
    let n = ws[0].len() / LANES;
    let xc: [&[[T; LANES]]; M] = std::array::from_fn(|m| &xs[m].as_chunks::<LANES>().0[..n]);
    let wc: [&[[W; LANES]]; R] = std::array::from_fn(|r| &ws[r].as_chunks::<LANES>().0[..n]);
    let mut acc = [[[T::ZERO; LANES]; R]; M];
    for c in 0..n {
        for r in 0..R {
            let w: [T; LANES] = std::array::from_fn(|j| wc[r][c][j].widen());
            for m in 0..M {
                for j in 0..LANES {
                    acc[m][r][j] = w[j].mul_add(xc[m][c][j], acc[m][r][j]);
                }
            }
        }
    }
    let mut sums = [[T::ZERO; R]; M];
    for m in 0..M {
        for r in 0..R {
            let mut half = LANES / 2;
            while half > 0 {
                for j in 0..half {
                    let other = acc[m][r][j + half];
                    acc[m][r][j] += other;
                }
                half /= 2;
            }
            let mut sum = acc[m][r][0];
            for i in n * LANES..ws[r].len() {
                sum = ws[r][i].widen().mul_add(xs[m][i], sum);
            }
            sums[m][r] = sum;
        }
    }
    sums
}
