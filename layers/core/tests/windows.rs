//! Caches of a window: what they hold, forget and save.

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use semisep_core::{State, StateKind};

fn tokens(b: usize, l: usize) -> Result<Tensor> {
    Tensor::arange(0f32, (b * l * 2) as f32, &Device::Cpu)?.reshape((b, l, 2))
}

/// Caches of a window of 4 and without one, given the same tokens.
fn windowed(batch: usize) -> Result<State> {
    let kind = StateKind::Cache { limit: Some(4) };
    let all = StateKind::Cache { limit: None };
    State::new("test", batch).with_zeros("k", all, (batch, 0, 2), DType::F32, &Device::Cpu)?.with_zeros(
        "w",
        kind,
        (batch, 0, 2),
        DType::F32,
        &Device::Cpu,
    )
}

fn append(state: &mut State, tokens: &Tensor, lengths: &[usize]) -> Result<()> {
    state.append("k", tokens, lengths)?;
    state.append("w", tokens, lengths)?;
    state.advance(lengths);
    Ok(())
}

/// The slots of both caches that the last 4 tokens of each row are in.
fn last(state: &State) -> Result<[Vec<Vec<f32>>; 2]> {
    let of = |name| -> Result<Vec<Vec<f32>>> {
        let rows = state.held(name)?.into_iter().zip(state.seen()).enumerate();
        rows.map(|(row, (held, &seen))| {
            let n = seen.min(4);
            state.get(name)?.i((row, held - n..held))?.contiguous()?.flatten_all()?.to_vec1()
        })
        .collect()
    };
    Ok([of("k")?, of("w")?])
}

#[test]
fn a_window_holds_what_is_within_reach_and_no_more() -> Result<()> {
    let mut state = windowed(2)?;
    append(&mut state, &tokens(1, 5)?, &[2, 3])?; // ragged
    let mut longest = 0;
    for i in 0..50 {
        append(&mut state, &tokens(2, 1)?.affine(1.0, f64::from(i))?, &[1, 1])?;
        let [all, window] = last(&state)?;
        assert_eq!(all, window, "token {i}");
        longest = longest.max(state.get("w")?.dim(1)?);
    }
    assert_eq!((longest, state.get("k")?.dim(1)? >= 53), (8, true));
    // A long piece is held as a whole until the next one comes.
    append(&mut state, &tokens(2, 30)?, &[30, 30])?;
    assert_eq!(last(&state)?[0], last(&state)?[1]);
    append(&mut state, &tokens(2, 1)?, &[1, 1])?;
    assert_eq!(state.get("w")?.dim(1)?, 8);
    assert_eq!(last(&state)?[0], last(&state)?[1]);
    assert_eq!(state.size_bytes(1000), 2 * 2 * 4 * (1000 + 4));
    Ok(())
}

#[test]
fn a_window_saves_the_same_whatever_the_pieces() -> Result<()> {
    let all = tokens(1, 23)?;
    let saved = |split: &[usize]| -> Result<State> {
        let (mut state, mut start) = (windowed(1)?, 0);
        for &len in split {
            append(&mut state, &all.narrow(1, start, len)?, &[len])?;
            start += len;
        }
        Ok(state)
    };
    let whole = saved(&[23])?;
    let (want, want_seen) = (whole.tensors()?["w"].flatten_all()?.to_vec1::<f32>()?, whole.seen());
    assert_eq!(want.len(), 2 * 7); // from token 16 on
    for split in [&[1; 23][..], &[8, 8, 7], &[20, 1, 1, 1]] {
        let mut state = saved(split)?;
        assert_eq!(state.tensors()?["w"].flatten_all()?.to_vec1::<f32>()?, want, "{split:?}");
        let mut loaded = windowed(1)?;
        loaded.load(state.tensors()?)?;
        assert_eq!(loaded.seen(), want_seen);
        for state in [&mut state, &mut loaded] {
            append(state, &tokens(1, 6)?, &[6])?;
            assert_eq!(last(state)?[0], last(state)?[1]);
        }
    }
    Ok(())
}

#[test]
fn a_window_is_truncated_as_far_as_it_reaches_back() -> Result<()> {
    let mut state = windowed(1)?;
    for _ in 0..9 {
        append(&mut state, &tokens(1, 1)?, &[1])?;
    }
    let held = state.held("w")?[0];
    assert_eq!(held, 5);
    assert!(state.clone().truncate(7).is_err());
    state.truncate(8)?;
    assert_eq!((state.held("w")?, state.held("k")?), (vec![4], vec![8]));
    state.truncate(8)
}
