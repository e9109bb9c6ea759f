//! Layers built from the normal form, one residual stage after another.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use semisep_core::{Context, Cost, Distilled, Mixer, Norm, NormConfig, Shared, State, VarBuilder};

use crate::links::{Link, Row};
use crate::normal::{Branch, Input, Layer, Merge, Output, Stage};

/// A mixer that was replaced by its form of constant cost: see [`Mixer::distilled`].
#[derive(Debug, Clone, PartialEq)]
pub struct DistilledLayer {
    /// The layer by its index and block: `layer 3 (hyena)`.
    pub layer: String,
    /// What is approximated, over all its channels: RMS of the difference over RMS of the original.
    pub error: f64,
    /// The same of the channel where it is largest.
    pub worst: f64,
}

/// The layers of a model. Shared layers are built once.
pub struct Stack {
    layers: Vec<Arc<BuiltLayer>>,
    names: Vec<String>,
    rescale_every: usize,
}

#[derive(Clone)]
struct BuiltLayer {
    stages: Vec<BuiltStage>,
}

#[derive(Clone)]
struct BuiltStage {
    branches: Vec<BuiltBranch>,
    factor: f64,
}

#[derive(Clone)]
struct BuiltBranch {
    mixer: Arc<dyn Mixer>,
    pre_norm: Option<(String, Norm)>,
    post_norm: Option<Norm>,
    input_multiplier: f64,
    output_multiplier: f64,
    input: Input,
    output: Output,
}

/// The first layer of each share id.
type Owners<'a> = HashMap<&'a str, usize>;

/// Where a layer is built.
struct Place<'a> {
    index: usize,
    share: Option<&'a str>,
    vb: VarBuilder,
}

impl<'a> Place<'a> {
    /// Where the parameters of a branch are.
    fn of(&self, branch: &'a Branch, owners: &mut Owners<'a>) -> VarBuilder {
        match branch.share.as_deref().or(self.share) {
            None => self.vb.clone(),
            Some(id) => self.vb.sharing(*owners.entry(id).or_insert(self.index)),
        }
    }
}

impl Stack {
    /// Builds `layers` with the parameters below `vb` (`layers.N`).
    ///
    /// # Errors
    /// If a parameter is missing or has another shape, or a layer needs what no earlier one hands on; the error names the
    /// layer.
    pub fn new(d_model: usize, norm: NormConfig, layers: &[Layer], vb: &VarBuilder) -> Result<Self> {
        let mut shared: HashMap<&str, Arc<BuiltLayer>> = HashMap::new();
        let mut owners = Owners::new();
        let mut built: Vec<Arc<BuiltLayer>> = Vec::with_capacity(layers.len());
        let mut row = Row::new(d_model);
        for (i, layer) in layers.iter().enumerate() {
            let at = vb.layer(i, layers.len());
            let place = Place { index: i, share: layer.share.as_deref(), vb: at.clone() };
            let new = BuiltLayer::new(d_model, norm, layer, &place, &mut owners)
                .map_err(|e| e.context(format!("layer {i} ({})", layer.block)))?;
            // A shared layer with nothing of its own is the first one itself.
            let known =
                layer.share.as_deref().and_then(|id| shared.get(id)).filter(|_| at.groups().is_empty());
            let layer_built = known.cloned().unwrap_or_else(|| Arc::new(new));
            row.pass(&layer_built.links()).map_err(|lack| lack.error(i, layer))?;
            if let Some(id) = &layer.share {
                shared.entry(id).or_insert_with(|| layer_built.clone());
            }
            built.push(layer_built);
        }
        let names = layers.iter().enumerate().map(|(i, l)| format!("layer {i} ({})", l.block)).collect();
        Ok(Self { layers: built, names, rescale_every: 0 })
    }

    /// The same layers with the residual stream halved after each `n` of them, and what a layer adds on the scale that
    /// the stream has by then; 0 for never. Up to the eps of norms and an overall factor this changes nothing.
    pub fn rescaled_every(self, n: usize) -> Self {
        Self { rescale_every: n, ..self }
    }

    /// The parallel form over the residual stream (b, l, d), in the stream's dtype; mixers compute in `dtype`.
    ///
    /// # Errors
    /// If a layer fails; the error names it.
    pub fn forward(
        &self,
        x: Tensor,
        dtype: DType,
        mut states: Option<&mut [State]>,
        cu_seqlens: Option<&[usize]>,
    ) -> Result<Tensor> {
        let (mut next, mut shared) = (0, Shared::default());
        shared.set(Shared::EMBEDDING, x.to_dtype(dtype)?);
        self.run(x, dtype, &mut |mixer, x| {
            let state = states.as_deref_mut().and_then(|s| s.get_mut(next));
            next += 1;
            mixer.forward(x, &mut Context { state, cu_seqlens, shared: Some(&mut shared) })
        })
    }

    /// One token a row: (b, d) -> (b, d).
    ///
    /// # Errors
    /// If a layer fails; the error names it.
    pub fn step(&self, x: Tensor, dtype: DType, states: &mut [State]) -> Result<Tensor> {
        let (mut states, mut shared) = (states.iter_mut(), Shared::default());
        shared.set(Shared::EMBEDDING, x.to_dtype(dtype)?);
        self.run(x, dtype, &mut |mixer, x| match states.next() {
            Some(state) => mixer
                .step(x, &mut Context { state: Some(state), cu_seqlens: None, shared: Some(&mut shared) }),
            None => candle_core::bail!("the state has too few layers: it belongs to another model"),
        })
    }

    /// The parallel form from a zero state; before each mixer runs, `see` gets its place in [`Stack::mixers`], the mixer and
    /// its input.
    ///
    /// # Errors
    /// If a layer fails or `see` does; the error names the layer.
    pub fn visit(
        &self,
        x: Tensor,
        dtype: DType,
        see: &mut dyn FnMut(usize, &dyn Mixer, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let (mut next, mut shared) = (0, Shared::default());
        shared.set(Shared::EMBEDDING, x.to_dtype(dtype)?);
        self.run(x, dtype, &mut |mixer, x| {
            see(next, mixer, x)?;
            next += 1;
            mixer.forward(x, &mut Context { shared: Some(&mut shared), ..Context::default() })
        })
    }

    fn run(
        &self,
        mut x: Tensor,
        dtype: DType,
        apply: &mut dyn FnMut(&dyn Mixer, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut scale = 1.0;
        for (i, (layer, name)) in self.layers.iter().zip(&self.names).enumerate() {
            let mut aside = None;
            for stage in &layer.stages {
                let run = stage.run(x, &mut aside, (dtype, scale), apply);
                x = run.map_err(|e| e.context(name.clone()))?;
            }
            if self.rescale_every > 0 && (i + 1).is_multiple_of(self.rescale_every) {
                (x, scale) = ((x * 0.5)?, scale * 0.5);
            }
        }
        Ok(x)
    }

    /// The same layers, every mixer that has a form of constant cost a token replaced by it ([`Mixer::distilled`]), with
    /// `modes` modes a channel; and which these are.
    ///
    /// # Errors
    /// If there are no modes, or memory cannot be had; the error names the layer.
    pub fn distilled(&self, modes: usize) -> Result<(Self, Vec<DistilledLayer>)> {
        let (mut known, mut report) = (HashMap::new(), Vec::new());
        let mut layers = Vec::with_capacity(self.layers.len());
        for (layer, name) in self.layers.iter().zip(&self.names) {
            if let Some(shared) = known.get(&Arc::as_ptr(layer)) {
                layers.push(Arc::clone(shared));
                continue;
            }
            let mut new = BuiltLayer::clone(layer);
            for branch in new.stages.iter_mut().flat_map(|s| &mut s.branches) {
                let distilled = branch.mixer.distilled(modes).map_err(|e| e.context(name.clone()))?;
                let Some(Distilled { mixer, error, worst }) = distilled else { continue };
                branch.mixer = mixer.into();
                report.push(DistilledLayer { layer: name.clone(), error, worst });
            }
            let new = Arc::new(new);
            known.insert(Arc::as_ptr(layer), new.clone());
            layers.push(new);
        }
        Ok((Self { layers, names: self.names.clone(), rescale_every: self.rescale_every }, report))
    }

    /// Every mixer in order of use: one state each.
    pub fn mixers(&self) -> impl Iterator<Item = &dyn Mixer> {
        self.layers.iter().flat_map(|l| &l.stages).flat_map(|s| &s.branches).map(|b| &*b.mixer)
    }

    /// New states of all mixers.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn new_states(&self, batch: usize) -> Result<Vec<State>> {
        self.mixers().map(|m| m.new_state(batch)).collect()
    }

    /// What the mixers cost; parameters of shared layers count each time they are used.
    pub fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        self.mixers().map(|m| m.cost(batch, seqlen)).sum()
    }
}

impl BuiltLayer {
    fn new<'a>(
        d_model: usize,
        norm: NormConfig,
        layer: &'a Layer,
        place: &Place<'a>,
        owners: &mut Owners<'a>,
    ) -> Result<Self> {
        let stages = layer.stages.iter().map(|s| BuiltStage::new(d_model, norm, s, place, owners));
        Ok(Self { stages: stages.collect::<Result<_>>()? })
    }

    fn links(&self) -> Vec<Link> {
        self.stages.iter().flat_map(|s| &s.branches).map(|b| Link::new(&*b.mixer)).collect()
    }
}

impl BuiltStage {
    fn new<'a>(
        d_model: usize,
        norm: NormConfig,
        stage: &'a Stage,
        place: &Place<'a>,
        owners: &mut Owners<'a>,
    ) -> Result<Self> {
        let factor = match stage.merge {
            Merge::Sum => 1.0,
            Merge::Mean => 1.0 / stage.branches.len().max(1) as f64,
            Merge::Scaled(factor) => factor,
        };
        let mut branches: Vec<BuiltBranch> = Vec::with_capacity(stage.branches.len());
        for branch in &stage.branches {
            let same = |b: &&BuiltBranch| b.pre_norm.as_ref().map(|(p, _)| p) == branch.pre_norm.as_ref();
            let known = branches.iter().find(same).and_then(|b| b.pre_norm.clone());
            let vb = place.of(branch, owners);
            branches.push(BuiltBranch::new(d_model, norm, branch, known, &vb)?);
        }
        Ok(Self { branches, factor })
    }

    /// `x + scale · factor · Σ branches`, and in the same way what is left aside.
    fn run(
        &self,
        x: Tensor,
        aside: &mut Option<Tensor>,
        (dtype, scale): (DType, f64),
        apply: &mut dyn FnMut(&dyn Mixer, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut normed: Option<(&str, Input, Tensor)> = None;
        let [mut stream, mut left]: [Option<Tensor>; 2] = [None, None];
        for branch in &self.branches {
            let read = || branch.read(&x, aside.as_ref());
            let input = match &branch.pre_norm {
                None => read()?.to_dtype(dtype)?,
                Some((path, norm)) => match &normed {
                    Some((known, of, tensor)) if known == path && *of == branch.input => tensor.clone(),
                    _ => {
                        let tensor = norm.forward(&read()?)?.to_dtype(dtype)?;
                        normed = Some((path, branch.input, tensor.clone()));
                        tensor
                    }
                },
            };
            let y = apply(&*branch.mixer, &scaled(input, branch.input_multiplier)?)?;
            let y = branch.post_norm.as_ref().map_or(Ok(y.clone()), |n| n.forward(&y))?;
            let y = scaled(y, branch.output_multiplier)?.to_dtype(x.dtype())?;
            let total = if branch.output == Output::Stream { &mut stream } else { &mut left };
            *total = Some(match total.take() {
                Some(total) => (total + y)?,
                None => y,
            });
        }
        if let Some(left) = left {
            *aside = Some(scaled(left, self.factor * scale)?);
        }
        match stream {
            Some(total) => x + scaled(total, self.factor * scale)?,
            None => Ok(x),
        }
    }
}

impl BuiltBranch {
    fn new(
        d_model: usize,
        norm: NormConfig,
        branch: &Branch,
        known: Option<(String, Norm)>,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let build = |path: &String| Norm::new(d_model, norm, &vb.pp(path));
        let pre_norm = match (known, &branch.pre_norm) {
            (Some(known), Some(_)) => Some(known),
            (_, Some(path)) => Some((path.clone(), build(path)?)),
            (_, None) => None,
        };
        let mixer = vb.pp(&branch.path);
        let residual = branch.output == Output::Stream;
        let pre_norm_alone = residual && branch.pre_norm.is_some() && branch.post_norm.is_none();
        let mixer = if pre_norm_alone { mixer } else { mixer.scale_outputs(1.0) };
        Ok(Self {
            pre_norm,
            mixer: branch.mixer.build(d_model, mixer)?.into(),
            post_norm: branch.post_norm.as_ref().map(build).transpose()?,
            input_multiplier: branch.input_multiplier,
            output_multiplier: branch.output_multiplier,
            input: branch.input,
            output: branch.output,
        })
    }

    /// The stream, what was left aside, or their sum.
    fn read(&self, x: &Tensor, aside: Option<&Tensor>) -> Result<Tensor> {
        match (self.input, aside) {
            (Input::Stream, _) => Ok(x.clone()),
            (Input::Aside, Some(aside)) => Ok(aside.clone()),
            (Input::Both, Some(aside)) => x + aside,
            (_, None) => candle_core::bail!("no earlier mixer of the layer leaves anything aside"),
        }
    }
}

/// `factor · x`, and `x` itself for 1.
pub(crate) fn scaled(x: Tensor, factor: f64) -> Result<Tensor> {
    if factor == 1.0 { Ok(x) } else { x * factor }
}
