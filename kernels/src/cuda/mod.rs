//! CUDA: sources, their specialisation and compilation, launches.
//!
//! A kernel is a `.cu` file beside its op, compiled at run time by NVRTC for the device at hand, with the shape's
//! constants given as `-D` definitions. [`shipped`] lists the specialisations that are meant to be met in practice, as
//! plain data, in every build: whoever has NVRTC can compile them all, without a GPU. Everything else here needs the
//! feature `cuda`.

#[cfg(feature = "cuda")]
pub(crate) mod compile;
#[cfg(feature = "cuda")]
pub(crate) mod launch;

use candle_core::{DType, Device, Result, bail};

/// A source and the constants that it is compiled for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Specialisation {
    /// The op's name.
    pub op: &'static str,
    /// The op's own source.
    pub(crate) body: &'static str,
    /// Definitions, `NAME` or `NAME=VALUE`.
    pub defines: Vec<String>,
}

const PRELUDE: &str = include_str!("prelude.cu");

impl Specialisation {
    /// The whole program text: self-contained, no includes.
    pub fn source(&self) -> String {
        [PRELUDE, self.body].join("\n")
    }

    /// Compiler options, but for the architecture.
    pub fn options(&self) -> Vec<String> {
        ["--std=c++17".into()].into_iter().chain(self.defines.iter().map(|d| format!("-D{d}"))).collect()
    }
}

/// Every specialisation that ships.
pub fn shipped() -> Vec<Specialisation> {
    crate::causal_conv1d::special::shipped()
}

/// Lets the device's memory pool keep what is freed. By default it gives all unused memory back at every
/// synchronisation, and the next large output is mapped anew: milliseconds. Does nothing for other devices.
///
/// # Errors
/// If the driver refuses.
pub fn keep_freed_memory(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => launch::keep_freed_memory(device),
        _ => Ok(()),
    }
}

/// Data dtypes that CUDA kernels take.
pub(crate) const DATA: [DType; 4] = [DType::F32, DType::F64, DType::BF16, DType::F16];

/// The definition that tells the prelude the data's dtype.
pub(crate) fn data_define(op: &str, data: DType) -> Result<&'static str> {
    Ok(match data {
        DType::F32 => "DATA_F32",
        DType::F64 => "DATA_F64",
        DType::BF16 => "DATA_BF16",
        DType::F16 => "DATA_F16",
        other => bail!("{op}: no CUDA kernel for {other:?}"),
    })
}
