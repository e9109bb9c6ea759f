//! The short convolution of a long input in pieces: its input, three widths of the model, then never exists as a whole.

use candle_core::{Result, Tensor};

/// Tokens of a piece.
const PIECE: usize = 1024;

/// A projection and its short convolution: u and the state before it, to their result and the state after it.
type Once<'a> = &'a dyn Fn(&Tensor, Option<&Tensor>) -> Result<(Tensor, Tensor)>;

/// `once(u, state)` gives what a projection and its short convolution make of u (b, l, d), and the convolution's state
/// after it; here applied to one piece after another where no gradient is asked for.
pub(crate) fn in_pieces(
    u: &Tensor,
    initial: Option<Tensor>,
    whole: bool,
    once: Once<'_>,
) -> Result<(Tensor, Tensor)> {
    let l = u.dim(1)?;
    let piece = |start: usize| u.narrow(1, start, PIECE.min(l - start));
    if whole || l < 2 * PIECE {
        return once(u, initial.as_ref());
    }
    let (z, mut state) = once(&piece(0)?, initial.as_ref())?;
    if z.track_op() {
        return once(u, initial.as_ref());
    }
    let (b, _, width) = z.dims3()?;
    let joined = Tensor::zeros((b, l, width), z.dtype(), z.device())?;
    joined.slice_set(&z.contiguous()?, 1, 0)?;
    for start in (PIECE..l).step_by(PIECE) {
        let (z, next) = once(&piece(start)?, Some(&state))?;
        joined.slice_set(&z.contiguous()?, 1, start)?;
        state = next;
    }
    Ok((joined, state))
}
