//! Checkpoint files: a folder of weights as a list of named tensors whose bytes stay in the mapped files until asked for.

mod convert;
mod dtype;
mod gguf;
mod matrices;
mod packed;
mod pickle;
mod safetensors;
mod shards;
mod torch;
mod view;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

pub use dtype::StoredType;
pub(crate) use gguf::is_bamba;
pub use gguf::{Metadata, Value, metadata as gguf_metadata};
pub use packed::Packed;
pub use view::View;
pub use write::{TensorEntry, write_safetensors, write_tensors};

use crate::files::{Mapped, inside};
use crate::{Error, Result};

/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;

/// One tensor as it lies in a file.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Its name in the file.
    pub name: String,
    /// Its elements' type.
    pub dtype: StoredType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Strides in elements, where they are not row-major (PyTorch files only).
    strides: Option<Vec<usize>>,
    /// Where the elements lie, if in neither of these ways (GGUF files only).
    order: Option<View>,
    /// Each value x stands for `ln(-x)` (GGUF files only).
    log_negative: bool,
    /// Added to each value (GGUF files only).
    plus: f64,
    /// The pieces of other tensors of which it consists, one after the other (GGUF files only).
    pieces: Vec<Stored>,
    /// Which file of the checkpoint.
    file: usize,
    /// First byte in the file.
    offset: usize,
    /// How many bytes may be read from there.
    bytes: usize,
    /// Product of the shape.
    pub elements: usize,
}

/// The tensors of a folder or file.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Arc<Mapped>>,
    tensors: BTreeMap<String, Stored>,
    gguf: Option<Metadata>,
}

/// A tensor read from a checkpoint.
pub struct Read {
    /// Its values.
    pub tensor: Tensor,
    /// How many of them are NaN or infinite.
    pub non_finite: usize,
}

/// Whether a path can hold a model: a folder or a GGUF file.
pub fn is_model(path: &Path) -> bool {
    path.is_dir() || gguf::is_file(path)
}

impl Stored {
    /// All of its elements.
    pub fn view(&self) -> View {
        if let Some(order) = &self.order {
            return order.clone();
        }
        let whole = View::whole(&self.shape);
        match &self.strides {
            Some(strides) => View { strides: strides.clone(), ..whole },
            None => whole,
        }
    }
}

impl Checkpoint {
    /// The weights of a folder: `model.safetensors`, else its shards by `model.safetensors.index.json`, else
    /// `pytorch_model.bin`, else its shards by `pytorch_model.bin.index.json`, else Lightning's `weights.ckpt`, else the
    /// only `.pth` file, else the only `.gguf` file; or a `.gguf` file itself.
    ///
    /// # Errors
    /// If there are none, or several `.pth` files, or a file is damaged, holds code, or lies outside of the folder.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::find(folder)?.ok_or_else(|| {
            Error::at(
                folder,
                "expected model.safetensors or pytorch_model.bin (or shards with an index), or a .pth file, found none",
            )
            .hint("name the folder that holds config.json and the weights")
        })
    }

    /// As [`Checkpoint::open`]; `None` if the folder holds no weights.
    ///
    /// # Errors
    /// As for [`Checkpoint::open`], but for weights that are not there.
    pub fn find(folder: &Path) -> Result<Option<Self>> {
        if gguf::is_file(folder) {
            return gguf::open(folder).map(Some);
        }
        if !folder.is_dir() {
            return Err(Error::at(folder, "expected a folder with a checkpoint, found none")
                .hint("name the folder that holds config.json and the weights"));
        }
        for stem in ["model.safetensors", "pytorch_model.bin", "weights.ckpt"] {
            let (whole, index) = (folder.join(stem), folder.join(format!("{stem}.index.json")));
            // symlink_metadata: a dangling link is an error to report, not an absent file.
            if whole.symlink_metadata().is_ok() {
                return Self::open_files(&[whole]).map(Some);
            }
            if index.symlink_metadata().is_ok() {
                return shards::open(folder, &index).map(Some);
            }
        }
        match &pth_files(folder)?[..] {
            [] => gguf::in_folder(folder)?.map(|path| gguf::open(&path)).transpose(),
            [name] => Self::open_files(&[inside(folder, name)?]).map(Some),
            [first, second, ..] => {
                Err(Error::at(folder, format!("expected one .pth file, found several: {first}, {second}"))
                    .hint("move the one to load into a folder of its own"))
            }
        }
    }

    /// The tensors of these files, together; `.safetensors` by its name, PyTorch archives otherwise.
    ///
    /// # Errors
    /// If a file is damaged or holds code, or two hold a tensor of the same name.
    pub fn open_files(paths: &[PathBuf]) -> Result<Self> {
        let mut checkpoint = Self { files: Vec::with_capacity(paths.len()), ..Self::empty() };
        for (file, path) in paths.iter().enumerate() {
            let mapped = Mapped::open(path)?;
            let is_safetensors = path.extension().is_some_and(|e| e == "safetensors");
            let read = if is_safetensors { safetensors::tensors } else { torch::tensors };
            for stored in read(mapped.bytes(), file, path)? {
                let name = stored.name.clone();
                if let Some(other) = checkpoint.tensors.insert(name.clone(), stored) {
                    let first = paths[other.file].display();
                    return Err(Error::at(path, format!("{name} is in {first} as well, expected it once")));
                }
            }
            checkpoint.files.push(Arc::new(mapped));
        }
        Ok(checkpoint)
    }

    /// The `__metadata__` of the first file, if that is a safetensors file.
    ///
    /// # Errors
    /// If its header is no valid one.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let file = self.files.first().filter(|f| f.path().extension().is_some_and(|e| e == "safetensors"));
        file.map_or_else(|| Ok(BTreeMap::new()), |file| safetensors::metadata(file.bytes(), file.path()))
    }

    /// What the file says of itself, if it is a GGUF file: its tensors then have the names and the order of elements that
    /// the family's checkpoints have.
    pub fn gguf(&self) -> Option<&Metadata> {
        self.gguf.as_ref()
    }

    /// All tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Stored> {
        self.tensors.values()
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// The file that a tensor is in.
    pub fn path(&self, stored: &Stored) -> &Path {
        self.files[stored.file].path()
    }

    /// Without any tensor: of a folder that holds a configuration alone.
    pub fn empty() -> Self {
        Self { files: Vec::new(), tensors: BTreeMap::new(), gguf: None }
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Reads a tensor in `dtype`, straight from the file to its place in memory; the file's pages are let go of.
    ///
    /// # Errors
    /// If there is none of this name, it has another number of elements than `shape`, or no numbers.
    pub fn read(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Read> {
        let stored =
            self.get(name).ok_or_else(|| Error::new(format!("the checkpoint has no tensor {name}")))?;
        self.read_views(&[(stored, stored.view())], shape, dtype, device, 0.0)
    }

    /// Reads parts of tensors, one after the other in row-major order, with `plus` added to every element: each from its
    /// file straight to its place in memory.
    ///
    /// # Errors
    /// If they have not as many elements as `shape` together, or are no numbers.
    pub fn read_views(
        &self,
        parts: &[(&Stored, View)],
        shape: &[usize],
        dtype: DType,
        device: &Device,
        plus: f64,
    ) -> Result<Read> {
        let expected = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let found = parts.iter().try_fold(0usize, |n, (_, view)| n.checked_add(view.elements()));
        if expected.is_none() || expected != found {
            let list: Vec<String> =
                parts.iter().map(|(stored, view)| format!("{} {:?}", stored.name, view.shape)).collect();
            let message = format!("{}: expected shape {shape:?}", list.join(" + "));
            return Err(match parts.first() {
                Some((stored, _)) => Error::at(self.path(stored), message),
                None => Error::new(message),
            });
        }
        let lying = lying(parts);
        let sources: Vec<convert::Source<'_>> = lying
            .iter()
            .map(|(stored, view)| convert::Source { file: &self.files[stored.file], stored, view })
            .collect();
        let converted = convert::convert(&sources, shape, dtype, device, plus)?;
        Ok(Read { tensor: converted.tensor, non_finite: converted.non_finite })
    }

    /// Whether two tensors hold the same bytes in the same shape.
    pub fn same(&self, a: &Stored, b: &Stored) -> bool {
        if (a.dtype, &a.shape, &a.strides, &a.order) != (b.dtype, &b.shape, &b.strides, &b.order)
            || !(a.pieces.is_empty() && b.pieces.is_empty())
        {
            return false;
        }
        if (a.file, a.offset) == (b.file, b.offset) {
            return true;
        }
        // Piece by piece, so that comparing does not fill the memory with the file.
        let (file_a, file_b) = (&self.files[a.file], &self.files[b.file]);
        let length = a.bytes.min(b.bytes);
        (a.strides.is_some() || a.bytes == b.bytes)
            && (0..length).step_by(PIECE).all(|start| {
                let end = (start + PIECE).min(length);
                let (range_a, range_b) = (a.offset + start..a.offset + end, b.offset + start..b.offset + end);
                let same = file_a.bytes()[range_a.clone()] == file_b.bytes()[range_b.clone()];
                file_a.release(range_a);
                file_b.release(range_b);
                same
            })
    }
}

/// The parts with each tensor that consists of pieces replaced by the runs of them that the part takes.
fn lying<'a>(parts: &[(&'a Stored, View)]) -> Vec<(&'a Stored, View)> {
    let mut lying = Vec::with_capacity(parts.len());
    for (stored, view) in parts {
        if stored.pieces.is_empty() {
            lying.push((*stored, view.clone()));
            continue;
        }
        let run = view.run();
        for first in view.runs() {
            let mut start = 0;
            for piece in &stored.pieces {
                let end = start + piece.elements;
                let (from, to) = (first.max(start), (first + run).min(end));
                if from < to {
                    let within = piece.view().start + from - start;
                    lying.push((piece, View { start: within, ..View::whole(&[to - from]) }));
                }
                start = end;
            }
        }
    }
    lying
}

/// The names of the folder's `.pth` files, sorted.
fn pth_files(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::at(folder, format!("cannot be read: {e}")))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".pth")).collect();
    names.sort();
    Ok(names)
}

/// Bytes compared at a time.
const PIECE: usize = 16 << 20;
