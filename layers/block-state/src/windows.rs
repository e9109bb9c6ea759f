//! Where windows begin and end, and which contexts each of them has.

/// Where the contexts of a window come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The learned ones of the first window.
    Learned,
    /// The state of this sequence: the window began, or was made ready, in an earlier call.
    Carried(usize),
    /// The SSM's output at this token, counted over all rows.
    Token(usize),
}

/// The windows that the tokens of one call lie in, the sequences one after the other.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// Boundaries of the pieces of windows among all tokens.
    pub(crate) cu_seqlens: Vec<usize>,
    /// The contexts of each piece.
    pub(crate) pieces: Vec<Source>,
    /// The contexts that the next token of each sequence will see.
    pub(crate) next: Vec<Source>,
}

impl Windows {
    /// Sequences of `lengths` tokens after `seen` earlier ones, in windows of `w` tokens.
    pub(crate) fn new(lengths: &[usize], seen: &[usize], w: usize) -> Self {
        let (mut cu_seqlens, mut pieces, mut next) = (vec![0], vec![], vec![]);
        let mut start = 0; // of the sequence
        for (i, (&len, &seen)) in lengths.iter().zip(seen).enumerate() {
            let mut source = if seen == 0 { Source::Learned } else { Source::Carried(i) };
            let mut done = 0;
            while done < len {
                let piece = (w - (seen + done) % w).min(len - done);
                done += piece;
                cu_seqlens.push(start + done);
                pieces.push(source);
                if (seen + done).is_multiple_of(w) {
                    source = Source::Token(start + done - 1);
                }
            }
            // Before its first token, a sequence has nothing in its state yet.
            next.push(if seen + len == 0 { Source::Carried(i) } else { source });
            start += len;
        }
        Self { cu_seqlens, pieces, next }
    }
}

#[cfg(test)]
mod tests {
    use super::Source::{Carried, Learned, Token};
    use super::*;

    #[test]
    fn a_window_has_the_output_before_it() {
        let windows = Windows::new(&[7, 0, 4, 1], &[0, 0, 2, 3], 3);
        assert_eq!(windows.cu_seqlens, [0, 3, 6, 7, 8, 11, 12]);
        assert_eq!(windows.pieces, [Learned, Token(2), Token(5), Carried(2), Token(7), Carried(3)]);
        assert_eq!(windows.next, [Token(5), Carried(1), Token(10), Carried(3)]);
    }

    #[test]
    fn what_is_made_ready_at_a_boundary_is_carried() {
        assert_eq!(Windows::new(&[3], &[0], 3).next, [Token(2)]);
        assert_eq!(Windows::new(&[1], &[3], 3).pieces, [Carried(0)]);
        assert_eq!(Windows::new(&[2], &[0], 1).pieces, [Learned, Token(0)]);
    }
}
