//! Where a layer's parameters come from, and what training must know of each.
//!
//! A layer asks its [`VarBuilder`] for each tensor by the name it has in the field's checkpoints; the paths are the
//! documentation of the file format. The same code builds a layer from a checkpoint, from seeded random values, as
//! trainable variables, or as bare shapes to be described before any weight exists: that is the [`Source`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use semisep_kernels::{Activations, BlockFormat, Matrix, Quantised, state_dtype};

use crate::Init;
use crate::built::Built;
use crate::sources::{Seeded, Shapes};

/// One parameter: its place, shape, and how it is to be trained.
#[derive(Debug, Clone)]
pub struct ParameterGroup {
    /// Full path, as in the checkpoint.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Initial value.
    pub init: Init,
    /// Factor on the learning rate.
    pub lr_scale: f64,
    /// Whether weight decay applies.
    pub weight_decay: bool,
    /// Kept in f32 (f64 in an f64 model) whatever the weights' dtype.
    pub full_precision: bool,
    /// A constant that is stored with the weights and never trained: read like a parameter, counted with none.
    pub buffer: bool,
    /// What it is held in, once it has been built.
    pub held: Option<WeightType>,
}

/// What a parameter is held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// A tensor of this dtype.
    Dense(DType),
    /// Quantised blocks.
    Blocks(BlockFormat),
}

impl WeightType {
    /// Bytes of so many elements; rows are whole blocks.
    pub fn bytes(self, elements: u128) -> u128 {
        match self {
            Self::Dense(dtype) => elements * dtype.size_in_bytes() as u128,
            Self::Blocks(format) => elements / format.weights() as u128 * format.bytes() as u128,
        }
    }

    /// `f32`, `q8_0`
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense(dtype) => dtype.as_str(),
            Self::Blocks(format) => format.name(),
        }
    }
}

impl ParameterGroup {
    /// A matrix: decayed, in the model's dtype.
    pub fn weight(name: &str, shape: impl Into<Shape>, init: Init) -> Self {
        Self {
            name: name.into(),
            shape: shape.into().into_dims(),
            init,
            lr_scale: 1.0,
            weight_decay: true,
            full_precision: false,
            buffer: false,
            held: None,
        }
    }

    /// A constant stored with the weights, in full precision.
    pub fn buffer(name: &str, shape: impl Into<Shape>, init: Init) -> Self {
        Self { buffer: true, ..Self::scale(name, shape, init) }
    }

    /// A norm weight, bias, decay or step size: full precision and not decayed.
    pub fn scale(name: &str, shape: impl Into<Shape>, init: Init) -> Self {
        Self { weight_decay: false, full_precision: true, ..Self::weight(name, shape, init) }
    }

    /// Learns at `scale` times the model's rate.
    pub fn lr_scale(mut self, scale: f64) -> Self {
        self.lr_scale = scale;
        self
    }

    /// Elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Hands out parameters by their full path.
pub trait Source: Send + Sync {
    /// The tensor of this parameter, in `dtype`, on `device`.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    fn get(&self, parameter: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor>;

    /// The matrix of this parameter, (outputs, inputs), which layers multiply by and do nothing else with: in blocks of
    /// `format`, which fits its rows, or else in `dtype` (in place, perhaps in a narrower one that rounds nothing). A source of
    /// variables or of bare shapes gives a tensor.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    fn matrix(
        &self,
        parameter: &ParameterGroup,
        dtype: DType,
        format: Option<BlockFormat>,
        device: &Device,
    ) -> Result<Matrix> {
        match format {
            None => Ok(self.get(parameter, dtype, device)?.into()),
            Some(format) => {
                let numbers = self.get(parameter, DType::F32, device)?;
                Ok(Matrix::Quantised(Quantised::quantise(&numbers, format)?))
            }
        }
    }

    /// Whether there is a tensor of this path; sources that make their tensors have all of them.
    fn contains(&self, path: &str) -> bool;
}

/// A [`Source`] with a position in the name tree, a dtype and a device.
#[derive(Clone)]
pub struct VarBuilder {
    source: Arc<dyn Source>,
    prefix: String,
    dtype: DType,
    quant: Option<BlockFormat>,
    activations: Activations,
    device: Device,
    /// Factor on the initial values of [`OUTPUTS`].
    output_scale: f64,
    built: Arc<Mutex<Built>>,
    /// What several layers hold together, by path.
    common: Arc<Mutex<BTreeMap<String, Matrix>>>,
    place: Option<Place>,
    borrowed: Option<Borrowed>,
}

/// A layer's place in a stack.
#[derive(Clone)]
struct Place {
    /// What the layers' paths begin with, `layers.N` left out.
    root: String,
    index: usize,
    layers: usize,
}

/// For a part of a layer that holds another layer's parameters.
#[derive(Clone)]
struct Borrowed {
    /// The same position in the name tree below the layer itself.
    own: String,
    /// What this part holds, whoever built it.
    held: Arc<Mutex<Built>>,
}

/// Last maps of residual branches, by their names in mamba_ssm, GPT-2 and fla.
const OUTPUTS: [&str; 5] = ["out_proj", "fc2", "o_proj", "down_proj", "c_proj"];

impl fmt::Debug for VarBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VarBuilder({:?}, {:?}, {:?})", self.prefix, self.dtype, self.device)
    }
}

impl VarBuilder {
    /// Weights in `dtype` on `device`, from `source`.
    pub fn new(source: Arc<dyn Source>, dtype: DType, device: Device) -> Self {
        let (built, common) = Default::default();
        Self {
            source,
            prefix: String::new(),
            dtype,
            quant: None,
            activations: Activations::default(),
            device,
            output_scale: 1.0,
            built,
            common,
            place: None,
            borrowed: None,
        }
    }

    /// Seeded random weights.
    pub fn seeded(seed: u64, dtype: DType, device: Device) -> Self {
        Self::new(Arc::new(Seeded { seed }), dtype, device)
    }

    /// Shapes without memory behind them: good for [`crate::Mixer::cost`] and parameter counts, not for computing.
    pub fn shapes(dtype: DType) -> Self {
        Self::new(Arc::new(Shapes), dtype, Device::Cpu)
    }

    /// With the matrices that layers multiply by in blocks of this format where it or a smaller one fits their rows, and
    /// in f16 instead of f32 where none does. Everything else stays in the dtype.
    pub fn quantised(self, quant: Option<BlockFormat>) -> Self {
        Self { quant, ..self }
    }

    /// With matrices of blocks that read their input so.
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// The dtype of weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dtype of activations: on the CPU half-precision weights meet f32 (f64 in an f64 model) activations.
    pub fn activation_dtype(&self) -> DType {
        if self.device.is_cpu() { state_dtype(self.dtype) } else { self.dtype }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// One level down the name tree.
    pub fn pp(&self, name: impl fmt::Display) -> Self {
        let name = name.to_string();
        let borrowed = self.borrowed.clone().map(|b| Borrowed { own: joined(&b.own, &name), ..b });
        Self { prefix: self.path(&name), borrowed, ..self.clone() }
    }

    /// The layer `index` of a stack of `layers`, whose paths begin here: `layers.N` down the name tree.
    pub fn layer(&self, index: usize, layers: usize) -> Self {
        let place = Place { root: self.prefix.clone(), index, layers };
        Self { place: Some(place), ..self.pp("layers").pp(index) }
    }

    /// Index of the layer in its stack, and how many layers the stack has; `None` outside of a stack.
    pub fn place(&self) -> Option<(usize, usize)> {
        self.place.as_ref().map(|p| (p.index, p.layers))
    }

    /// The parameters of the stack's layer `owner`, which this layer holds as well: read once, and counted once. What is
    /// asked of [`VarBuilder::own`] is this layer's alone. Outside of a stack nothing changes.
    pub fn sharing(&self, owner: usize) -> Self {
        let Some(place) = &self.place else { return self.clone() };
        let prefix = joined(&place.root, &format!("layers.{owner}"));
        let borrowed = Borrowed { own: self.prefix.clone(), held: Arc::default() };
        Self { prefix, borrowed: Some(borrowed), ..self.clone() }
    }

    /// This position below the layer itself, where the layer shares its parameters with others.
    pub fn own(&self) -> Self {
        match &self.borrowed {
            None => self.clone(),
            Some(borrowed) => Self { prefix: borrowed.own.clone(), ..self.clone() },
        }
    }

    /// The same place, where the weights of output projections (`out_proj`, `fc2`, `o_proj`, `down_proj`, `c_proj`) start
    /// at `factor` times their initial values. Sources that read weights are not concerned.
    pub fn scale_outputs(&self, factor: f64) -> Self {
        Self { output_scale: factor, ..self.clone() }
    }

    /// The full path of a name here.
    pub fn path(&self, name: &str) -> String {
        joined(&self.prefix, name)
    }

    /// Whether the source has this tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.source.contains(&self.path(name))
    }

    /// A weight matrix in the model's dtype, decayed.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn get(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
        self.get_group(ParameterGroup::weight(name, shape, init))
    }

    /// A matrix (outputs, inputs) to multiply by, and to do nothing else with: in the model's dtype or in blocks, decayed.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn matrix(&self, (outputs, inputs): (usize, usize), name: &str, init: Init) -> Result<Matrix> {
        self.ask(ParameterGroup::weight(name, (outputs, inputs), init), true)
    }

    /// A norm weight, bias, decay or step size: kept in f32 (f64 in an f64 model), not decayed.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn get_f32(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
        self.get_group(ParameterGroup::scale(name, shape, init))
    }

    /// A parameter with metadata of its own; `group.name` is relative.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn get_group(&self, group: ParameterGroup) -> Result<Tensor> {
        tensor(self.ask(group, false)?)
    }

    /// A tensor, or a matrix to multiply by; `group.name` is relative.
    fn ask(&self, mut group: ParameterGroup, matrix: bool) -> Result<Matrix> {
        group.name = self.path(&group.name);
        if self.output_scale != 1.0 && is_output(&group.name) {
            group.init = group.init.scaled(self.output_scale);
        }
        group.held = Some(self.wanted(&group, matrix));
        if let Some(borrowed) = &self.borrowed {
            if !group.buffer {
                lock(&borrowed.held).push(group.clone());
            }
            return self.once(group, matrix);
        }
        self.build(group, matrix)
    }

    fn dtype_of(&self, group: &ParameterGroup) -> DType {
        if group.full_precision { state_dtype(self.dtype) } else { self.dtype }
    }

    /// What a parameter is to be held in.
    fn wanted(&self, group: &ParameterGroup, matrix: bool) -> WeightType {
        let Some(quant) = self.quant.filter(|_| matrix) else {
            return WeightType::Dense(self.dtype_of(group));
        };
        match (quant.for_columns(group.shape.last().copied().unwrap_or(0)), self.dtype) {
            (Some(format), _) => WeightType::Blocks(format),
            (None, DType::F32) => WeightType::Dense(DType::F16),
            (None, dtype) => WeightType::Dense(dtype),
        }
    }

    /// A parameter that the layers of a stack hold together, beside `layers` in the name tree: read once, and counted
    /// once, with none of them.
    ///
    /// # Errors
    /// If it is missing or has another shape, or there is no stack.
    pub fn get_common(&self, mut group: ParameterGroup) -> Result<Tensor> {
        let Some(place) = &self.place else { bail!("{}: only layers of a stack share it", group.name) };
        group.name = joined(&place.root, &group.name);
        group.held = Some(self.wanted(&group, false));
        tensor(self.once(group, false)?)
    }

    /// A parameter of this full path, built by whoever asks first.
    fn once(&self, group: ParameterGroup, matrix: bool) -> Result<Matrix> {
        let known = lock(&self.common).get(&group.name).cloned();
        let held = match known {
            Some(held) => held,
            None => {
                let held = self.build(group.clone(), matrix)?;
                lock(&self.common).insert(group.name.clone(), held.clone());
                held
            }
        };
        shaped(held.dims(), &group)?;
        Ok(held)
    }

    fn build(&self, mut group: ParameterGroup, matrix: bool) -> Result<Matrix> {
        let dtype = self.dtype_of(&group);
        let mut held = match group.held {
            _ if !matrix => self.source.get(&group, dtype, &self.device)?.into(),
            Some(WeightType::Blocks(format)) => {
                self.source.matrix(&group, dtype, Some(format), &self.device)?
            }
            Some(WeightType::Dense(dtype)) => self.source.matrix(&group, dtype, None, &self.device)?,
            None => self.source.matrix(&group, dtype, None, &self.device)?,
        };
        shaped(held.dims(), &group)?;
        // A source without memory gives a tensor in the stead of blocks.
        match &mut held {
            Matrix::Quantised(blocks) => {
                group.held = Some(WeightType::Blocks(blocks.format()));
                *blocks = blocks.clone().with_activations(self.activations);
            }
            Matrix::InPlace(rows) => group.held = Some(WeightType::Dense(rows.dtype())),
            Matrix::Dense(_) => {}
        }
        if !group.buffer {
            lock(&self.built).push(group);
        }
        Ok(held)
    }

    /// Every parameter built below here so far; of a part that is shared, every one that it holds.
    pub fn groups(&self) -> Vec<ParameterGroup> {
        match &self.borrowed {
            None => lock(&self.built).below([&*self.prefix]),
            Some(borrowed) => lock(&borrowed.held).below([&*self.prefix, &*borrowed.own]),
        }
    }
}

fn joined(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.into() } else { format!("{prefix}.{name}") }
}

/// The tensor of a parameter that no layer multiplies by as a matrix.
fn tensor(held: Matrix) -> Result<Tensor> {
    match held {
        Matrix::Dense(tensor) => Ok(tensor),
        Matrix::Quantised(blocks) => blocks.dequantise(DType::F32),
        Matrix::InPlace(rows) => rows.to_tensor(rows.dtype()),
    }
}

fn shaped(found: &[usize], group: &ParameterGroup) -> Result<()> {
    if found != group.shape {
        bail!("{}: expected shape {:?}, found {found:?}", group.name, group.shape);
    }
    Ok(())
}

/// Whether this is the weight of an output projection.
fn is_output(path: &str) -> bool {
    let map = path.strip_suffix(".weight").and_then(|p| p.rsplit('.').next());
    map.is_some_and(|name| OUTPUTS.contains(&name))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_take_no_memory_and_are_recorded() -> Result<()> {
        let vb = VarBuilder::shapes(DType::BF16);
        let big = vb.pp("head").get((1 << 20, 1 << 20), "weight", Init::ZEROS)?;
        assert_eq!((big.dims(), big.dtype()), (&[1 << 20, 1 << 20][..], DType::BF16));
        vb.pp("norm").get_f32(8, "weight", Init::ONES)?;
        let groups = vb.groups();
        assert_eq!(groups[0].elements(), 1 << 40);
        assert_eq!(vb.pp("norm").groups().len(), 1);
        assert!(groups[1].full_precision && !groups[1].weight_decay);
        Ok(())
    }

    #[test]
    fn output_projections_alone_are_scaled() -> Result<()> {
        let vb = VarBuilder::seeded(1, DType::F64, Device::Cpu);
        for (name, factor) in [("out_proj", 0.25), ("mlp.fc2", 0.25), ("in_proj", 1.0), ("my_out_proj", 1.0)]
        {
            let plain = vb.pp(name).get((2, 3), "weight", Init::linear(3))?;
            let scaled = vb.scale_outputs(0.25).pp(name).get((2, 3), "weight", Init::linear(3))?;
            let error = ((plain * factor)? - scaled)?.abs()?.sum_all()?.to_scalar::<f64>()?;
            assert!(error < 1e-6, "{name}: {error}");
        }
        let bias = |vb: &VarBuilder| vb.pp("out_proj").get_f32(3, "bias", Init::ONES)?.to_vec1::<f64>();
        assert_eq!(bias(&vb)?, bias(&vb.scale_outputs(0.25))?);
        Ok(())
    }

    #[test]
    fn matrices_take_blocks_that_fit_their_rows() -> Result<()> {
        let vb = VarBuilder::seeded(1, DType::F32, Device::Cpu).quantised(Some(BlockFormat::Q4K));
        let held = |columns| -> Result<_> {
            let matrix = vb.matrix((3, columns), "weight", Init::linear(columns))?;
            Ok((matrix.size_in_bytes(), vb.groups().last().and_then(|g| g.held)))
        };
        assert_eq!(held(512)?, (3 * 288, Some(WeightType::Blocks(BlockFormat::Q4K))));
        assert_eq!(held(96)?, (3 * 66, Some(WeightType::Blocks(BlockFormat::Q5_0))));
        assert_eq!(held(48)?, (3 * 96, Some(WeightType::Dense(DType::F16))));
        vb.get((3, 512), "table", Init::ONES)?;
        assert_eq!(vb.groups().last().and_then(|g| g.held), Some(WeightType::Dense(DType::F32)));
        let shapes = VarBuilder::shapes(DType::BF16).quantised(Some(BlockFormat::Q8_0));
        shapes.matrix((1 << 20, 1 << 20), "weight", Init::ZEROS)?;
        let group = &shapes.groups()[0];
        assert_eq!(group.held.map(|held| held.bytes(1 << 40)), Some((1 << 35) * 34));
        Ok(())
    }
}
