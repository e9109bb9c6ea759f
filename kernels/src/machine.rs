//! What this machine can do at best, measured: the limits that decoding and prefill are compared with.

use std::hint::black_box;
use std::time::Instant;

use crate::host;
use crate::simd::vectorized;

/// Large against any last-level cache that two to a few dozen cores share.
const BUFFER_BYTES: usize = 384 << 20;

/// A thread's unit of work.
const BLOCK: usize = 1 << 14;

/// Bytes a second that the threads of candle's pools read from memory together, at best.
///
/// Sums a buffer of 384 MiB about ten times and takes the fastest pass; takes about half a second.
pub fn read_bandwidth() -> f64 {
    let buffer = vec![1.0f32; BUFFER_BYTES / 4];
    let pass = || {
        host::spinning(buffer.len(), BLOCK, |range| {
            black_box(vectorized(
                #[inline(always)]
                || sum(&buffer[range]),
            ));
        });
    };
    BUFFER_BYTES as f64 / best_seconds(10, pass)
}

/// f32 operations a second (a multiplication and an addition count as two) of a large square matrix product on all
/// threads, at best.
///
/// Multiplies two matrices of 2048 x 2048 five times each by candle and by this crate and takes the fastest.
pub fn gemm_rate() -> f64 {
    const N: usize = 2048;
    let (a, b) = (vec![1.0f32; N * N], vec![0.5f32; N * N]);
    let mut c = vec![0.0f32; N * N];
    let ours = best_seconds(5, || {
        host::gemm_parallel((N, N, N), &a, (N, 1), &b, (N, 1), &mut c, (N, 1), false);
        black_box(&c);
    });
    let (a, b) = (host::tensor(a, (N, N)), host::tensor(b, (N, N)));
    let candle = best_seconds(5, || {
        // Two matrices that fit: nothing to fail.
        let _ = black_box(a.matmul(&b));
    });
    2.0 * (N * N * N) as f64 / ours.min(candle)
}

fn best_seconds(passes: usize, mut pass: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        pass();
        start.elapsed().as_secs_f64()
    };
    (0..passes).map(time).fold(f64::INFINITY, f64::min)
}

/// The sum, in enough independent parts and read from enough places to wait for memory alone.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    const LANES: usize = 64;
    let (chunks, tail) = values.as_chunks::<LANES>();
    let quarter = chunks.len() / 4;
    let (a, rest) = chunks.split_at(quarter);
    let (b, rest) = rest.split_at(quarter);
    let (c, d) = rest.split_at(quarter);
    let mut sums = [0.0f32; LANES];
    for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
        for j in 0..LANES {
            sums[j] += (a[j] + b[j]) + (c[j] + d[j]);
        }
    }
    sums.iter().chain(d[quarter..].as_flattened()).chain(tail).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_reads_everything() {
        let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        assert_eq!(sum(&values), 499_500.0);
    }
}
