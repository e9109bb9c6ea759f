//! Tensors to a safetensors file, piece by piece.

use std::io::Write;
use std::path::Path;

use candle_core::{DType, Tensor, WithDType};
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::files::{cannot_write, write_with};
use crate::{Error, Result};

/// Elements that are copied out of a tensor at a time.
const PIECE: usize = 1 << 20;

/// A tensor to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its elements' type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorEntry {
    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.size_in_bytes() as u64
    }
}

/// Writes tensors in this order, with texts beside them; the whole file or none of it.
///
/// # Errors
/// If a tensor's dtype has no place in the format, or the file cannot be written.
pub fn write_safetensors(path: &Path, metadata: &[(&str, &str)], tensors: &[(String, Tensor)]) -> Result<()> {
    let entry = |(name, t): &(String, Tensor)| TensorEntry {
        name: name.clone(),
        dtype: t.dtype(),
        shape: t.dims().into(),
    };
    let entries: Vec<TensorEntry> = tensors.iter().map(entry).collect();
    write_tensors(path, metadata, &entries, &mut |i| Ok(tensors[i].1.clone()))
}

/// As [`write_safetensors`], with the tensors that `get` gives by their place in `entries`, one at a time.
///
/// # Errors
/// As there, or if `get` fails or gives another tensor than its entry says.
pub fn write_tensors(
    path: &Path,
    metadata: &[(&str, &str)],
    entries: &[TensorEntry],
    get: &mut dyn FnMut(usize) -> Result<Tensor>,
) -> Result<()> {
    let header = header(metadata, entries).map_err(|e| e.in_file(path))?;
    write_with(path, |file| {
        let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(|e| cannot_write(path, &e));
        put(&(header.len() as u64).to_le_bytes())?;
        put(header.as_bytes())?;
        for (i, entry) in entries.iter().enumerate() {
            let tensor = get(i)?;
            if (tensor.dtype(), tensor.dims()) != (entry.dtype, &entry.shape[..]) {
                let (dtype, shape) = (tensor.dtype(), tensor.dims());
                let message = format!("{}: expected {entry:?}, found {dtype:?} {shape:?}", entry.name);
                return Err(Error::at(path, message));
            }
            let flat = tensor.flatten_all()?;
            let n = flat.elem_count();
            for start in (0..n).step_by(PIECE) {
                put(&bytes(&flat.narrow(0, start, PIECE.min(n - start))?)?)?;
            }
        }
        Ok(())
    })
}

/// The header, padded so that the data starts at a multiple of 8 bytes.
fn header(metadata: &[(&str, &str)], entries: &[TensorEntry]) -> Result<String> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        let texts: Map<String, Value> = metadata.iter().map(|(k, v)| ((*k).into(), json!(v))).collect();
        header.insert("__metadata__".into(), texts.into());
    }
    let mut end = 0;
    for entry in entries {
        let start = end;
        end += entry.bytes();
        let value =
            json!({ "dtype": type_name(entry.dtype)?, "shape": entry.shape, "data_offsets": [start, end] });
        if header.insert(entry.name.clone(), value).is_some() {
            return Err(Error::new(format!("two tensors are called {}", entry.name)));
        }
    }
    let mut text = Value::Object(header).to_string();
    text += &" ".repeat(text.len().next_multiple_of(8) - text.len());
    Ok(text)
}

fn type_name(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F64 => Ok("F64"),
        DType::F32 => Ok("F32"),
        DType::F16 => Ok("F16"),
        DType::BF16 => Ok("BF16"),
        DType::I64 => Ok("I64"),
        DType::U32 => Ok("U32"),
        DType::U8 => Ok("U8"),
        other => Err(Error::new(format!("tensors of type {other:?} cannot be stored"))),
    }
}

/// The elements of a vector, little-endian.
fn bytes(flat: &Tensor) -> Result<Vec<u8>> {
    fn of<T: WithDType, const N: usize>(flat: &Tensor, le: fn(T) -> [u8; N]) -> Result<Vec<u8>> {
        Ok(flat.to_vec1::<T>()?.into_iter().flat_map(le).collect())
    }
    match flat.dtype() {
        DType::F64 => of(flat, f64::to_le_bytes),
        DType::F32 => of(flat, f32::to_le_bytes),
        DType::F16 => of(flat, f16::to_le_bytes),
        DType::BF16 => of(flat, bf16::to_le_bytes),
        DType::I64 => of(flat, i64::to_le_bytes),
        DType::U32 => of(flat, u32::to_le_bytes),
        DType::U8 => Ok(flat.to_vec1::<u8>()?),
        other => Err(Error::new(format!("tensors of type {other:?} cannot be stored"))),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn what_is_written_is_read_back() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::new)?;
        let path = dir.path().join("t.safetensors");
        let n = PIECE + 3;
        let values: Vec<f32> = (0..n).map(|i| (i % 97) as f32).collect();
        let values = Tensor::from_vec(values, n, &Device::Cpu)?;
        let mut tensors: Vec<(String, Tensor)> =
            [DType::F64, DType::F32, DType::F16, DType::BF16, DType::U32]
                .iter()
                .map(|&dtype| Ok((format!("{dtype:?}"), values.to_dtype(dtype)?)))
                .collect::<Result<_>>()?;
        tensors.push(("turned".into(), Tensor::arange(0u32, 6, &Device::Cpu)?.reshape((2, 3))?.t()?));
        tensors.push(("empty".into(), Tensor::zeros((0, 4), DType::F32, &Device::Cpu)?));
        write_safetensors(&path, &[("key", "value")], &tensors)?;
        let checkpoint = Checkpoint::open_files(&[path])?;
        assert_eq!(checkpoint.metadata()?, [("key".to_string(), "value".to_string())].into());
        for (name, tensor) in &tensors {
            let read = checkpoint.read(name, tensor.dims(), DType::F64, &Device::Cpu)?.tensor;
            let (a, b) = (read.flatten_all()?, tensor.to_dtype(DType::F64)?.flatten_all()?);
            assert!(a.to_vec1::<f64>()? == b.to_vec1::<f64>()?, "{name}");
        }
        Ok(())
    }
}
