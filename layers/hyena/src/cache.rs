//! Filters that no training changes are computed once.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor};

/// The longest filter computed so far; shorter ones are its beginning.
#[derive(Debug, Default)]
pub(crate) struct FilterCache(Mutex<Option<Tensor>>);

impl FilterCache {
    /// The first `len` taps along dimension `dim`, by `make` unless they are known. A new one is made for a power of
    /// two, at the most `max` taps, so that a growing sequence makes few.
    pub(crate) fn get(
        &self,
        (dim, len, max): (usize, usize, usize),
        make: impl FnOnce(usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let filter = match known.take() {
            Some(filter) if filter.dim(dim)? >= len => filter,
            _ => make(len.next_power_of_two().clamp(len, max.max(len)))?,
        };
        *known = Some(filter.clone());
        filter.narrow(dim, 0, len)
    }
}
