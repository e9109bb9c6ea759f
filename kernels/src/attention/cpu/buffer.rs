//! Scratch memory that starts on a cache line.

use std::ops::{Deref, DerefMut};

/// `len` values, the first on a 64-byte boundary: vector loads of whole tiles then never straddle cache lines.
pub(super) struct Buffer<T> {
    data: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Buffer<T> {
    pub(super) fn new(len: usize) -> Self {
        let line = 64 / size_of::<T>();
        let data = vec![T::default(); len + line];
        // `align_offset` may answer that it does not know: alignment serves speed alone.
        let start = data.as_ptr().align_offset(64);
        Self { data, start: if start <= line { start } else { 0 }, len }
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[self.start..self.start + self.len]
    }
}
