//! Blocks that GGUF files hold and nothing here multiplies by: they become numbers when they are read.
//!
//! Source: the definitions of ggml's blocks (`ggml/src/ggml-common.h`), and `gguf-py/gguf/quants.py` for their values.

mod k;
mod small;
mod ternary;

/// A format of blocks, by its name in ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// 1 bit and a scale for 128 weights.
    Q1_0,
    /// 2 bits and a scale for 64 weights.
    Q2_0,
    /// 2 bits, scales and offsets in two levels for 256 weights.
    Q2K,
    /// 3 bits, scales in two levels for 256 weights.
    Q3K,
    /// 4 bits that choose of 16 uneven steps, and a scale for 32 weights.
    Iq4Nl,
    /// The same steps, scales in two levels for 256 weights.
    Iq4Xs,
    /// 4-bit floating point and a power of two for 32 weights.
    Mxfp4,
    /// 4-bit floating point and an 8-bit one for 16 weights.
    Nvfp4,
    /// -1, 0 or 1, five of them a byte, and a scale for 256 weights.
    Tq1_0,
    /// -1, 0 or 1, four of them a byte, and a scale for 256 weights.
    Tq2_0,
}

impl Packed {
    /// Every format.
    pub const ALL: [Self; 10] = [
        Self::Q1_0,
        Self::Q2_0,
        Self::Q2K,
        Self::Q3K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
        Self::Nvfp4,
        Self::Tq1_0,
        Self::Tq2_0,
    ];

    /// Its name in ggml, lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q1_0 => "q1_0",
            Self::Q2_0 => "q2_0",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Iq4Nl => "iq4_nl",
            Self::Iq4Xs => "iq4_xs",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Tq1_0 => "tq1_0",
            Self::Tq2_0 => "tq2_0",
        }
    }

    /// Weights and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::Q1_0 => (128, 18),
            Self::Q2_0 => (64, 18),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Iq4Nl => (32, 18),
            Self::Iq4Xs => (256, 136),
            Self::Mxfp4 => (32, 17),
            Self::Nvfp4 => (64, 36),
            Self::Tq1_0 => (256, 54),
            Self::Tq2_0 => (256, 66),
        }
    }

    /// Bytes of a row of so many weights, if they are a whole number of blocks.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let (weights, bytes) = self.block();
        columns.is_multiple_of(weights).then(|| (columns / weights).checked_mul(bytes)).flatten()
    }

    /// The numbers of whole blocks.
    pub fn dequantise(self, blocks: &[u8]) -> Vec<f32> {
        let (weights, bytes) = self.block();
        let one = match self {
            Self::Q1_0 => small::q1_0,
            Self::Q2_0 => small::q2_0,
            Self::Q2K => k::q2_k,
            Self::Q3K => k::q3_k,
            Self::Iq4Nl => small::iq4_nl,
            Self::Iq4Xs => k::iq4_xs,
            Self::Mxfp4 => small::mxfp4,
            Self::Nvfp4 => small::nvfp4,
            Self::Tq1_0 => ternary::tq1_0,
            Self::Tq2_0 => ternary::tq2_0,
        };
        let mut numbers = vec![0.0; blocks.len() / bytes * weights];
        blocks.chunks_exact(bytes).zip(numbers.chunks_exact_mut(weights)).for_each(|(b, n)| one(b, n));
        numbers
    }
}

/// The half-precision number at a byte of a block.
fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The first half of the numbers from the low four bits of the bytes, the second from the high ones.
fn nibbles(bytes: &[u8], numbers: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = numbers.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (value(byte & 15), value(byte >> 4));
    }
}
