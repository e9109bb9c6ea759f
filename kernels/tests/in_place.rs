//! Matrices in memory of others against tensors of the same numbers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use common::{assert_close, random};
use half::{bf16, f16};
use semisep_kernels::{InPlace, Matrix, Memory, Run, linear};

/// Of bytes at an even address, as those of a mapped file are.
struct Aligned(Vec<u64>, usize);

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: so many bytes are in the vector.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.1) }
    }
}

fn memory(bytes: &[u8]) -> Memory {
    let words = bytes.chunks(8).map(|word| {
        let mut whole = [0; 8];
        whole[..word.len()].copy_from_slice(word);
        u64::from_ne_bytes(whole)
    });
    Arc::new(Aligned(words.collect(), bytes.len()))
}

fn bytes(numbers: &Tensor) -> Vec<u8> {
    let numbers = numbers.flatten_all().unwrap();
    match numbers.dtype() {
        DType::F64 => numbers.to_vec1::<f64>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F32 => numbers.to_vec1::<f32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => numbers.to_vec1::<f16>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        _ => numbers.to_vec1::<bf16>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// The rows of a matrix in runs of these lengths, in two memories by turns, each after 16 bytes of something else.
fn scattered(numbers: &Tensor, lengths: &[usize]) -> InPlace {
    let (rows, columns) = numbers.dims2().unwrap();
    assert_eq!(lengths.iter().sum::<usize>(), rows);
    let (mut memories, mut places, mut first) = ([vec![], vec![]], vec![], 0);
    for (i, &rows) in lengths.iter().enumerate() {
        let memory = &mut memories[i % 2];
        memory.extend([0xab; 16]);
        places.push((i % 2, memory.len(), rows));
        memory.extend(bytes(&numbers.narrow(0, first, rows).unwrap()));
        memory.resize(memory.len().next_multiple_of(8), 0xcd);
        first += rows;
    }
    let memories = memories.map(|bytes| memory(&bytes));
    let run = |(of, start, rows): (usize, usize, usize)| Run { memory: memories[of].clone(), start, rows };
    InPlace::new(numbers.dtype(), columns, places.into_iter().map(run).collect()).unwrap()
}

/// Row counts on both sides of the switch of methods; every pair of dtypes that a tensor may have.
#[test]
fn equals_a_tensor() -> Result<()> {
    use DType::{BF16, F16, F32, F64};
    for (x_dtype, dtype) in
        [(F32, F32), (F32, BF16), (F32, F16), (F64, F64), (F64, F32), (F64, BF16), (BF16, BF16), (F16, F16)]
    {
        for (columns, lengths) in [(7, &[5][..]), (80, &[3, 1, 40, 0, 7]), (130, &[64, 64, 1])] {
            let rows: usize = lengths.iter().sum();
            let w = random(1, &[rows, columns], F64).to_dtype(dtype)?;
            let in_place = scattered(&w, lengths);
            let bias = random(2, &[rows], F64).to_dtype(x_dtype)?;
            for n in [0, 1, 2, 5, 33, 140] {
                let x = random(3, &[n, columns], F64).to_dtype(x_dtype)?;
                for bias in [None, Some(&bias)] {
                    let (got, want) = (in_place.apply(&x, bias)?, linear(&x, &w, bias)?);
                    assert_eq!(got.dtype(), x_dtype);
                    let tolerance = if x_dtype == F64 { 1e-13 } else { 1e-6 };
                    let tolerance = if x_dtype.size_in_bytes() == 2 { 1e-2 } else { tolerance };
                    assert_close(&format!("{n} {columns} {x_dtype:?} {dtype:?}"), &got, &want, tolerance);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn rows_parts_and_views() -> Result<()> {
    let w = random(1, &[50, 24], DType::F32).to_dtype(DType::BF16)?;
    let matrix = Matrix::InPlace(scattered(&w, &[20, 3, 27]));
    assert_eq!((matrix.dims(), matrix.size_in_bytes()), (&[50, 24][..], 2400));
    assert_close("all", &matrix.to_tensor(DType::F32)?, &w, 0.0);
    let ids = Tensor::new(&[3u32, 49, 0, 21, 20, 22], &Device::Cpu)?;
    assert_close("gather", &matrix.gather(&ids)?, &w.index_select(&ids, 0)?, 0.0);
    let part = matrix.narrow(0, 7, 40)?.narrow(0, 5, 15)?;
    assert_eq!(part.dims(), [15, 24]);
    assert_close("narrow", &part.to_tensor(DType::F32)?, &w.narrow(0, 12, 15)?, 0.0);
    let x = random(6, &[2, 5, 40], DType::F32).narrow(D::Minus1, 3, 24)?.transpose(0, 1)?;
    let want = linear(&x, &w.narrow(0, 12, 15)?.contiguous()?, None)?;
    assert_close("view", &part.apply(&x, None)?, &want, 1e-6);
    assert!(matrix.narrow(0, 30, 21).is_err() && matrix.narrow(0, usize::MAX, 2).is_err());
    assert!(matrix.narrow(1, 0, 2).is_err());
    assert!(matrix.gather(&Tensor::new(&[50u32], &Device::Cpu)?).is_err());
    Ok(())
}

/// Every way to use a matrix finds values that are not finite, a part only its own; what the input brings is not blamed on it.
#[test]
fn what_is_not_finite_is_found_at_first_use() -> Result<()> {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let good = random(1, &[50, 24], DType::F32);
        let x = random(2, &[2, 24], DType::F32);
        let bad_x = x.affine(0.0, f64::NAN)?;
        let of = |numbers: &Tensor| -> Result<InPlace> {
            Ok(scattered(&numbers.to_dtype(dtype)?, &[20, 3, 27]).checked_at_first_use("file: w"))
        };
        let matrix = of(&good)?;
        assert!(matrix.apply(&bad_x, None)?.sum_all()?.to_scalar::<f32>()?.is_nan());
        assert_close("good", &matrix.apply(&x, None)?, &of(&good)?.narrow(0, 50)?.apply(&x, None)?, 0.0);
        let mut numbers = good.flatten_all()?.to_vec1::<f32>()?;
        (numbers[21 * 24 + 5], numbers[49 * 24]) = (f32::NAN, f32::NEG_INFINITY);
        let bad = Tensor::from_vec(numbers, (50, 24), &Device::Cpu)?;
        assert_eq!((of(&good)?.non_finite(), of(&bad)?.non_finite()), (0, 2));
        let id = |id: u32| Tensor::new(&[0, id], &Device::Cpu);
        let zeros = x.zeros_like()?;
        let found = [
            of(&bad)?.apply(&x, None),
            of(&bad)?.apply(&zeros, None),
            of(&bad)?.apply(&x.to_dtype(DType::F64)?, None),
            of(&bad)?.apply(&random(2, &[200, 24], DType::F32), None),
            of(&bad)?.apply(Var::from_tensor(&x)?.as_tensor(), None),
            of(&bad)?.gather(&id(49)?),
            of(&bad)?.to_tensor(DType::F32),
        ];
        for result in found {
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with("file: w: 2 of the values are NaN or infinite"), "{error}");
        }
        let matrix = of(&bad)?;
        assert!(matrix.gather(&id(48)?).is_ok() && matrix.narrow(0, 21)?.apply(&x, None).is_ok());
        let error = matrix.narrow(20, 3)?.apply(&x, None).unwrap_err().to_string();
        assert!(error.starts_with("file: w: 1 of the values"), "{error}");
        assert!(matrix.apply(&x, None).is_err());
    }
    Ok(())
}

#[test]
fn the_input_has_a_gradient() -> Result<()> {
    let w = random(1, &[9, 16], DType::F64);
    let x = Var::from_tensor(&random(7, &[3, 16], DType::F64))?;
    let grad =
        |y: Tensor| Ok::<_, candle_core::Error>(y.sqr()?.sum_all()?.backward()?.get(&x).unwrap().clone());
    let got = grad(scattered(&w, &[4, 5]).apply(&x, None)?)?;
    assert_close("gradient", &got, &grad(linear(&x, &w, None)?)?, 1e-12);
    Ok(())
}

#[test]
fn memory_that_is_too_short_or_askew_is_refused() {
    let memory = memory(&[0; 64]);
    let of = |dtype, columns, start, rows| {
        InPlace::new(dtype, columns, vec![Run { memory: memory.clone(), start, rows }])
            .map_err(|e| e.to_string())
    };
    assert!(of(DType::F32, 4, 0, 4).is_ok());
    assert!(of(DType::BF16, 4, 2, 7).is_ok());
    for (columns, start, rows) in
        [(4, 4, 4), (4, 64, 1), (4, usize::MAX - 3, 1), (usize::MAX, 0, 2), (1 << 40, 0, 1)]
    {
        assert!(of(DType::F32, columns, start, rows).unwrap_err().contains("reach past 64 bytes"));
    }
    assert!(of(DType::F32, 4, 2, 1).unwrap_err().contains("not aligned"));
    assert!(of(DType::U8, 4, 0, 1).unwrap_err().contains("float dtype"));
}
