//! Whether weights are finite: looked up at once, or when they are first used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Result, Tensor, bail};
use half::{bf16, f16};

use crate::host;
use crate::simd::Real;

/// Bytes that are looked through by one thread; of more, each thread gets its share.
const ALONE: usize = 1 << 20;

/// What is still to be known of weights.
#[derive(Debug)]
pub(super) struct FirstUse {
    /// What they are called where they come from.
    name: Arc<str>,
    /// Whether all of them are known to be finite.
    passed: AtomicBool,
}

impl FirstUse {
    pub(super) fn of(name: &str) -> Arc<Self> {
        Arc::new(Self { name: name.into(), passed: AtomicBool::new(false) })
    }

    /// The same of a part of them.
    pub(super) fn of_part(&self) -> Arc<Self> {
        let passed = AtomicBool::new(self.passed.load(Ordering::Relaxed));
        Arc::new(Self { name: self.name.clone(), passed })
    }

    /// Given a product with all of them. A weight that is not finite makes one that is not, whatever it was multiplied by;
    /// only if there is such a product, which the input may have made as well, are they looked at themselves.
    pub(super) fn met<T: Real>(&self, product: &[T], non_finite: impl FnOnce() -> usize) -> Result<()> {
        if self.passed.load(Ordering::Relaxed) || product.is_empty() {
            return Ok(());
        }
        if product.iter().any(|&y| y * T::ZERO != T::ZERO) {
            return self.count(non_finite());
        }
        self.passed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// So many of all of them are not finite.
    fn count(&self, non_finite: usize) -> Result<()> {
        if non_finite > 0 {
            bail!(
                "{}: {non_finite} of the values are NaN or infinite: the file is damaged, or training diverged",
                self.name
            );
        }
        self.passed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Given some of them as numbers.
    pub(super) fn some(&self, values: &Tensor, non_finite: impl FnOnce() -> usize) -> Result<()> {
        if self.passed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let sum = values.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?;
        if sum.is_finite() { Ok(()) } else { self.count(non_finite()) }
    }

    /// Before all of them are read.
    pub(super) fn all(&self, non_finite: impl FnOnce() -> usize) -> Result<()> {
        if self.passed.load(Ordering::Relaxed) { Ok(()) } else { self.count(non_finite()) }
    }
}

/// NaN and infinite values among little-endian floats, on all threads.
pub(super) fn count_non_finite(dtype: DType, bytes: &[u8]) -> usize {
    // Without the sign, a value is finite if its bits are a smaller number than those of infinity. The largest is found many
    // at a time, as signed numbers, for which every processor has an instruction; only where it is too large are they counted.
    let count = |bytes: &[u8]| match dtype {
        DType::F64 => above(bytes, |b| i64::from_le_bytes(b) & i64::MAX, f64::INFINITY.to_bits() as i64),
        DType::F16 => above(bytes, |b| i16::from_le_bytes(b) & i16::MAX, f16::INFINITY.to_bits() as i16),
        DType::BF16 => above(bytes, |b| i16::from_le_bytes(b) & i16::MAX, bf16::INFINITY.to_bits() as i16),
        _ => above(bytes, |b| i32::from_le_bytes(b) & i32::MAX, f32::INFINITY.to_bits() as i32),
    };
    let threads = host::threads();
    let share = bytes.len().div_ceil(threads).next_multiple_of(ALONE);
    let (mine, others) = bytes.split_at(share.min(bytes.len()));
    // Threads of its own, as all of them have the same to do: a pool's wake up one after the other.
    std::thread::scope(|scope| {
        let others: Vec<_> =
            others.chunks(share.max(1)).map(|part| scope.spawn(move || count(part))).collect();
        let found =
            others.into_iter().map(|other| other.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
        count(mine) + found.sum::<usize>()
    })
}

fn above<const N: usize, B: Ord + Copy + Default>(
    bytes: &[u8],
    magnitude: impl Fn([u8; N]) -> B,
    limit: B,
) -> usize {
    let magnitudes = bytes.as_chunks::<N>().0.iter().map(|&element| magnitude(element));
    match magnitudes.clone().fold(B::default(), Ord::max) {
        largest if largest < limit => 0,
        _ => magnitudes.filter(|&m| m >= limit).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite() {
        let values = [0.0, -1.0, f64::NAN, 1e30, f64::INFINITY, -65504.0, f64::NEG_INFINITY, -f64::NAN];
        let repeated = |n: usize| values.iter().copied().cycle().take(n);
        // Over several tasks.
        for n in [0, 8, 1 << 20, (1 << 20) + 8] {
            let f64s: Vec<u8> = repeated(n).flat_map(f64::to_le_bytes).collect();
            let f32s: Vec<u8> = repeated(n).flat_map(|v| (v as f32).to_le_bytes()).collect();
            let bf16s: Vec<u8> = repeated(n).flat_map(|v| bf16::from_f64(v).to_le_bytes()).collect();
            let f16s: Vec<u8> = repeated(n).flat_map(|v| f16::from_f64(v).to_le_bytes()).collect();
            assert_eq!(count_non_finite(DType::F64, &f64s), n / 2);
            assert_eq!(count_non_finite(DType::F32, &f32s), n / 2);
            assert_eq!(count_non_finite(DType::BF16, &bf16s), n / 2);
            // 1e30 is beyond half precision.
            assert_eq!(count_non_finite(DType::F16, &f16s), n / 8 * 5);
        }
    }
}
