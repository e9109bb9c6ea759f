//! What a layer costs, known from its shapes alone.

use std::iter::Sum;
use std::ops::{Add, AddAssign};

/// The cost of one forward pass of `batch` sequences of `seqlen` tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Parameters held (elements).
    pub parameters: u64,
    /// Floating-point operations of the parallel form; a multiply-add counts two.
    pub flops: u64,
    /// Bytes read and written at the least: parameters once, activations in and out of each kernel.
    pub bytes: u64,
    /// Bytes of recurrent state (convolution and SSM), the same at any length.
    pub state_bytes: u64,
    /// Bytes of keys and values after `seqlen` tokens.
    pub kv_bytes: u64,
}

impl Cost {
    /// A linear map of `rows` inputs, `inputs` to `outputs` wide, whose elements take `size` bytes.
    pub fn linear(rows: usize, inputs: usize, outputs: usize, bias: bool, size: usize) -> Self {
        let parameters = (inputs * outputs + if bias { outputs } else { 0 }) as u64;
        Self {
            parameters,
            flops: 2 * (rows * inputs) as u64 * outputs as u64,
            bytes: (parameters + (rows * (inputs + outputs)) as u64) * size as u64,
            ..Self::default()
        }
    }
}

impl Add for Cost {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self {
            parameters: self.parameters + o.parameters,
            flops: self.flops + o.flops,
            bytes: self.bytes + o.bytes,
            state_bytes: self.state_bytes + o.state_bytes,
            kv_bytes: self.kv_bytes + o.kv_bytes,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), Add::add)
    }
}
