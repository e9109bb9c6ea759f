//! The sequences of a batch, plain or packed, under one description.

use candle_core::{Result, bail};

/// One sequence: where its tokens lie when (b, l) is flattened to one row of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// First token.
    pub(crate) start: usize,
    /// Number of tokens; 0 is legal and leaves the state as it was.
    pub(crate) len: usize,
}

/// The sequences of a (b, l, ...) input: its rows, or, with `cu_seqlens` = `[0, l0, l0 + l1, ..., l]`, the pieces of its
/// only row. The k-th sequence belongs to row k of the states.
///
/// # Errors
/// If the boundaries do not start at 0, rise, and end at l, or b is not 1.
pub(crate) fn segments(op: &str, b: usize, l: usize, cu_seqlens: Option<&[usize]>) -> Result<Vec<Segment>> {
    let Some(cu) = cu_seqlens else {
        return Ok((0..b).map(|row| Segment { start: row * l, len: l }).collect());
    };
    if b != 1 {
        bail!("{op}: packed sequences need a batch of 1, got {b}: concatenate the rows along the length");
    }
    if cu.len() < 2 || cu[0] != 0 || cu[cu.len() - 1] != l || cu.windows(2).any(|w| w[0] > w[1]) {
        bail!("{op}: cu_seqlens must rise from 0 to the length {l}, got {cu:?}");
    }
    Ok(cu.windows(2).map(|w| Segment { start: w[0], len: w[1] - w[0] }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_pieces() -> Result<()> {
        let seg = |start, len| Segment { start, len };
        assert_eq!(segments("t", 2, 3, None)?, [seg(0, 3), seg(3, 3)]);
        assert_eq!(segments("t", 1, 5, Some(&[0, 2, 2, 5]))?, [seg(0, 2), seg(2, 0), seg(2, 3)]);
        for bad in [&[][..], &[0], &[1, 5], &[0, 6], &[0, 4], &[0, 3, 2, 5]] {
            assert!(segments("t", 1, 5, Some(bad)).is_err(), "{bad:?}");
        }
        assert!(segments("t", 2, 5, Some(&[0, 5])).is_err());
        Ok(())
    }
}
