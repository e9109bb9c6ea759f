//! ggml's numbers of its types.

use semisep_core::BlockFormat;

use crate::checkpoint::{Packed, StoredType};

/// The type of this number.
pub(super) fn stored(number: u32) -> StoredType {
    match number {
        0 => StoredType::F32,
        1 => StoredType::F16,
        2 => StoredType::Blocks(BlockFormat::Q4_0),
        3 => StoredType::Blocks(BlockFormat::Q4_1),
        6 => StoredType::Blocks(BlockFormat::Q5_0),
        7 => StoredType::Blocks(BlockFormat::Q5_1),
        8 => StoredType::Blocks(BlockFormat::Q8_0),
        9 => named("q8_1", 9),
        10 => StoredType::Packed(Packed::Q2K),
        11 => StoredType::Packed(Packed::Q3K),
        12 => StoredType::Blocks(BlockFormat::Q4K),
        13 => StoredType::Blocks(BlockFormat::Q5K),
        14 => StoredType::Blocks(BlockFormat::Q6K),
        15 => named("q8_k", 9),
        16 => named("iq2_xxs", 2),
        17 => named("iq2_xs", 3),
        18 => named("iq3_xxs", 4),
        19 => named("iq1_s", 2),
        20 => StoredType::Packed(Packed::Iq4Nl),
        21 => named("iq3_s", 4),
        22 => named("iq2_s", 3),
        23 => StoredType::Packed(Packed::Iq4Xs),
        24 => StoredType::I8,
        25 => StoredType::I16,
        26 => StoredType::I32,
        27 => StoredType::I64,
        28 => StoredType::F64,
        29 => named("iq1_m", 2),
        30 => StoredType::BF16,
        34 => StoredType::Packed(Packed::Tq1_0),
        35 => StoredType::Packed(Packed::Tq2_0),
        39 => StoredType::Packed(Packed::Mxfp4),
        40 => StoredType::Packed(Packed::Nvfp4),
        41 => StoredType::Packed(Packed::Q1_0),
        42 => StoredType::Packed(Packed::Q2_0),
        _ => StoredType::Unknown,
    }
}

/// Types that are named and not read: those that choose of long lists of vectors, and those of activations, which are in no
/// file.
const fn named(name: &'static str, bits: usize) -> StoredType {
    StoredType::Other { bits, name }
}
