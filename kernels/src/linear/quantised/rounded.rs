//! Activations in whole numbers: each group of 32 a scale and numbers from -127 to 127.
//!
//! A product of two small whole numbers takes a fraction of the instructions that one of floats does. What is lost is as
//! much as weights lose in eight bits. ggml's kernels do the same, with scales in half precision, or for 256 numbers.

use super::blocks::{GROUP, Group};
use crate::simd::vectorized;

/// How a map of quantised weights reads its input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// As it is: nothing but the weights is rounded.
    Exact,
    /// Rounded to eight bits in groups of 32, as ggml does, whatever the number of rows.
    #[default]
    Rounded,
}

const LARGEST: f32 = 127.0;

/// Rows of whole groups.
pub(super) struct Rounded {
    pub(super) numbers: Vec<[i8; GROUP]>,
    /// What the numbers of a group are multiplied by.
    pub(super) scales: Vec<f32>,
    /// The sums of groups, scaled.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "plain loops read the numbers alone"))]
    pub(super) sums: Vec<f32>,
}

impl Rounded {
    pub(super) fn new(x: &[f32]) -> Self {
        let x: &[Group] = x.as_chunks().0;
        let mut rounded =
            Self { numbers: vec![[0; GROUP]; x.len()], scales: vec![0.0; x.len()], sums: vec![0.0; x.len()] };
        vectorized(
            #[inline(always)]
            || {
                for (i, x) in x.iter().enumerate() {
                    let (scale, sum) = round(x, &mut rounded.numbers[i]);
                    (rounded.scales[i], rounded.sums[i]) = (scale, scale * sum as f32);
                }
            },
        );
        rounded
    }

    /// The numbers that these stand for.
    pub(super) fn dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.numbers.len() * GROUP];
        vectorized(
            #[inline(always)]
            || {
                let groups: &mut [Group] = dense.as_chunks_mut().0;
                for (to, (numbers, &scale)) in groups.iter_mut().zip(self.numbers.iter().zip(&self.scales)) {
                    for i in 0..GROUP {
                        to[i] = scale * f32::from(numbers[i]);
                    }
                }
            },
        );
        dense
    }
}

/// The nearest whole numbers; returns their scale, which is no number if the group is not finite, and their sum.
#[inline(always)]
fn round(x: &Group, to: &mut [i8; GROUP]) -> (f32, i32) {
    const LANES: usize = 8;
    let (mut largest, mut no_number) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    for x in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let size = x[i].abs();
            largest[i] = if size > largest[i] { size } else { largest[i] };
            no_number[i] += 0.0 * x[i];
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            largest[i] = if largest[i + half] > largest[i] { largest[i + half] } else { largest[i] };
            no_number[i] += no_number[i + half];
        }
        half /= 2;
    }
    let scale = largest[0] / LARGEST + no_number[0];
    // A group of zeros divides by zero: no number becomes zero, too.
    let per_scale = LARGEST / largest[0];
    let mut sum = 0;
    for i in 0..GROUP {
        let number = (x[i] * per_scale).round_ties_even() as i32;
        sum += number;
        to[i] = number as i8;
    }
    (scale, sum)
}
