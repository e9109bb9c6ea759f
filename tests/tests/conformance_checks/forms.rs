//! One function, many forms: parallel, stepped, chunked, packed, at lower precision, as a matrix.

use std::sync::Arc;

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use semisep_core::{Context, MixerConfig, State, VarBuilder};
use semisep_tests::{assert_close, randn, relative_rms};

use super::{Spread, assert_same_state, build, build_from, continued, forward, stepped};

const L: usize = 23;

/// Tolerances for outputs: f64 is the proof, f32 the path that users run.
const LADDER: [(DType, f64); 2] = [(DType::F64, 1e-11), (DType::F32, 1e-5)];

pub(crate) fn steps(config: &dyn MixerConfig, d: usize) -> Result<()> {
    for (dtype, tolerance) in LADDER {
        let mixer = build(config, d, dtype)?;
        if !mixer.causal() {
            return Ok(());
        }
        let x = randn(1, &[2, L, d], dtype)?;
        let (mut parallel, mut single) = (mixer.new_state(2)?, mixer.new_state(2)?);
        let want = continued(&*mixer, &x, &mut parallel)?;
        assert_close("with and without a state", &forward(&*mixer, &x)?, &want, tolerance);
        let steps: Vec<Tensor> = (0..L)
            .map(|t| stepped(&*mixer, &x.i((.., t))?.contiguous()?, &mut single))
            .collect::<Result<_>>()?;
        assert_close("steps", &Tensor::stack(&steps, 1)?, &want, tolerance);
        assert_same_state("steps", &single, &parallel, tolerance)?;
    }
    Ok(())
}

pub(crate) fn chunks(config: &dyn MixerConfig, d: usize) -> Result<()> {
    for (dtype, tolerance) in LADDER {
        let mixer = build(config, d, dtype)?;
        if !mixer.causal() {
            return Ok(());
        }
        let x = randn(2, &[2, L, d], dtype)?;
        let mut whole = mixer.new_state(2)?;
        let want = continued(&*mixer, &x, &mut whole)?;
        for split in [&[1, 22][..], &[3, 5, 15], &[7, 7, 7, 2], &[22, 1], &[1, 1, 1, 20], &[0, 23]] {
            let mut state = mixer.new_state(2)?;
            let (mut pieces, mut start) = (Vec::new(), 0);
            for &len in split {
                pieces.push(continued(&*mixer, &x.narrow(1, start, len)?, &mut state)?);
                start += len;
            }
            let what = format!("chunks {split:?}");
            assert_close(&what, &Tensor::cat(&pieces, 1)?, &want, tolerance);
            assert_same_state(&what, &state, &whole, tolerance)?;
        }
        // A chunk, then steps.
        let mut state = mixer.new_state(2)?;
        continued(&*mixer, &x.narrow(1, 0, 9)?, &mut state)?;
        for t in 9..L {
            let y = stepped(&*mixer, &x.i((.., t))?.contiguous()?, &mut state)?;
            assert_close(&format!("step {t} after a chunk"), &y, &want.i((.., t))?, 10.0 * tolerance);
        }
    }
    Ok(())
}

pub(crate) fn packed(config: &dyn MixerConfig, d: usize) -> Result<()> {
    let (dtype, tolerance) = LADDER[0];
    let mixer = build(config, d, dtype)?;
    let lengths = [7, 1, 0, 12];
    let x = randn(3, &[1, 20, d], dtype)?;
    let more = randn(4, &[1, 6, d], dtype)?;
    let (first, second) = ([0, 7, 8, 8, 20], [0, 2, 5, 6, 6]);
    let plain = mixer.forward(&x, &mut Context::packed(&first))?;
    if !mixer.causal() {
        for (i, &len) in lengths.iter().enumerate().filter(|(_, len)| **len > 0) {
            let want = forward(&*mixer, &x.narrow(1, first[i], len)?)?;
            let got = plain.narrow(1, first[i], len)?;
            assert_close(&format!("sequence {i}"), &got, &want, tolerance);
        }
        return Ok(());
    }
    let mut state = mixer.new_state(4)?;
    let y = mixer
        .forward(&x, &mut Context { state: Some(&mut state), cu_seqlens: Some(&first), shared: None })?;
    assert_close("packed with and without a state", &plain, &y, tolerance);
    let y2 = mixer
        .forward(&more, &mut Context { state: Some(&mut state), cu_seqlens: Some(&second), shared: None })?;
    let mut alone: Vec<State> = Vec::new();
    for i in 0..lengths.len() {
        let mut own = mixer.new_state(1)?;
        for (what, x, y, cu) in [("first", &x, &y, &first), ("second", &more, &y2, &second)] {
            let (start, len) = (cu[i], cu[i + 1] - cu[i]);
            let want = continued(&*mixer, &x.narrow(1, start, len)?, &mut own)?;
            if len > 0 {
                assert_close(
                    &format!("{what} part of sequence {i}"),
                    &y.narrow(1, start, len)?,
                    &want,
                    tolerance,
                );
            }
        }
        alone.push(own);
    }
    let seen: Vec<usize> = alone.iter().map(|s| s.seen()[0]).collect();
    assert_eq!(state.seen(), seen);
    // Ragged rows step on together as they would alone.
    let next = randn(5, &[4, d], dtype)?;
    let y = stepped(&*mixer, &next, &mut state)?;
    for (i, own) in alone.iter_mut().enumerate() {
        let want = stepped(&*mixer, &next.narrow(0, i, 1)?, own)?;
        assert_close(&format!("step of sequence {i}"), &y.narrow(0, i, 1)?, &want, tolerance);
    }
    Ok(())
}

pub(crate) fn rows(config: &dyn MixerConfig, d: usize) -> Result<()> {
    let (dtype, tolerance) = LADDER[0];
    let mixer = build(config, d, dtype)?;
    let x = randn(6, &[3, L, d], dtype)?;
    let y = forward(&*mixer, &x)?;
    for i in 0..3 {
        let want = forward(&*mixer, &x.narrow(0, i, 1)?)?;
        assert_close(&format!("row {i}"), &y.narrow(0, i, 1)?, &want, tolerance);
    }
    Ok(())
}

pub(crate) fn causal(config: &dyn MixerConfig, d: usize) -> Result<()> {
    let mixer = build(config, d, DType::F64)?;
    if !mixer.causal() {
        return Ok(());
    }
    let x = randn(7, &[1, L, d], DType::F64)?;
    let y = forward(&*mixer, &x)?;
    for t in [0, 1, 8, 15, L - 1] {
        let tail = randn(8, &[1, L - t, d], DType::F64)?;
        let changed = forward(&*mixer, &Tensor::cat(&[&x.narrow(1, 0, t)?, &tail], 1)?)?;
        if t > 0 {
            assert_close(&format!("before {t}"), &changed.narrow(1, 0, t)?, &y.narrow(1, 0, t)?, 0.0);
        }
        let moved = relative_rms(&changed.narrow(1, t, L - t)?, &y.narrow(1, t, L - t)?)?;
        assert!(moved > 1e-3, "a change at {t} has no effect from there on");
    }
    Ok(())
}

pub(crate) fn precisions(config: &dyn MixerConfig, d: usize) -> Result<()> {
    for rounded in [DType::BF16, DType::F16] {
        let source = Arc::new(Spread { rounded: Some(rounded) });
        let exact = build_from(config, d, VarBuilder::new(source.clone(), DType::F64, Device::Cpu))?;
        let small = build_from(config, d, VarBuilder::new(source, rounded, Device::Cpu))?;
        let x = randn(9, &[2, L, d], rounded)?;
        let want = forward(&*exact, &x.to_dtype(DType::F64)?)?;
        // Half-precision weights with f32 activations, as on the CPU, and with half-precision activations.
        let mixed = forward(&*small, &x.to_dtype(DType::F32)?)?;
        assert_close(&format!("{rounded:?} weights"), &mixed, &want, 1e-5);
        let half = forward(&*small, &x)?;
        assert_eq!(half.dtype(), rounded);
        assert_close(&format!("{rounded:?} data"), &half, &want, 2e-2);
    }
    Ok(())
}

pub(crate) fn matrix(config: &dyn MixerConfig, d: usize) -> Result<()> {
    let mixer = build(config, d, DType::F64)?;
    let x = randn(10, &[2, L, d], DType::F64)?;
    let Some(mixing) = mixer.matrix(&x)? else { return Ok(()) };
    assert_eq!(mixing.matrix.dims()[2..], [L, L]);
    let product = mixing.matrix.contiguous()?.matmul(&mixing.values.contiguous()?)?;
    assert_close("matrix times values", &product, &mixing.output, 1e-11);
    Ok(())
}

pub(crate) fn empty(config: &dyn MixerConfig, d: usize) -> Result<()> {
    let mixer = build(config, d, DType::F32)?;
    let nothing = Tensor::zeros((2, 0, d), DType::F32, &Device::Cpu)?;
    assert_eq!(forward(&*mixer, &nothing)?.dims(), [2, 0, d]);
    if !mixer.causal() {
        return Ok(());
    }
    let mut state = mixer.new_state(2)?;
    continued(&*mixer, &randn(11, &[2, 3, d], DType::F32)?, &mut state)?;
    let before = state.fork()?;
    let y = continued(&*mixer, &nothing, &mut state)?;
    assert_eq!(y.dims(), [2, 0, d]);
    assert_same_state("no tokens", &state, &before, 0.0)
}
