//! Stored elements to tensors: read from the mapped file in pieces, on all threads, and written once.

use candle_core::{DType, Device, Tensor, WithDType};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Stored, StoredType};
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

/// The tensor with its elements in `dtype`, in a shape of the same size; the file's pages are let go of.
///
/// # Errors
/// If the stored type is no number, or `dtype` is not one of f64, f32, f16 and bf16.
pub(super) fn convert(
    file: &Mapped,
    stored: &Stored,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Converted> {
    match dtype {
        DType::F64 => to::<f64>(file, stored, shape, device),
        DType::F32 => to::<f32>(file, stored, shape, device),
        DType::F16 => to::<f16>(file, stored, shape, device),
        DType::BF16 => to::<bf16>(file, stored, shape, device),
        _ => Err(Error::new(format!("weights can be f64, f32, f16 or bf16, not {dtype:?}"))),
    }
}

fn to<T: Target>(file: &Mapped, stored: &Stored, shape: &[usize], device: &Device) -> Result<Converted> {
    let (values, non_finite) = match stored.dtype {
        StoredType::F64 => values::<f64, T>(file, stored),
        StoredType::F32 => values::<f32, T>(file, stored),
        StoredType::F16 => values::<f16, T>(file, stored),
        StoredType::BF16 => values::<bf16, T>(file, stored),
        StoredType::I64 => values::<i64, T>(file, stored),
        StoredType::I32 => values::<i32, T>(file, stored),
        StoredType::I16 => values::<i16, T>(file, stored),
        StoredType::I8 => values::<i8, T>(file, stored),
        StoredType::U64 => values::<u64, T>(file, stored),
        StoredType::U32 => values::<u32, T>(file, stored),
        StoredType::U16 => values::<u16, T>(file, stored),
        StoredType::U8 => values::<u8, T>(file, stored),
        StoredType::Bool | StoredType::Unknown | StoredType::Other { .. } => {
            let message = format!("{} has elements of type {}, expected numbers", stored.name, stored.dtype);
            return Err(Error::at(file.path(), message).hint("use a checkpoint in bf16, f16 or f32"));
        }
    };
    Ok(Converted { tensor: Tensor::from_vec(values, shape, device)?, non_finite })
}

fn values<S: Element, T: Target>(file: &Mapped, stored: &Stored) -> (Vec<T>, usize) {
    let mut values = T::zeros(stored.elements);
    let range = stored.offset..stored.offset + stored.bytes;
    let bytes = &file.bytes()[range.clone()];
    if let Some(strides) = &stored.strides {
        gather::<S, T>(bytes, &stored.shape, strides, &mut values);
        file.release(range);
    } else {
        let per_piece = PIECE / S::WIDTH;
        for (i, piece) in values.chunks_mut(per_piece).enumerate() {
            let start = i * PIECE;
            let bytes = &bytes[start..start + piece.len() * S::WIDTH];
            if piece.len() <= TASK {
                cast_all::<S, T>(bytes, piece);
            } else {
                candle_core::utils::with_threadpool(|| {
                    let tasks = piece.par_chunks_mut(TASK).zip(bytes.par_chunks(TASK * S::WIDTH));
                    tasks.for_each(|(values, bytes)| cast_all::<S, T>(bytes, values));
                });
            }
            file.release(range.start + start..range.start + start + bytes.len());
        }
    }
    let count = |values: &[T]| values.iter().filter(|v| !v.finite()).count();
    let non_finite = if values.len() <= TASK {
        count(&values)
    } else {
        candle_core::utils::with_threadpool(|| values.par_chunks(TASK).map(count).sum())
    };
    (values, non_finite)
}

fn cast_all<S: Element, T: Target>(bytes: &[u8], values: &mut [T]) {
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(S::WIDTH)) {
        *value = cast::<S, T>(bytes);
    }
}

/// Elements in row-major order from a view with strides.
fn gather<S: Element, T: Target>(bytes: &[u8], shape: &[usize], strides: &[usize], values: &mut [T]) {
    let Some((&inner, outer)) = shape.split_last().filter(|_| !values.is_empty()) else { return };
    let step = strides[outer.len()];
    let mut index = vec![0usize; outer.len()];
    for row in values.chunks_exact_mut(inner) {
        let start: usize = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
        for (j, value) in row.iter_mut().enumerate() {
            let at = (start + j * step) * S::WIDTH;
            *value = cast::<S, T>(&bytes[at..at + S::WIDTH]);
        }
        for (i, &d) in index.iter_mut().zip(outer).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
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

    fn stored(
        dtype: StoredType,
        shape: &[usize],
        strides: Option<Vec<usize>>,
        offset: usize,
        bytes: usize,
    ) -> Stored {
        let elements = shape.iter().product();
        Stored { name: "t".into(), dtype, shape: shape.into(), strides, file: 0, offset, bytes, elements }
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
            let read = convert(&file, &stored, &[n], dtype, &Device::Cpu).unwrap();
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
        let read = convert(&file, &stored(StoredType::F64, &[1], None, 0, 8), &[1], DType::F16, &Device::Cpu);
        assert_eq!(read.unwrap().tensor.to_vec1::<f16>().unwrap(), [f16::from_f64(value)]);
    }

    #[test]
    fn views_and_what_is_not_finite() {
        let source = [0.0f32, 1.0, f32::NAN, 3.0, 4.0, f32::INFINITY];
        let (_keep, file) = file(&source.map(f32::to_le_bytes).concat());
        let view = stored(StoredType::F32, &[3, 2], Some(vec![1, 3]), 0, 24);
        let read = convert(&file, &view, &[3, 2], DType::F64, &Device::Cpu).unwrap();
        assert_eq!(read.non_finite, 2);
        let rows = read.tensor.to_vec2::<f64>().unwrap();
        assert_eq!((rows[0].as_slice(), rows[1].as_slice()), (&[0.0, 3.0][..], &[1.0, 4.0][..]));
        let bools = stored(StoredType::Bool, &[2], None, 0, 2);
        assert!(convert(&file, &bools, &[2], DType::F32, &Device::Cpu).is_err());
    }
}
