//! The map of quantised weights against its definition: the blocks' numbers, and a dense map of them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use common::{assert_close, random};
use semisep_kernels::{Activations, BlockFormat, Matrix, Memory, Quantised, linear, naive};

/// A matrix of blocks with every bit pattern but for scales, which stay small numbers.
fn any_blocks(format: BlockFormat, rows: usize, columns: usize) -> Quantised {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes: Vec<u8> = Vec::new();
    while bytes.len() < rows * format.row_bytes(columns).unwrap() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.push((state >> 56) as u8);
    }
    let scales: &[usize] = match format {
        BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
        BlockFormat::Q6K => &[208],
        _ => &[0, 2],
    };
    for block in bytes.chunks_exact_mut(format.bytes()) {
        for &at in scales {
            // The sign and the mantissa stay; exponents between 2^-15 and 1.
            block[at + 1] &= 0b1011_1111;
        }
    }
    Quantised::new(format, (rows, columns), bytes).unwrap().with_activations(Activations::Exact)
}

/// Rows with each group of 32 rounded to a multiple of a 127th of its largest size, in f64.
fn rounded(x: &Tensor) -> Tensor {
    let mut numbers = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for group in numbers.chunks_exact_mut(32) {
        let largest = group.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        if largest > 0.0 {
            group
                .iter_mut()
                .for_each(|x| *x = (*x * (127.0 / largest)).round_ties_even() * (largest / 127.0));
        }
    }
    Tensor::from_vec(numbers, x.dims(), &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

/// What candle reads in the same bytes.
fn by_candle(w: &Quantised) -> Tensor {
    let storage = QStorage::from_data(Cow::Borrowed(w.bytes()), &Device::Cpu, w.format().ggml()).unwrap();
    QTensor::new(storage, w.dims()).unwrap().dequantize(&Device::Cpu).unwrap()
}

#[test]
fn blocks_are_read_as_candle_reads_them() -> Result<()> {
    for format in BlockFormat::ALL {
        let w = any_blocks(format, 37, 512);
        // candle subtracts offsets in one rounding more or less.
        assert_close(&format!("{format}"), &w.dequantise(DType::F32)?, &by_candle(&w), 1e-7);
    }
    Ok(())
}

#[test]
fn quantised_as_candle_quantises() -> Result<()> {
    for format in BlockFormat::ALL {
        let numbers = random(1, &[9, 768], DType::F32);
        let ours = Quantised::quantise(&numbers, format)?;
        assert_eq!(ours.bytes(), &QTensor::quantize(&numbers, format.ggml())?.data()?[..], "{format}");
        // Half a step of a uniform grid between the extremes of a block, twice over for what scales lose.
        let bits = [4, 4, 5, 5, 8, 4, 5, 6][BlockFormat::ALL.iter().position(|f| *f == format).unwrap()];
        let step = 2.0 * 2.0 / f64::from(1 << bits);
        let error = (ours.dequantise(DType::F32)? - &numbers)?.abs()?.max_all()?.to_scalar::<f32>()?;
        let largest = numbers.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(f64::from(error) < step * f64::from(largest), "{format}: {error}");
    }
    Ok(())
}

/// On both sides of the switch of methods, with one thread's work and with more.
#[test]
fn equals_the_dense_map_of_its_numbers() -> Result<()> {
    for format in BlockFormat::ALL {
        for (rows, columns, outputs) in [
            (0, 256, 3),
            (1, 256, 1),
            (1, 768, 1501),
            (2, 512, 33),
            (16, 256, 70),
            (17, 256, 70),
            (40, 1024, 600),
            (67, 512, 45),
        ] {
            let w = any_blocks(format, outputs, columns);
            let x = random(2, &[rows, columns], DType::F64);
            let bias = random(3, &[outputs], DType::F32);
            let what = format!("{format}, {rows} rows, {columns} -> {outputs}");
            let want = naive::linear(&x, &w.dequantise(DType::F64)?, Some(&bias))?;
            assert_close(&what, &w.apply(&x, Some(&bias))?, &want, 1e-11);
            let single = x.to_dtype(DType::F32)?;
            let exact =
                naive::linear(&single.to_dtype(DType::F64)?, &w.dequantise(DType::F64)?, Some(&bias))?;
            let got = w.apply(&single, Some(&bias))?;
            assert_eq!((got.dtype(), got.dims()), (DType::F32, &[rows, outputs][..]));
            assert_close(&format!("{what} f32"), &got, &exact, 1e-6);
            for (set, got) in w.apply_in_every_way(&single, Some(&bias))? {
                assert_close(&format!("{what} {set}"), &got, &exact, 1e-6);
            }
            let half = x.to_dtype(DType::BF16)?;
            let want = naive::linear(&half.to_dtype(DType::F64)?, &w.dequantise(DType::F64)?, None)?;
            let got = w.apply(&half, None)?;
            assert_eq!(got.dtype(), DType::BF16);
            assert_close(&format!("{what} bf16"), &got, &want, 1e-2);
        }
    }
    Ok(())
}

/// The same map of rounded activations, whatever the number of rows and the instructions; groups of zeros among them.
#[test]
fn rounds_activations_to_eight_bits() -> Result<()> {
    for format in BlockFormat::ALL {
        for (rows, columns, outputs) in
            [(1, 256, 1), (1, 768, 1501), (2, 512, 33), (7, 768, 70), (67, 512, 45)]
        {
            let w = any_blocks(format, outputs, columns).with_activations(Activations::Rounded);
            let zeros = Tensor::zeros((rows, 64), DType::F32, &Device::Cpu)?;
            let x = random(2, &[rows, columns - 64], DType::F32);
            let x = Tensor::cat(&[x.narrow(1, 0, 64)?, zeros, x.narrow(1, 64, columns - 128)?], 1)?;
            let bias = random(3, &[outputs], DType::F32);
            let want = naive::linear(&rounded(&x), &w.dequantise(DType::F64)?, Some(&bias))?;
            let what = format!("{format}, {rows} rows, {columns} -> {outputs}");
            assert_close(&what, &w.apply(&x, Some(&bias))?, &want, 1e-6);
            for (set, got) in w.apply_in_every_way(&x, Some(&bias))? {
                assert_close(&format!("{what} {set}"), &got, &want, 1e-6);
            }
            if outputs > 1 {
                // As near to the exact map as eight bits are to x; a single sum may be near zero.
                let exact = w.clone().with_activations(Activations::Exact).apply(&x, Some(&bias))?;
                assert_close(&format!("{what} exact"), &w.apply(&x, Some(&bias))?, &exact, 1e-2);
            }
            let double = x.to_dtype(DType::F64)?;
            let want = naive::linear(&double, &w.dequantise(DType::F64)?, None)?;
            assert_close(&format!("{what} f64"), &w.apply(&double, None)?, &want, 1e-11);
        }
    }
    Ok(())
}

/// What is no number stays none, in every row that it is in and in no other.
#[test]
fn no_number_is_rounded_to_one() -> Result<()> {
    for format in BlockFormat::ALL {
        let w = any_blocks(format, 3, 512).with_activations(Activations::Rounded);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random(4, &[2, 512], DType::F32).flatten_all()?.to_vec1::<f32>()?;
            x[300] = bad;
            for (set, y) in w.apply_in_every_way(&Tensor::from_vec(x, (2, 512), &Device::Cpu)?, None)? {
                let y = y.to_vec2::<f32>()?;
                assert!(y[0].iter().all(|y| !y.is_finite()), "{format} {set} {bad}: {y:?}");
                assert!(y[1].iter().all(|y| y.is_finite()), "{format} {set} {bad}: {y:?}");
            }
        }
    }
    Ok(())
}

/// Rows apart from each other, as parts of a projection are; leading dimensions of any number.
#[test]
fn strided_inputs() -> Result<()> {
    let w = any_blocks(BlockFormat::Q4K, 19, 256);
    let wide = random(5, &[2, 7, 600], DType::F32);
    let slices: [fn(&Tensor) -> Result<Tensor>; 3] = [
        |t| t.narrow(D::Minus1, 3, 256),
        |t| t.narrow(1, 2, 3)?.narrow(D::Minus1, 300, 256),
        |t| t.narrow(D::Minus1, 0, 256)?.transpose(0, 1),
    ];
    for slice in slices {
        let x = slice(&wide)?;
        let want = naive::linear(&x.contiguous()?.to_dtype(DType::F64)?, &w.dequantise(DType::F64)?, None)?;
        assert_close("slice", &w.apply(&x, None)?, &want, 1e-6);
    }
    Ok(())
}

/// Blocks in memory that others share are read where they lie.
#[test]
fn blocks_in_place() -> Result<()> {
    for format in BlockFormat::ALL {
        let w = any_blocks(format, 12, 512);
        let row = w.bytes().len() / 12;
        let memory: Memory = Arc::new([&[0xff; 7], w.bytes(), &[0xff; 9]].concat());
        let inside = Quantised::in_place(format, (9, 512), memory.clone(), 7 + 2 * row)?;
        assert_eq!(inside.bytes(), &w.bytes()[2 * row..11 * row]);
        let x = random(6, &[2, 512], DType::F64);
        assert_close("in place", &inside.apply(&x, None)?, &w.narrow(2, 9)?.apply(&x, None)?, 0.0);
        for (rows, start) in [(13, 7), (12, 17), (1, usize::MAX), (usize::MAX, 0)] {
            let error =
                Quantised::in_place(format, (rows, 512), memory.clone(), start).unwrap_err().to_string();
            assert!(error.starts_with(&format!("a matrix ({rows}, 512) in {format} takes ")), "{error}");
        }
    }
    Ok(())
}

#[test]
fn scales_that_are_no_numbers_are_counted() {
    for (format, halves) in [
        (BlockFormat::Q4_0, &[0][..]),
        (BlockFormat::Q4_1, &[0, 2]),
        (BlockFormat::Q5_0, &[0]),
        (BlockFormat::Q5_1, &[0, 2]),
        (BlockFormat::Q8_0, &[0]),
        (BlockFormat::Q4K, &[0, 2]),
        (BlockFormat::Q5K, &[0, 2]),
        (BlockFormat::Q6K, &[208]),
    ] {
        let w = any_blocks(format, 300, 2048);
        assert_eq!(w.non_finite(), 0, "{format}");
        let mut bytes = w.bytes().to_vec();
        let blocks = bytes.len() / format.bytes();
        for (number, bits) in [(0, [0x00, 0x7c]), (blocks / 2, [0x01, 0xfe]), (blocks - 1, [0x00, 0xfc])] {
            let at = number * format.bytes() + halves[number % halves.len()];
            bytes[at..at + 2].copy_from_slice(&bits);
        }
        let bad = Quantised::new(format, (300, 2048), bytes).unwrap();
        assert_eq!(bad.non_finite(), 3, "{format}");
        let x = random(1, &[1, 2048], DType::F32);
        for activations in [Activations::Exact, Activations::Rounded] {
            let of = |w: &Quantised| w.clone().with_activations(activations).checked_at_first_use("file: w");
            assert!(of(&w).apply(&x, None).is_ok() && of(&w).dequantise(DType::F32).is_ok());
            let ids = Tensor::new(&[299u32], &Device::Cpu).unwrap();
            let found = [
                of(&bad).apply(&x, None),
                of(&bad).apply(&x.zeros_like().unwrap(), None),
                of(&bad).apply(&random(1, &[100, 2048], DType::F32), None),
                of(&bad).apply(&x.to_dtype(DType::F64).unwrap(), None),
                of(&bad).gather(&ids),
            ];
            for result in found {
                let error = result.unwrap_err().to_string();
                assert!(
                    error.starts_with("file: w: 3 of the values are NaN or infinite"),
                    "{format}: {error}"
                );
            }
            assert!(of(&bad).gather(&Tensor::new(&[1u32], &Device::Cpu).unwrap()).is_ok());
            assert!(of(&bad).narrow(1, 100).unwrap().apply(&x, None).is_ok());
        }
    }
}

#[test]
fn rows_and_parts() -> Result<()> {
    for format in BlockFormat::ALL {
        let w = any_blocks(format, 40, 256);
        let all = w.dequantise(DType::F32)?;
        let ids = Tensor::new(&[3u32, 39, 0, 3], &Device::Cpu)?;
        assert_close("gather", &w.gather(&ids)?, &all.index_select(&ids, 0)?, 0.0);
        let part = Matrix::Quantised(w.clone()).narrow(0, 7, 20)?.narrow(0, 5, 11)?;
        assert_eq!((part.dims(), part.size_in_bytes()), (&[11, 256][..], 11 * w.bytes().len() / 40));
        assert_close("narrow", &part.to_tensor(DType::F32)?, &all.narrow(0, 12, 11)?, 0.0);
        let x = random(6, &[2, 256], DType::F64);
        assert_close("part", &part.apply(&x, None)?, &linear(&x, &part.to_tensor(DType::F64)?, None)?, 1e-11);
        assert!(w.narrow(30, 11).is_err() && w.narrow(usize::MAX, 2).is_err());
        assert!(w.gather(&Tensor::new(&[40u32], &Device::Cpu)?).is_err());
    }
    Ok(())
}

/// Gradients flow through to the input, in every precision; none is dropped silently.
#[test]
fn the_input_has_a_gradient() -> Result<()> {
    let w = any_blocks(BlockFormat::Q6K, 30, 256);
    for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 1e-4)] {
        let x = Var::from_tensor(&random(7, &[3, 256], dtype))?;
        let bias = Var::from_tensor(&random(8, &[30], dtype))?;
        let of = |y: Tensor| -> Result<[Tensor; 2]> {
            let grads = y.sqr()?.sum_all()?.backward()?;
            Ok([grads.get(&x).unwrap().clone(), grads.get(&bias).unwrap().clone()])
        };
        let got = of(w.apply(&x, Some(&bias))?)?;
        let want = of(naive::linear(&x, &w.dequantise(dtype)?, Some(&bias))?)?;
        for (got, want) in got.iter().zip(&want) {
            assert_close("gradient", got, want, tolerance);
        }
    }
    Ok(())
}

#[test]
fn sizes_and_names() {
    assert_eq!(BlockFormat::Q4K.for_columns(768), Some(BlockFormat::Q4K));
    assert_eq!(BlockFormat::Q4K.for_columns(96), Some(BlockFormat::Q5_0));
    assert_eq!(BlockFormat::Q6K.for_columns(96), Some(BlockFormat::Q8_0));
    assert_eq!(BlockFormat::Q8_0.for_columns(48), None);
    assert_eq!(BlockFormat::Q8_0.row_bytes(64), Some(68));
    assert_eq!(BlockFormat::Q6K.row_bytes(96), None);
    assert_eq!(BlockFormat::Q8_0.row_bytes(usize::MAX & !31), None);
    assert_eq!(BlockFormat::ALL.map(BlockFormat::name)[5], "q4_k");
}

#[test]
fn errors_say_what_was_expected() {
    let w = any_blocks(BlockFormat::Q8_0, 5, 64);
    let message = |e: Result<Tensor>| e.unwrap_err().to_string();
    let cases = [
        (
            message(w.apply(&random(1, &[2, 32], DType::F32), None)),
            "linear: x has shape (2, 32), expected (..., 64), as weight is (5, 64)",
        ),
        (
            message(w.apply(&random(1, &[2, 64], DType::F32), Some(&random(1, &[4], DType::F32)))),
            "linear: bias has shape (4), expected (5), the outputs of weight",
        ),
        (
            Quantised::new(BlockFormat::Q8_0, (2, 64), vec![0; 135]).unwrap_err().to_string(),
            "a matrix (2, 64) in q8_0 takes 136 bytes, found 135 bytes",
        ),
        (
            Quantised::new(BlockFormat::Q8_0, (2, 65), vec![0; 135]).unwrap_err().to_string(),
            "a matrix (2, 65) in q8_0 takes no whole number of blocks a row, found 135 bytes",
        ),
        (
            Quantised::quantise(&random(1, &[2, 33], DType::F32), BlockFormat::Q8_0).unwrap_err().to_string(),
            "33 columns are no whole number of q8_0 blocks",
        ),
    ];
    for (got, want) in cases {
        assert!(got.starts_with(want), "{got}");
    }
}
