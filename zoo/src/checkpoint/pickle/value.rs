//! What a pickle of weights is made of.

use crate::checkpoint::StoredType;

/// A value's place in the arena.
pub(super) type Id = u32;

#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Float,
    Str(&'a str),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'a>),
    View(Box<View<'a>>),
}

/// What a file may refer to by name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    RebuildTensor,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    OrderedDict,
    Size,
    /// A storage class, or the dtype of an untyped one.
    Type(StoredType),
    UntypedStorage,
}

impl Global {
    /// What this name stands for, if weights may refer to it.
    pub(super) fn resolve(module: &str, name: &str) -> Option<Self> {
        use StoredType::{BF16, Bool, F16, F32, F64, I8, I16, I32, I64, U8};
        Some(match (module, name) {
            ("torch._utils", "_rebuild_tensor") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensorV2,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch", "Size") => Self::Size,
            ("torch", "DoubleStorage" | "float64") => Self::Type(F64),
            ("torch", "FloatStorage" | "float32") => Self::Type(F32),
            ("torch", "HalfStorage" | "float16") => Self::Type(F16),
            ("torch", "BFloat16Storage" | "bfloat16") => Self::Type(BF16),
            ("torch", "LongStorage" | "int64") => Self::Type(I64),
            ("torch", "IntStorage" | "int32") => Self::Type(I32),
            ("torch", "ShortStorage" | "int16") => Self::Type(I16),
            ("torch", "CharStorage" | "int8") => Self::Type(I8),
            ("torch", "ByteStorage" | "uint8") => Self::Type(U8),
            ("torch", "BoolStorage" | "bool") => Self::Type(Bool),
            ("torch" | "torch.storage", "UntypedStorage") => Self::UntypedStorage,
            _ => return None,
        })
    }
}

/// A block of bytes beside the pickle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::checkpoint) struct Storage<'a> {
    /// Its name in the archive's `data` folder.
    pub(in crate::checkpoint) key: &'a str,
    /// The type of its elements, where it has one of its own.
    pub(in crate::checkpoint) dtype: Option<StoredType>,
    /// How many elements it holds (bytes, if it has no type).
    pub(in crate::checkpoint) elements: usize,
}

/// A tensor: a strided view of a storage; offset and strides in elements.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::checkpoint) struct View<'a> {
    pub(in crate::checkpoint) storage: Storage<'a>,
    pub(in crate::checkpoint) dtype: StoredType,
    pub(in crate::checkpoint) offset: usize,
    pub(in crate::checkpoint) shape: Vec<usize>,
    pub(in crate::checkpoint) strides: Vec<usize>,
}
