//! Matrices as they lie in the files: where these are mapped, opened without a copy and shared with the page cache, or
//! blocks copied as they are.

use candle_core::DType;
use semisep_kernels::{BlockFormat, InPlace, Quantised, Run};

use super::{Checkpoint, Stored, StoredType, View, lying};

/// Most runs of rows of one matrix: with more, as where heads are interleaved, a copy multiplies faster.
const MAX_RUNS: usize = 8;

impl Checkpoint {
    /// The parts, one after the other, as rows of `columns` floats where they lie in the files. `None` if they are not of one
    /// float type that `dtype` holds exactly, do not consist of few runs of whole rows, or are not aligned.
    pub fn in_place(&self, parts: &[(&Stored, View)], columns: usize, dtype: DType) -> Option<InPlace> {
        let (stored, runs) = self.runs(parts, columns)?;
        let own = stored.float().filter(|&own| holds(dtype, own) && runs.len() <= MAX_RUNS)?;
        InPlace::new(own, columns, runs).ok()
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
    ) -> Option<Quantised> {
        let (StoredType::Blocks(format), runs) = self.runs(parts, columns)? else { return None };
        let row_bytes = format.row_bytes(columns).filter(|_| wanted.is_none_or(|w| w == format))?;
        if let ([run], true) = (runs.as_slice(), in_place) {
            return Quantised::in_place(format, (run.rows, columns), run.memory.clone(), run.start).ok();
        }
        let (mut blocks, mut rows) = (Vec::new(), 0);
        for run in &runs {
            let end = run.start + run.rows * row_bytes;
            blocks.extend_from_slice((*run.memory).as_ref().get(run.start..end)?);
            rows += run.rows;
        }
        self.release(parts);
        Quantised::new(format, (rows, columns), blocks).ok()
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
