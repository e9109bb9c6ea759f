//! A block of channels between the tokens' order (channels side by side) and the channels' own.

use std::sync::{Mutex, PoisonError};

use realfft::num_complex::Complex;

use super::{Filter, LANES};
use crate::host::Disjoint;
use crate::simd::{Real, vectorized};

/// The channels of one task.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channels {
    pub(super) first: usize,
    /// At most [`LANES`].
    pub(super) count: usize,
    /// Of all channels.
    pub(super) d: usize,
}

impl Channels {
    /// Block number `block`, of `width` channels or what is left.
    pub(super) fn new(block: usize, width: usize, d: usize) -> Self {
        let first = block * width;
        Self { first, count: width.min(d - first), d }
    }
}

/// Buffers of one thread, grown as needed.
pub(super) struct Space<T> {
    /// Channels in rows, [`stride`] apart.
    pub(super) inputs: Vec<T>,
    pub(super) outputs: Vec<T>,
    pub(super) taps: Vec<T>,
    pub(super) signal: Vec<T>,
    pub(super) spectra: [Vec<Complex<T>>; 4],
    pub(super) scratch: Vec<Complex<T>>,
    /// Tokens in rows of [`LANES`].
    pub(super) lanes: [Vec<[T; LANES]>; 4],
}

/// The buffers of a call; as many as threads took part.
pub(super) struct Spaces<T>(Mutex<Vec<Space<T>>>);

impl<T> Default for Spaces<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Real> Spaces<T> {
    pub(super) fn take(&self) -> Space<T> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Space {
            inputs: Vec::new(),
            outputs: Vec::new(),
            taps: Vec::new(),
            signal: Vec::new(),
            spectra: Default::default(),
            scratch: Vec::new(),
            lanes: Default::default(),
        })
    }

    pub(super) fn give(&self, space: Space<T>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(space);
    }
}

/// The first `len` elements of a buffer that holds at least as many.
pub(super) fn sized<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// Distance between channels of `len` elements: not a power of two, so that they do not share a place in the cache.
pub(super) fn stride(len: usize) -> usize {
    len.next_multiple_of(LANES) + LANES
}

/// `to[c][at + i] = row(i)[channels][c]` for `i < count`; channels are `stride` apart.
pub(super) fn gather<'a, T: Real>(
    to: &mut [T],
    (stride, at): (usize, usize),
    channels: Channels,
    count: usize,
    row: impl Fn(usize) -> &'a [T],
) {
    let Channels { first, count: width, .. } = channels;
    vectorized(
        #[inline(always)]
        || {
            let mut tile = [[T::ZERO; LANES]; LANES];
            for start in (0..count).step_by(LANES) {
                let rows = LANES.min(count - start);
                for (r, tile) in tile.iter_mut().enumerate().take(rows) {
                    let row = &row(start + r)[first..first + width];
                    match <&[T; LANES]>::try_from(row) {
                        Ok(row) => *tile = *row,
                        Err(_) => tile[..width].copy_from_slice(row),
                    }
                }
                for c in 0..width {
                    let to = &mut to[c * stride + at + start..][..rows];
                    match <&mut [T; LANES]>::try_from(&mut *to) {
                        Ok(to) => (0..LANES).for_each(|r| to[r] = tile[r][c]),
                        Err(_) => (0..rows).for_each(|r| to[r] = tile[r][c]),
                    }
                }
            }
        },
    );
}

/// The way back: row `rows + i` of `to` gets `from[c][at + i]` in its channels, for `i < count`.
pub(super) fn scatter<T: Real>(
    from: &[T],
    (stride, at): (usize, usize),
    channels: Channels,
    count: usize,
    to: &Disjoint<T>,
    rows: usize,
) {
    let Channels { first, count: width, d } = channels;
    vectorized(
        #[inline(always)]
        || {
            let mut tile = [[T::ZERO; LANES]; LANES];
            for start in (0..count).step_by(LANES) {
                let n = LANES.min(count - start);
                for c in 0..width {
                    let from = &from[c * stride + at + start..][..n];
                    match <&[T; LANES]>::try_from(from) {
                        Ok(from) => (0..LANES).for_each(|r| tile[r][c] = from[r]),
                        Err(_) => (0..n).for_each(|r| tile[r][c] = from[r]),
                    }
                }
                for (r, tile) in tile.iter().enumerate().take(n) {
                    // SAFETY: the channels of a block belong to one task.
                    let to = unsafe { to.slice((rows + start + r) * d + first, width) };
                    match <&mut [T; LANES]>::try_from(&mut *to) {
                        Ok(to) => *to = *tile,
                        Err(_) => to.copy_from_slice(&tile[..width]),
                    }
                }
            }
        },
    );
}

/// `to[i] = row(i)[channels]` for `i < count`, the lanes past the last channel zero.
pub(super) fn pack<'a, T: Real>(to: &mut [[T; LANES]], channels: Channels, row: impl Fn(usize) -> &'a [T]) {
    for (i, to) in to.iter_mut().enumerate() {
        to[..channels.count].copy_from_slice(&row(i)[channels.first..][..channels.count]);
        to[channels.count..].fill(T::ZERO);
    }
}

/// The way back: rows of `to` from row `rows` on.
pub(super) fn unpack<T: Real>(from: &[[T; LANES]], channels: Channels, to: &Disjoint<T>, rows: usize) {
    for (i, from) in from.iter().enumerate() {
        // SAFETY: the channels of a block belong to one task.
        let to = unsafe { to.slice((rows + i) * channels.d + channels.first, channels.count) };
        to.copy_from_slice(&from[..channels.count]);
    }
}

impl<T: Real> Filter<'_, T> {
    /// Taps `first..first + to.len()` in rows of lanes.
    pub(super) fn pack(&self, to: &mut [[T; LANES]], first: usize, lk: usize, channels: Channels) {
        match self {
            Self::Taps(rows) => pack(to, channels, |j| rows.row(first + j)),
            Self::Channels(k) => {
                for lane in 0..LANES {
                    if lane >= channels.count {
                        to.iter_mut().for_each(|row| row[lane] = T::ZERO);
                        continue;
                    }
                    let k = &k[(channels.first + lane) * lk + first..][..to.len()];
                    to.iter_mut().zip(k).for_each(|(row, &k)| row[lane] = k);
                }
            }
        }
    }
}
