//! Which specialisations of the CUDA source there are.

use candle_core::{DType, Result, bail};

use crate::cuda::{DATA, Specialisation, data_define};

use super::OP;

/// Taps up to which the CUDA kernels keep everything in registers.
pub(super) const FAST_TAPS: usize = 8;
/// Most taps that the CUDA kernels take.
const MOST_TAPS: usize = 128;

/// Channels of a thread: 8 bytes of data.
pub(super) fn channels(data: DType) -> usize {
    8 / data.size_in_bytes()
}

/// For k taps, `vec` channels a thread (1, or [`channels`] up to [`FAST_TAPS`]).
pub(super) fn specialisation(data: DType, k: usize, vec: usize, silu: bool) -> Result<Specialisation> {
    if k > MOST_TAPS {
        bail!(
            "{OP}: the CUDA kernels take up to {MOST_TAPS} taps, got {k}; use the CPU, or a long convolution"
        );
    }
    let defines = vec![
        data_define(OP, data)?.to_string(),
        format!("TAPS={k}"),
        format!("VEC={vec}"),
        format!("SILU={}", u8::from(silu)),
    ];
    Ok(Specialisation { op: OP, body: include_str!("causal_conv1d.cu"), defines })
}

/// What is met in practice, and one of many taps.
pub(crate) fn shipped() -> Vec<Specialisation> {
    let mut all = Vec::new();
    for data in DATA {
        for k in [1, 2, 3, 4, 12] {
            let mut vecs = vec![1];
            if k <= FAST_TAPS && channels(data) > 1 {
                vecs.push(channels(data));
            }
            for vec in vecs {
                for silu in [false, true] {
                    all.extend(specialisation(data, k, vec, silu));
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_and_width_ships() {
        let all = shipped();
        assert_eq!(all.len(), (3 * (4 * 2 + 1) + 5) * 2);
        assert!(all.iter().all(|s| s.source().contains("forward(") && s.options().len() == 5));
        assert!(specialisation(DType::F32, 129, 1, true).is_err());
        assert!(specialisation(DType::U8, 4, 1, true).is_err());
    }
}
