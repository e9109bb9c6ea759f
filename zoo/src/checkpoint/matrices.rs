//! Matrices as they lie in the files: where these are mapped, opened without a copy and shared with the page cache, or
//! blocks copied as they are.

use candle_core::DType;
use half::{bf16, f16};
use semisep_kernels::{BlockFormat, InPlace, Matrix, Quantised, Run};

use super::{Checkpoint, Stored, StoredType, View, lying};

/// Most runs of rows of one matrix: with more, as where heads are interleaved, a copy multiplies faster.
const MAX_RUNS: usize = 8;
/// Bytes that are looked through by one thread; of more, each thread gets its share.
const ALONE: usize = 1 << 20;

/// A matrix as it is stored.
pub struct Found {
    /// The matrix.
    pub matrix: Matrix,
    /// How many of its elements, or of its blocks' scales, are NaN or infinite.
    pub non_finite: usize,
}

impl Checkpoint {
    /// The parts, one after the other, as rows of `columns` floats where they lie in the files. `None` if they are not of one
    /// float type that `dtype` holds exactly, do not consist of few runs of whole rows, or are not aligned.
    pub fn in_place(&self, parts: &[(&Stored, View)], columns: usize, dtype: DType) -> Option<Found> {
        let (stored, runs) = self.runs(parts, columns)?;
        let own = stored.float().filter(|&own| holds(dtype, own) && runs.len() <= MAX_RUNS)?;
        let matrix = InPlace::new(own, columns, runs.clone()).ok()?;
        let non_finite = runs.iter().map(|run| {
            let bytes = run.rows * columns * own.size_in_bytes();
            count_non_finite(own, &(*run.memory).as_ref()[run.start..run.start + bytes])
        });
        Some(Found { non_finite: non_finite.sum(), matrix: Matrix::InPlace(matrix) })
    }

    /// The parts, one after the other, as rows of `columns` in blocks: in place if that is asked for and they follow each other
    /// in a file, else a copy. `None` if they are no blocks of one format, and of `wanted` if that is given, or do not consist
    /// of whole rows.
    pub fn blocks(
        &self,
        parts: &[(&Stored, View)],
        columns: usize,
        wanted: Option<BlockFormat>,
        in_place: bool,
    ) -> Option<Found> {
        let (StoredType::Blocks(format), runs) = self.runs(parts, columns)? else { return None };
        let row_bytes = format.row_bytes(columns).filter(|_| wanted.is_none_or(|w| w == format))?;
        let matrix = match runs.as_slice() {
            [run] if in_place => {
                Quantised::in_place(format, (run.rows, columns), run.memory.clone(), run.start).ok()?
            }
            _ => {
                let (mut blocks, mut rows) = (Vec::new(), 0);
                for run in &runs {
                    let end = run.start + run.rows * row_bytes;
                    blocks.extend_from_slice((*run.memory).as_ref().get(run.start..end)?);
                    rows += run.rows;
                }
                self.release(parts);
                Quantised::new(format, (rows, columns), blocks).ok()?
            }
        };
        Some(Found { non_finite: matrix.non_finite(), matrix: Matrix::Quantised(matrix) })
    }

    /// The type of the parts, and where they lie as whole rows of `columns`. `None` if they are of several types, or do not
    /// consist of such rows.
    fn runs(&self, parts: &[(&Stored, View)], columns: usize) -> Option<(StoredType, Vec<Run>)> {
        let lying = lying(parts);
        let own = lying.first()?.0.dtype;
        let row_bytes = own.bytes(columns).filter(|bytes| *bytes > 0)?;
        let mut runs = Vec::<Run>::new();
        for (stored, view) in &lying {
            let run = view.run();
            let whole = stored.dtype == own
                && !stored.log_negative
                && stored.plus == 0.0
                && run > 0
                && run.is_multiple_of(columns)
                && view.start.is_multiple_of(columns);
            if !whole {
                return None;
            }
            let file = &self.files[stored.file];
            for first in view.runs() {
                let start = stored.offset + first / columns * row_bytes;
                runs.push(Run { memory: file.clone(), start, rows: run / columns });
            }
        }
        Some((own, runs))
    }

    /// Lets go of the memory behind the parts.
    fn release(&self, parts: &[(&Stored, View)]) {
        for (stored, _) in lying(parts) {
            self.files[stored.file].release(stored.offset..stored.offset.saturating_add(stored.bytes));
        }
    }
}

/// Whether `wide` has every value of `narrow`, and products in it are as fast.
fn holds(wide: DType, narrow: DType) -> bool {
    wide == narrow || (wide == DType::F32 && matches!(narrow, DType::F16 | DType::BF16))
}

/// NaN and infinite values among little-endian floats, on all threads.
fn count_non_finite(dtype: DType, bytes: &[u8]) -> usize {
    // Without the sign, a value is finite if its bits are a smaller number than those of infinity. The largest is found many
    // at a time, as signed numbers, for which every processor has an instruction; only where it is too large are they counted.
    let count = |bytes: &[u8]| match dtype {
        DType::F64 => above(bytes, |b| i64::from_le_bytes(b) & i64::MAX, f64::INFINITY.to_bits() as i64),
        DType::F16 => above(bytes, |b| i16::from_le_bytes(b) & i16::MAX, f16::INFINITY.to_bits() as i16),
        DType::BF16 => above(bytes, |b| i16::from_le_bytes(b) & i16::MAX, bf16::INFINITY.to_bits() as i16),
        _ => above(bytes, |b| i32::from_le_bytes(b) & i32::MAX, f32::INFINITY.to_bits() as i32),
    };
    let threads = candle_core::utils::get_num_threads().max(1);
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
