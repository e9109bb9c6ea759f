//! Rotary embedding against recorded cases and its own identities.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, cases, random};
use semisep_kernels::{RotaryLayout, rotary};

const DEVICE: &Device = &Device::Cpu;

fn frequencies(dim: usize, base: f64) -> Result<Tensor> {
    let f: Vec<f64> = (0..dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim as f64)).collect();
    Tensor::new(f, DEVICE)
}

#[test]
fn golden_cases() -> Result<()> {
    for case in cases("rope") {
        for (dtype, out_tolerance, grad_tolerance) in [(DType::F64, 1e-12, 1e-12), (DType::F32, 1e-5, 1e-4)] {
            let x = case.var("x", dtype).unwrap();
            let (b, _, _, p) = x.dims4()?;
            let dim = case.number("dim").map_or(p, |d| d as usize);
            let inv_freq = frequencies(dim, case.number("base").unwrap_or(10_000.0))?;
            let offset = case.number("offset").unwrap_or(0.0) as usize;
            let layout = match case.flag("interleaved", false) {
                true => RotaryLayout::Interleaved,
                false => RotaryLayout::Half,
            };
            let y = rotary(&x, &inv_freq, &vec![offset; b], layout, None)?;
            assert_close(&case.name, &y, &case.get("out.y"), out_tolerance);
            let grads = case.loss(&[("y", &y)])?.backward()?;
            assert_close(&case.name, grads.get(&x).unwrap(), &case.get("grad.x"), grad_tolerance);
        }
    }
    Ok(())
}

/// Each element from its own angle, by the library's functions.
fn direct(x: &Tensor, inv_freq: &[f64], position: usize, layout: RotaryLayout) -> Result<Tensor> {
    let (b, l, h, p) = x.dims4()?;
    let mut y = x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    for (n, head) in y.chunks_exact_mut(p).enumerate() {
        let t = n / h % l;
        for (i, f) in inv_freq.iter().enumerate() {
            let (sin, cos) = ((position + t) as f64 * f).sin_cos();
            let (a, b) = match layout {
                RotaryLayout::Half => (i, i + inv_freq.len()),
                RotaryLayout::Interleaved => (2 * i, 2 * i + 1),
            };
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        }
    }
    Tensor::from_vec(y, (b, l, h, p), DEVICE)
}

#[test]
fn far_positions_keep_their_accuracy() -> Result<()> {
    for layout in [RotaryLayout::Half, RotaryLayout::Interleaved] {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-6), (DType::BF16, 1e-2)] {
            let x = random(1, &[1, 131, 2, 12], dtype);
            let inv_freq = frequencies(10, 10_000.0)?;
            let y = rotary(&x, &inv_freq, &[100_000], layout, None)?;
            assert_eq!(y.dtype(), dtype);
            let want = direct(&x, &inv_freq.to_vec1()?, 100_000, layout)?;
            assert_close("far positions", &y, &want, tolerance);
        }
    }
    Ok(())
}

#[test]
fn packed_sequences_and_offset_rows_are_separate_calls() -> Result<()> {
    let inv_freq = frequencies(8, 100.0)?;
    let x = random(2, &[1, 50, 3, 8], DType::F64);
    let cu = [0, 7, 7, 40, 50];
    let positions = [3, 9, 0, 1000];
    let y = rotary(&x, &inv_freq, &positions, RotaryLayout::Half, Some(&cu))?;
    for (k, w) in cu.windows(2).enumerate() {
        let piece = x.narrow(1, w[0], w[1] - w[0])?;
        let want = rotary(&piece, &inv_freq, &positions[k..=k], RotaryLayout::Half, None)?;
        assert_close("piece", &y.narrow(1, w[0], w[1] - w[0])?, &want, 1e-12);
    }
    let rows = random(3, &[2, 5, 3, 8], DType::F64);
    let y = rotary(&rows, &inv_freq, &[4, 17], RotaryLayout::Interleaved, None)?;
    for (k, position) in [4, 17].into_iter().enumerate() {
        let row = rows.narrow(0, k, 1)?;
        let want = rotary(&row, &inv_freq, &[position], RotaryLayout::Interleaved, None)?;
        assert_close("row", &y.narrow(0, k, 1)?, &want, 1e-14);
    }
    Ok(())
}

/// The gradient of a rotation is its inverse, so that rotating the gradient of <c, R x> gives c back.
#[test]
fn the_gradient_is_the_inverse_rotation() -> Result<()> {
    let inv_freq = frequencies(6, 50.0)?;
    let x = Var::from_tensor(&random(4, &[2, 40, 2, 9], DType::F64))?;
    let c = random(5, &[2, 40, 2, 9], DType::F64);
    for layout in [RotaryLayout::Half, RotaryLayout::Interleaved] {
        let y = rotary(&x, &inv_freq, &[11, 0], layout, None)?;
        let grads = (y * &c)?.sum_all()?.backward()?;
        let back = rotary(grads.get(&x).unwrap(), &inv_freq, &[11, 0], layout, None)?;
        assert_close("turned back", &back, &c, 1e-12);
    }
    Ok(())
}

#[test]
fn strided_and_empty_inputs() -> Result<()> {
    let inv_freq = frequencies(4, 50.0)?;
    let wide = random(6, &[2, 5, 3, 8], DType::F64);
    let part = wide.narrow(3, 2, 6)?;
    let y = rotary(&part, &inv_freq, &[1, 2], RotaryLayout::Half, None)?;
    let want = rotary(&part.contiguous()?, &inv_freq, &[1, 2], RotaryLayout::Half, None)?;
    assert_close("strided", &y, &want, 0.0);
    for shape in [[2, 0, 3, 8], [0, 5, 3, 8], [2, 5, 0, 8]] {
        let x = Tensor::zeros(&shape, DType::F32, DEVICE)?;
        let y = rotary(&x, &inv_freq, &vec![0; shape[0]], RotaryLayout::Half, None)?;
        assert_eq!(y.dims(), shape);
    }
    Ok(())
}

#[test]
fn bad_inputs_say_what_was_expected() -> Result<()> {
    let x = random(7, &[2, 5, 3, 6], DType::F32);
    let message = |x: &Tensor, f: &Tensor, positions: &[usize], cu: Option<&[usize]>| {
        rotary(x, f, positions, RotaryLayout::Half, cu).unwrap_err().to_string()
    };
    let f = frequencies(6, 50.0)?;
    let check = |message: String, part: &str| {
        assert!(message.contains("rotary: ") && message.contains(part), "{message}");
    };
    check(message(&x, &frequencies(8, 50.0)?, &[0, 0], None), "4 pairs");
    check(message(&x, &f.reshape((3, 1))?, &[0, 0], None), "shape (dim/2)");
    check(message(&x, &f.to_dtype(DType::U32)?, &[0, 0], None), "U32");
    check(message(&x, Var::from_tensor(&f)?.as_tensor(), &[0, 0], None), "detach");
    check(message(&x, &f, &[0], None), "1 positions for 2 sequences");
    check(message(&x, &f, &[0, 0], Some(&[0, 2, 5])), "batch of 1");
    check(message(&x.narrow(0, 0, 1)?, &f, &[0, 0], Some(&[0, 2, 4])), "length 5");
    check(message(&x.narrow(3, 0, 1)?.squeeze(3)?, &f, &[0, 0], None), "batch, length");
    check(message(&x.to_dtype(DType::U32)?, &f, &[0, 0], None), "expected a float");
    Ok(())
}
