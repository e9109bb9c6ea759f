//! One tensor of a state, and how it grows and forgets.

use candle_core::{Result, Tensor};

/// How an entry of a [`State`](crate::State) grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateKind {
    /// The same size at any length: convolution windows, SSM matrices.
    Recurrent,
    /// One slot a token along dimension 1, (b, capacity, ...); `limit` is the most earlier tokens that are ever read
    /// back (a window), if any.
    ///
    /// With a limit of w, older tokens are dropped now and then, w at a time, so that a long sequence holds less than 2 w
    /// of them and moves two slots a token at the most. What is left begins at a multiple of w: windows that are blocks of
    /// the sequence are blocks of what is left.
    Cache {
        /// Slots that matter, at the most.
        limit: Option<usize>,
    },
}

impl StateKind {
    /// The window of a cache that has one.
    pub(crate) fn window(self) -> Option<usize> {
        match self {
            Self::Cache { limit } => limit.map(|w| w.max(1)),
            Self::Recurrent => None,
        }
    }

    /// The oldest tokens that no query after `seen` tokens can reach, in whole windows.
    pub(crate) fn out_of_reach(self, seen: usize) -> usize {
        self.window().map_or(0, |w| seen.saturating_sub(w) / w * w)
    }
}

/// A named tensor of a state.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) kind: StateKind,
    pub(crate) tensor: Tensor,
    /// Tokens of each sequence that are no longer in the cache.
    pub(crate) dropped: Vec<usize>,
}

impl Entry {
    /// Tokens of each sequence in the cache.
    pub(crate) fn held(&self, seen: &[usize]) -> Vec<usize> {
        seen.iter().zip(&self.dropped).map(|(seen, dropped)| seen - dropped).collect()
    }

    /// Moves each row's tokens within reach to the front, into a tensor of as many slots as the longest row needs.
    pub(crate) fn drop_out_of_reach(&mut self, seen: &[usize]) -> Result<()> {
        let goal: Vec<usize> = seen.iter().map(|&s| self.kind.out_of_reach(s)).collect();
        if goal.iter().zip(&self.dropped).all(|(goal, dropped)| goal <= dropped) {
            return Ok(());
        }
        let slots = seen.iter().zip(&goal).map(|(seen, goal)| seen - goal).max().unwrap_or(0);
        let mut rows = Vec::with_capacity(seen.len());
        for (row, (&seen, &goal)) in seen.iter().zip(&goal).enumerate() {
            let kept = self.tensor.narrow(0, row, 1)?.narrow(1, goal - self.dropped[row], seen - goal)?;
            rows.push(kept.pad_with_zeros(1, 0, slots - (seen - goal))?);
        }
        (self.tensor, self.dropped) = (Tensor::cat(&rows, 0)?.contiguous()?, goal);
        Ok(())
    }

    /// Grows a cache to `most` slots or more: by doubling, up to two windows where it has a limit.
    pub(crate) fn make_room(&mut self, most: usize) -> Result<()> {
        let mut shape = self.tensor.dims().to_vec();
        if most <= shape[1] {
            return Ok(());
        }
        let bound = self.kind.window().map_or(usize::MAX, |w| w.saturating_mul(2));
        let old = shape[1];
        shape[1] = most.max((2 * old).max(16).min(bound));
        let grown = Tensor::zeros(shape, self.tensor.dtype(), self.tensor.device())?;
        if old > 0 {
            grown.slice_set(&self.tensor.contiguous()?, 1, 0)?;
        }
        self.tensor = grown;
        Ok(())
    }

    /// The cache with `tokens` behind each row's `held` ones, padded to `most` slots.
    pub(crate) fn concatenate(
        &self,
        tokens: &Tensor,
        lengths: &[usize],
        held: &[usize],
        most: usize,
    ) -> Result<Tensor> {
        let packed = tokens.dim(0)? != held.len();
        let (mut rows, mut start) = (Vec::new(), 0);
        for (row, (&held, &len)) in held.iter().zip(lengths).enumerate() {
            let old = self.tensor.narrow(0, row, 1)?.narrow(1, 0, held)?;
            let new = if packed { tokens.narrow(1, start, len)? } else { tokens.narrow(0, row, 1)? };
            let joined = Tensor::cat(&[&old.to_dtype(new.dtype())?, &new], 1)?;
            rows.push(joined.pad_with_zeros(1, 0, most - held - len)?);
            start += len;
        }
        Tensor::cat(&rows, 0)
    }

    /// Bytes after `seqlen` tokens a sequence, without spare capacity.
    pub(crate) fn size_bytes(&self, seqlen: usize) -> u64 {
        let size = self.tensor.dtype().size_in_bytes() as u64;
        match self.kind {
            StateKind::Recurrent => self.tensor.elem_count() as u64 * size,
            StateKind::Cache { limit } => {
                let slots = limit.map_or(seqlen, |w| w.min(seqlen)) as u64;
                let dims = self.tensor.dims();
                let slot: usize = dims[0] * dims[2..].iter().product::<usize>();
                slots * slot as u64 * size
            }
        }
    }
}
