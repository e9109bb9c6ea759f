//! The formats' names, sizes, and the way into them.

use std::fmt;

use candle_core::quantized::GgmlDType;

/// A format of quantised blocks, by its name in ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockFormat {
    /// 4 bits and a scale for 32 weights: 4.5 bits a weight.
    Q4_0,
    /// 4 bits, a scale and an offset for 32 weights: 5 bits.
    Q4_1,
    /// 5 bits and a scale for 32 weights: 5.5 bits.
    Q5_0,
    /// 5 bits, a scale and an offset for 32 weights: 6 bits.
    Q5_1,
    /// 8 bits and a scale for 32 weights: 8.5 bits.
    Q8_0,
    /// 4 bits, scales and offsets in two levels for 256 weights: 4.5 bits.
    Q4K,
    /// 5 bits, scales and offsets in two levels for 256 weights: 5.5 bits.
    Q5K,
    /// 6 bits, scales in two levels for 256 weights: 6.5625 bits.
    Q6K,
}

impl BlockFormat {
    /// Every format.
    pub const ALL: [Self; 8] =
        [Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Its name in ggml, lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Weights in a block.
    pub fn weights(self) -> usize {
        self.ggml().block_size()
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.ggml().type_size()
    }

    /// Where in a block its scales and offsets in half precision begin.
    pub(super) fn halves(self) -> &'static [usize] {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => &[0, 2],
            Self::Q6K => &[208],
        }
    }

    /// Bytes of a row of so many weights, if they are a whole number of blocks.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let whole = columns.is_multiple_of(self.weights());
        whole.then(|| (columns / self.weights()).checked_mul(self.bytes())).flatten()
    }

    /// This format, or the one that stands in for it where rows are no whole number of its blocks, as in llama.cpp: `q5_0`
    /// for `q4_k`, `q5_1` for `q5_k`, `q8_0` for `q6_k`. `None` if that has no whole number of blocks either.
    pub fn for_columns(self, columns: usize) -> Option<Self> {
        let smaller = match self {
            Self::Q4K => Self::Q5_0,
            Self::Q5K => Self::Q5_1,
            Self::Q6K => Self::Q8_0,
            other => other,
        };
        [self, smaller].into_iter().find(|format| columns.is_multiple_of(format.weights()))
    }

    /// Writes the blocks nearest to `numbers`, a whole number of blocks, to `to`, of the bytes that they take.
    ///
    /// # Panics
    /// If `to` has another length.
    pub fn quantise(self, numbers: &[f32], to: &mut [u8]) {
        let mut blocks = self.ggml().cpu_zeros(numbers.len());
        blocks.from_float(numbers);
        // SAFETY: the storage that `blocks` owns, of plain bytes and halves.
        let bytes = unsafe { std::slice::from_raw_parts(blocks.as_ptr(), blocks.storage_size_in_bytes()) };
        to.copy_from_slice(bytes);
    }

    /// candle's name of it.
    pub fn ggml(self) -> GgmlDType {
        match self {
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
