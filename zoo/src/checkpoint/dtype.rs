//! Element types as they lie in files.

use std::fmt;

use candle_core::DType;
use semisep_core::BlockFormat;

use super::Packed;

/// The type of a stored tensor's elements, little-endian.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum StoredType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    /// Quantised blocks that are multiplied by as they are.
    Blocks(BlockFormat),
    /// Quantised blocks that become numbers when they are read.
    Packed(Packed),
    /// A type that this version does not know; its tensors are listed and not read.
    #[default]
    Unknown,
    /// A type that no weight of this zoo has; its tensors are listed and not read.
    Other {
        /// Bits an element.
        bits: usize,
        /// Its name in the file.
        name: &'static str,
    },
}

/// Every name of the safetensors format.
const NAMES: [(&str, StoredType); 22] = [
    ("F64", StoredType::F64),
    ("F32", StoredType::F32),
    ("F16", StoredType::F16),
    ("BF16", StoredType::BF16),
    ("I64", StoredType::I64),
    ("I32", StoredType::I32),
    ("I16", StoredType::I16),
    ("I8", StoredType::I8),
    ("U64", StoredType::U64),
    ("U32", StoredType::U32),
    ("U16", StoredType::U16),
    ("U8", StoredType::U8),
    ("BOOL", StoredType::Bool),
    ("F8_E4M3", other(8, "F8_E4M3")),
    ("F8_E5M2", other(8, "F8_E5M2")),
    ("F8_E8M0", other(8, "F8_E8M0")),
    ("F8_E4M3FNUZ", other(8, "F8_E4M3FNUZ")),
    ("F8_E5M2FNUZ", other(8, "F8_E5M2FNUZ")),
    ("F6_E2M3", other(6, "F6_E2M3")),
    ("F6_E3M2", other(6, "F6_E3M2")),
    ("F4", other(4, "F4")),
    ("C64", other(64, "C64")),
];

const fn other(bits: usize, name: &'static str) -> StoredType {
    StoredType::Other { bits, name }
}

impl StoredType {
    /// By its name in a safetensors file.
    pub fn parse(name: &str) -> Option<Self> {
        NAMES.iter().find(|(n, _)| *n == name).map(|(_, dtype)| *dtype)
    }

    /// Bits an element; of blocks, rounded up.
    pub fn bits(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 64,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 16,
            Self::I8 | Self::U8 | Self::Bool => 8,
            Self::Other { bits, .. } => bits,
            Self::Blocks(format) => (8 * format.bytes()).div_ceil(format.weights()),
            Self::Packed(format) => {
                let (weights, bytes) = format.block();
                (8 * bytes).div_ceil(weights)
            }
            Self::Unknown => 0,
        }
    }

    /// Bytes of this many elements; `None` if that overflows or is no whole number of bytes or blocks.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        match self {
            Self::Blocks(format) => return format.row_bytes(elements),
            Self::Packed(format) => return format.row_bytes(elements),
            _ => {}
        }
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Elements of a block; 1 of types that have none.
    pub fn block(self) -> usize {
        match self {
            Self::Blocks(format) => format.weights(),
            Self::Packed(format) => format.block().0,
            _ => 1,
        }
    }

    /// The type in memory that holds the same values, for floating-point types.
    pub fn float(self) -> Option<DType> {
        match self {
            Self::F64 => Some(DType::F64),
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            _ => None,
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks(format) => return f.write_str(format.name()),
            Self::Packed(format) => return f.write_str(format.name()),
            Self::Other { name, .. } => return f.write_str(name),
            _ => {}
        }
        f.write_str(NAMES.iter().find(|(_, dtype)| dtype == self).map_or("an unknown type", |(name, _)| name))
    }
}
