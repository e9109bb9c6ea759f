//! Summed angles and the rotations by them, against their definitions.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::{DType, Result, Tensor, Var};
use common::{assert_close, random};
use semisep_kernels::{RotaryLayout, naive, phase_scan, turn_by_phase};

type Scan = fn(&Tensor, Option<&Tensor>, Option<&[usize]>) -> Result<(Tensor, Tensor)>;

/// Cosines of the sums and of the last ones, and the gradients of both inputs: whole turns do not count.
fn scan(delta: &Tensor, initial: Option<&Tensor>, cu: Option<&[usize]>, op: Scan) -> Result<Vec<Tensor>> {
    let delta = Var::from_tensor(delta)?;
    let initial = initial.map(Var::from_tensor).transpose()?;
    let (sums, last) = op(&delta, initial.as_deref(), cu)?;
    let both = |t: &Tensor, seed| -> Result<Tensor> {
        let t = t.to_dtype(DType::F64)?;
        t.cos()? + (t.sin()? * random(seed, t.dims(), DType::F64))?
    };
    let (sums, last) = (both(&sums, 1)?, both(&last, 2)?);
    let weighted = |t: &Tensor, seed| (t * random(seed, t.dims(), DType::F64))?.sum_all();
    let grads = (weighted(&sums, 3)? + weighted(&last, 4)?)?.backward()?;
    let vars = [Some(&delta), initial.as_ref()];
    let grads = vars.into_iter().flatten().map(|v| grads.get(v).unwrap().clone());
    Ok([sums, last].into_iter().chain(grads).collect())
}

#[test]
fn sums_are_the_definition() -> Result<()> {
    for (shape, cu) in [
        (&[2, 37, 3, 2][..], None),
        (&[1, 1, 4], None),
        (&[3, 300, 5], None),
        (&[1, 20, 2, 2], Some(&[0, 7, 7, 8, 20][..])),
    ] {
        let sequences = cu.map_or(shape[0], |cu| cu.len() - 1);
        let states: Vec<usize> = [&[sequences], &shape[2..]].concat();
        for initial in [false, true] {
            for (dtype, out, grad) in [(DType::F64, 1e-11, 1e-11), (DType::F32, 1e-5, 1e-4)] {
                // Steps of up to three radians each: hundreds of turns.
                let delta = random(5, shape, DType::F64).affine(2.0, 1.0)?.to_dtype(dtype)?;
                let start = initial.then(|| random(6, &states, dtype));
                let wide = |t: &Tensor| t.to_dtype(DType::F64);
                let wide_start = start.as_ref().map(wide).transpose()?;
                let want = scan(&wide(&delta)?, wide_start.as_ref(), cu, naive::phase_scan)?;
                let got = scan(&delta, start.as_ref(), cu, phase_scan)?;
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let what = format!("{shape:?} {dtype:?} initial {initial}: {i}");
                    assert_close(&what, got, want, if i < 2 { out } else { grad });
                }
            }
        }
    }
    Ok(())
}

#[test]
fn small_sums_are_kept_and_large_ones_reduced() -> Result<()> {
    let delta = Tensor::full(1.5f32, (1, 100_000, 1), &candle_core::Device::Cpu)?;
    let (sums, last) = phase_scan(&delta, None, None)?;
    let sums = sums.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(sums[..3], [1.5, 3.0, 4.5]);
    assert!(sums.iter().all(|s| s.abs() <= 50.3));
    let last = f64::from(last.flatten_all()?.to_vec1::<f32>()?[0]);
    let turns = (last - 150_000.0) / std::f64::consts::TAU;
    assert!((turns - turns.round()).abs() < 1e-5);
    Ok(())
}

type Turn = fn(&Tensor, Option<&Tensor>, &Tensor, RotaryLayout) -> Result<Tensor>;

/// Output and gradients of x, bias and phase.
fn turn(
    x: &Tensor,
    bias: Option<&Tensor>,
    phase: &Tensor,
    layout: RotaryLayout,
    op: Turn,
) -> Result<Vec<Tensor>> {
    let (x, phase) = (Var::from_tensor(x)?, Var::from_tensor(phase)?);
    let bias = bias.map(Var::from_tensor).transpose()?;
    let y = op(&x, bias.as_deref(), &phase, layout)?;
    let grads = (y.to_dtype(DType::F64)? * random(9, y.dims(), DType::F64))?.sum_all()?.backward()?;
    let vars = [Some(&x), Some(&phase), bias.as_ref()];
    let grads = vars.into_iter().flatten().map(|v| grads.get(v).unwrap().clone());
    Ok([y].into_iter().chain(grads).collect())
}

#[test]
fn turns_are_the_definition() -> Result<()> {
    // (b, l, r, g, n), heads, angles
    for (shape, h, s) in [
        ([2, 5, 1, 3, 8], 3, 2),
        ([1, 9, 3, 1, 12], 4, 6),
        ([2, 1, 2, 2, 7], 6, 3),
        ([1, 70, 2, 4, 64], 4, 16),
    ] {
        let [b, l, r, _, n] = shape;
        for (layout, biased) in
            [(RotaryLayout::Half, true), (RotaryLayout::Interleaved, true), (RotaryLayout::Half, false)]
        {
            let x = random(1, &shape, DType::F64);
            let bias = biased.then(|| random(3, &[h, r, n], DType::F64));
            let phase = random(2, &[b, l, h, s], DType::F64).affine(40.0, 0.0)?;
            for (dtype, out, grad) in [(DType::F64, 1e-13, 1e-12), (DType::F32, 1e-5, 1e-4)] {
                let to = |t: &Tensor, dtype| t.to_dtype(dtype);
                let (x, phase) = (to(&x, dtype)?, to(&phase, dtype)?);
                let bias = bias.as_ref().map(|t| to(t, dtype)).transpose()?;
                let wide = bias.as_ref().map(|t| to(t, DType::F64)).transpose()?;
                let (x64, phase64) = (to(&x, DType::F64)?, to(&phase, DType::F64)?);
                let want = turn(&x64, wide.as_ref(), &phase64, layout, naive::turn_by_phase)?;
                let got = turn(&x, bias.as_ref(), &phase, layout, turn_by_phase)?;
                assert_eq!(got.len(), want.len());
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let what = format!("{shape:?} {layout:?} {dtype:?} bias {biased}: {i}");
                    assert_close(&what, got, want, if i == 0 { out } else { grad });
                }
            }
        }
    }
    Ok(())
}

#[test]
fn bad_shapes_are_named() {
    let x = random(1, &[1, 4, 1, 2, 6], DType::F32);
    let error = |phase: &[usize]| {
        turn_by_phase(&x, None, &random(2, phase, DType::F32), RotaryLayout::Half).unwrap_err().to_string()
    };
    assert!(error(&[1, 4, 2, 4]).contains("4 angles, but 6 features make only 3 pairs"));
    assert!(error(&[1, 4, 3, 2]).contains("2 groups of x do not divide the 3 heads of phase"));
    assert!(error(&[1, 5, 2, 2]).contains("phase has shape (1, 5, 2, 2), expected (1, 4, 2, 2)"));
    let delta = random(1, &[2, 4, 3], DType::F32);
    let error = phase_scan(&delta, Some(&random(1, &[1, 3], DType::F32)), None).unwrap_err().to_string();
    assert!(error.contains("initial has shape (1, 3), expected (2, 3)"));
}
