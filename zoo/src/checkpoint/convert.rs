//! Stored elements to tensors: read from the mapped file in pieces, on all threads, and written once.

use candle_core::{DType, Device, Tensor, WithDType};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;
use semisep_kernels::Quantised;

use super::{Stored, StoredType, View};
use crate::files::Mapped;
use crate::{Error, Result};

/// Bytes of the file that are in memory at a time.
const PIECE: usize = 32 << 20;
/// Elements a task.
const TASK: usize = 1 << 16;

/// What a tensor became.
pub(super) struct Converted {
    pub(super) tensor: Tensor,
    /// How many elements are NaN or infinite.
    pub(super) non_finite: usize,
}

/// Elements of a stored tensor.
pub(super) struct Source<'a> {
    pub(super) file: &'a Mapped,
    pub(super) stored: &'a Stored,
    pub(super) view: &'a View,
}

/// The elements of all sources, one source after the other, plus a constant, in `dtype` and a shape of the same size; the
/// files' pages are let go of.
///
/// # Errors
/// If a stored type is no number, or `dtype` is not one of f64, f32, f16 and bf16.
pub(super) fn convert(
    sources: &[Source<'_>],
    shape: &[usize],
    dtype: DType,
    device: &Device,
    plus: f64,
) -> Result<Converted> {
    match dtype {
        DType::F64 => to::<f64>(sources, shape, device, plus),
        DType::F32 => to::<f32>(sources, shape, device, plus),
        DType::F16 => to::<f16>(sources, shape, device, plus),
        DType::BF16 => to::<bf16>(sources, shape, device, plus),
        _ => Err(Error::new(format!("weights can be f64, f32, f16 or bf16, not {dtype:?}"))),
    }
}

fn to<T: Target>(sources: &[Source<'_>], shape: &[usize], device: &Device, plus: f64) -> Result<Converted> {
    // First: of such a type a file may hold no bytes for as many elements as it likes.
    let other = |s: &&Source<'_>| {
        matches!(s.stored.dtype, StoredType::Bool | StoredType::Unknown | StoredType::Other { .. })
    };
    if let Some(source) = sources.iter().find(other) {
        return Err(no_numbers(source));
    }
    let mut values = T::zeros(sources.iter().map(|s| s.view.elements()).sum());
    semisep_kernels::use_huge_pages(&mut values);
    let mut rest = &mut values[..];
    for source in sources {
        let (mine, others) = rest.split_at_mut(source.view.elements());
        read(source, mine, plus)?;
        rest = others;
    }
    let count = |values: &[T]| values.iter().filter(|v| !v.finite()).count();
    let non_finite = if values.len() <= TASK {
        count(&values)
    } else {
        candle_core::utils::with_threadpool(|| values.par_chunks(TASK).map(count).sum())
    };
    Ok(Converted { tensor: Tensor::from_vec(values, shape, device)?, non_finite })
}

/// The refusal of a type that is no number.
fn no_numbers(source: &Source<'_>) -> Error {
    let stored = source.stored;
    let message = format!("{} has elements of type {}, expected numbers", stored.name, stored.dtype);
    Error::at(source.file.path(), message).hint("use a checkpoint in bf16, f16 or f32")
}

fn read<T: Target>(source: &Source<'_>, values: &mut [T], plus: f64) -> Result<()> {
    let Stored { log_negative, plus: own, .. } = *source.stored;
    let change = Change { plus: plus + own, log_negative };
    match source.stored.dtype {
        StoredType::F64 => read_as::<f64, T>(source, values, change),
        StoredType::F32 => read_as::<f32, T>(source, values, change),
        StoredType::F16 => read_as::<f16, T>(source, values, change),
        StoredType::BF16 => read_as::<bf16, T>(source, values, change),
        StoredType::I64 => read_as::<i64, T>(source, values, change),
        StoredType::I32 => read_as::<i32, T>(source, values, change),
        StoredType::I16 => read_as::<i16, T>(source, values, change),
        StoredType::I8 => read_as::<i8, T>(source, values, change),
        StoredType::U64 => read_as::<u64, T>(source, values, change),
        StoredType::U32 => read_as::<u32, T>(source, values, change),
        StoredType::U16 => read_as::<u16, T>(source, values, change),
        StoredType::U8 => read_as::<u8, T>(source, values, change),
        StoredType::Blocks(_) | StoredType::Packed(_) => read_blocks(source, values, change)?,
        StoredType::Bool | StoredType::Unknown | StoredType::Other { .. } => return Err(no_numbers(source)),
    }
    Ok(())
}

fn read_as<S: Element, T: Target>(source: &Source<'_>, values: &mut [T], change: Change) {
    let Source { file, stored, view } = source;
    if values.is_empty() {
        return;
    }
    if view.run() < values.len() {
        let range = stored.offset..stored.offset + stored.bytes;
        gather::<S, T>(&file.bytes()[range.clone()], view, values, change);
        file.release(range);
        return;
    }
    let first = stored.offset + view.start * S::WIDTH;
    for (i, piece) in values.chunks_mut(PIECE / S::WIDTH).enumerate() {
        let start = first + i * PIECE;
        let range = start..start + piece.len() * S::WIDTH;
        let bytes = &file.bytes()[range.clone()];
        if piece.len() <= TASK {
            cast_all::<S, T>(bytes, piece, change);
        } else {
            candle_core::utils::with_threadpool(|| {
                let tasks = piece.par_chunks_mut(TASK).zip(bytes.par_chunks(TASK * S::WIDTH));
                tasks.for_each(|(values, bytes)| cast_all::<S, T>(bytes, values, change));
            });
        }
        file.release(range);
    }
}

/// What happens to elements on their way.
#[derive(Clone, Copy, PartialEq)]
struct Change {
    /// `ln(-x)` in the stead of x.
    log_negative: bool,
    /// Added to that.
    plus: f64,
}

fn cast_all<S: Element, T: Target>(bytes: &[u8], values: &mut [T], change: Change) {
    let pairs = values.iter_mut().zip(bytes.chunks_exact(S::WIDTH));
    let Change { log_negative, plus } = change;
    if log_negative {
        pairs.for_each(|(value, bytes)| *value = T::of_f64((-S::read(bytes).f64()).ln() + plus));
    } else if plus == 0.0 {
        pairs.for_each(|(value, bytes)| *value = cast::<S, T>(bytes));
    } else {
        pairs.for_each(|(value, bytes)| *value = T::of_f64(S::read(bytes).f64() + plus));
    }
}

/// Elements of quantised blocks: the blocks become numbers first, all of them where the view jumps.
fn read_blocks<T: Target>(source: &Source<'_>, values: &mut [T], change: Change) -> Result<()> {
    let Source { file, stored, view } = source;
    if values.is_empty() {
        return Ok(());
    }
    let dtype = stored.dtype;
    let run = view.run() >= values.len();
    let (block, block_bytes) = (dtype.block(), dtype.bytes(dtype.block()).unwrap_or(1));
    let whole = |n: usize| n.is_multiple_of(block);
    // All that the file holds of it: the tensor itself may be a part of that.
    let (first, elements) = match run && whole(view.start) && whole(values.len()) {
        true => (view.start, values.len()),
        false => (0, stored.bytes / block_bytes * block),
    };
    let start = stored.offset + dtype.bytes(first).unwrap_or(0);
    let range = start..start + dtype.bytes(elements).unwrap_or(0);
    let blocks = &file.bytes()[range.clone()];
    let numbers = match dtype {
        StoredType::Packed(format) => format.dequantise(blocks),
        StoredType::Blocks(format) => {
            let blocks = Quantised::new(format, (1, elements), blocks.to_vec())?;
            blocks.dequantise(DType::F32)?.flatten_all()?.to_vec1::<f32>()?
        }
        _ => Vec::new(),
    };
    file.release(range);
    let bytes: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
    let view = View { start: view.start - first, ..(*view).clone() };
    gather::<f32, T>(&bytes, &view, values, change);
    Ok(())
}

/// Elements in row-major order of a view that jumps.
fn gather<S: Element, T: Target>(bytes: &[u8], view: &View, values: &mut [T], change: Change) {
    let Some((&inner, outer)) = view.shape.split_last() else { return };
    let step = view.strides[outer.len()];
    let row = |number: usize, row: &mut [T]| {
        let (mut at, mut rest) = (view.start, number);
        for (&d, &stride) in outer.iter().zip(&view.strides).rev() {
            at += rest % d * stride;
            rest /= d;
        }
        if step == 1 || inner == 1 {
            cast_all::<S, T>(&bytes[at * S::WIDTH..(at + inner) * S::WIDTH], row, change);
            return;
        }
        for (j, value) in row.iter_mut().enumerate() {
            let element = (at + j * step) * S::WIDTH;
            cast_all::<S, T>(&bytes[element..element + S::WIDTH], std::slice::from_mut(value), change);
        }
    };
    if values.len() <= TASK {
        values.chunks_exact_mut(inner).enumerate().for_each(|(i, values)| row(i, values));
    } else {
        candle_core::utils::with_threadpool(|| {
            let rows = values.par_chunks_exact_mut(inner).with_min_len((TASK / inner).max(1));
            rows.enumerate().for_each(|(i, values)| row(i, values));
        });
    }
}

#[inline(always)]
fn cast<S: Element, T: Target>(bytes: &[u8]) -> T {
    let value = S::read(bytes);
    if S::FITS_F32 { T::of_f32(value.f32()) } else { T::of_f64(value.f64()) }
}

/// A stored element, little-endian.
trait Element: Copy {
    const WIDTH: usize;
    /// Whether f32 holds every value.
    const FITS_F32: bool;
    fn read(bytes: &[u8]) -> Self;
    fn f32(self) -> f32;
    fn f64(self) -> f64;
}

macro_rules! element {
    ($($t:ty, $fits:literal, $f32:expr, $f64:expr;)*) => {$(
        impl Element for $t {
            const WIDTH: usize = size_of::<$t>();
            const FITS_F32: bool = $fits;
            #[inline(always)]
            fn read(bytes: &[u8]) -> Self {
                let mut exact = [0; size_of::<$t>()];
                exact.copy_from_slice(bytes);
                <$t>::from_le_bytes(exact)
            }
            #[inline(always)]
            fn f32(self) -> f32 { $f32(self) }
            #[inline(always)]
            fn f64(self) -> f64 { $f64(self) }
        }
    )*};
}

element! {
    f64, false, |v: f64| v as f32, |v| v;
    f32, true, |v| v, f64::from;
    f16, true, f16::to_f32, f16::to_f64;
    bf16, true, bf16::to_f32, bf16::to_f64;
    i64, false, |v: i64| v as f32, |v: i64| v as f64;
    i32, false, |v: i32| v as f32, f64::from;
    i16, true, f32::from, f64::from;
    i8, true, f32::from, f64::from;
    u64, false, |v: u64| v as f32, |v: u64| v as f64;
    u32, false, |v: u32| v as f32, f64::from;
    u16, true, f32::from, f64::from;
    u8, true, f32::from, f64::from;
}

/// An element in memory.
trait Target: WithDType {
    /// Zeros straight from the operating system, untouched until written.
    fn zeros(n: usize) -> Vec<Self>;
    fn of_f32(v: f32) -> Self;
    fn of_f64(v: f64) -> Self;
    fn finite(self) -> bool;
}

macro_rules! target {
    ($($t:ty, $zeros:expr, $of_f32:expr, $of_f64:expr;)*) => {$(
        impl Target for $t {
            fn zeros(n: usize) -> Vec<Self> { $zeros(n) }
            #[inline(always)]
            fn of_f32(v: f32) -> Self { $of_f32(v) }
            #[inline(always)]
            fn of_f64(v: f64) -> Self { $of_f64(v) }
            #[inline(always)]
            fn finite(self) -> bool { self.is_finite() }
        }
    )*};
}

target! {
    f64, |n| vec![0.0; n], f64::from, |v| v;
    f32, |n| vec![0.0; n], |v| v, |v: f64| v as f32;
    f16, |n| vec![0u16; n].reinterpret_into::<f16>(), f16::from_f32, f16::from_f64;
    bf16, |n| vec![0u16; n].reinterpret_into::<bf16>(), bf16::from_f32, bf16::from_f64;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, Mapped) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let mapped = Mapped::open(file.path()).unwrap();
        (file, mapped)
    }

    fn all(file: &Mapped, stored: &Stored, dtype: DType) -> Result<Converted> {
        let view = stored.view();
        let source = Source { file, stored, view: &view };
        convert(&[source], &stored.shape, dtype, &Device::Cpu, 0.0)
    }

    fn stored(
        dtype: StoredType,
        shape: &[usize],
        strides: Option<Vec<usize>>,
        offset: usize,
        bytes: usize,
    ) -> Stored {
        let elements = shape.iter().product();
        Stored {
            name: "t".into(),
            dtype,
            shape: shape.into(),
            strides,
            offset,
            bytes,
            elements,
            ..Stored::default()
        }
    }

    /// Over several tasks and pieces, from an odd offset: every element arrives, in every dtype.
    #[test]
    fn all_pairs_of_types() {
        let n = PIECE / 4 + 3 * TASK + 5;
        let source: Vec<f32> = (0..n).map(|i| (i % 251) as f32 - 125.0).collect();
        let bytes: Vec<u8> = [7].into_iter().chain(source.iter().flat_map(|v| v.to_le_bytes())).collect();
        let (_keep, file) = file(&bytes);
        let stored = stored(StoredType::F32, &[n], None, 1, 4 * n);
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let read = all(&file, &stored, dtype).unwrap();
            assert_eq!((read.tensor.dtype(), read.non_finite), (dtype, 0));
            let back = read.tensor.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            assert!(back == source, "{dtype:?}");
        }
    }

    /// A double goes to half precision in one rounding.
    #[test]
    fn one_rounding_only() {
        let value = 1.0 + 2f64.powi(-9) + 2f64.powi(-40);
        let (_keep, file) = file(&value.to_le_bytes());
        let read = all(&file, &stored(StoredType::F64, &[1], None, 0, 8), DType::F16);
        assert_eq!(read.unwrap().tensor.to_vec1::<f16>().unwrap(), [f16::from_f64(value)]);
    }

    #[test]
    fn views_and_what_is_not_finite() {
        let source = [0.0f32, 1.0, f32::NAN, 3.0, 4.0, f32::INFINITY];
        let (_keep, file) = file(&source.map(f32::to_le_bytes).concat());
        let view = stored(StoredType::F32, &[3, 2], Some(vec![1, 3]), 0, 24);
        let read = all(&file, &view, DType::F64).unwrap();
        assert_eq!(read.non_finite, 2);
        let rows = read.tensor.to_vec2::<f64>().unwrap();
        assert_eq!((rows[0].as_slice(), rows[1].as_slice()), (&[0.0, 3.0][..], &[1.0, 4.0][..]));
        let bools = stored(StoredType::Bool, &[2], None, 0, 2);
        assert!(all(&file, &bools, DType::F32).is_err());
    }
}
