//! What an architecture is, before any weight exists: parameters, FLOPs, states, layer by layer.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Result, bail};
use semisep_core::{
    AbacusEmbedding, BlockFormat, Cost, Init, MAX_WIDTH, Mixer, Norm, ParameterGroup, VarBuilder,
};
use serde::Serialize;

use crate::blueprint::layer_json;
use crate::links::{Link, Row};
use crate::normal::{Architecture, Layer, ModelConfig};

/// The whole of an architecture in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// The architecture's name.
    pub name: String,
    /// Its hash.
    pub hash: String,
    /// The dtype of weights, keys and values: `bf16`.
    pub dtype: String,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub seqlen: usize,
    /// One row a layer.
    pub layers: Vec<LayerRow>,
    /// Parameters of the embedding, with its norm and that of digits' places if there are any.
    pub embedding_parameters: u64,
    /// Parameters of the head: 0 if it is the embedding.
    pub head_parameters: u64,
    /// Parameters of the final norm.
    pub final_norm_parameters: u64,
    /// The weights by what they are held in.
    pub weights: Vec<WeightRow>,
    /// All of it.
    pub total: Totals,
}

/// One layer in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerRow {
    /// Its index, from 0.
    pub layer: usize,
    /// The block it is made of.
    pub block: String,
    /// Its mixers: `attention + mlp` in series, `attention | mamba2` in parallel.
    pub kind: String,
    /// The earlier layer whose parameters it holds, all or some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<usize>,
    /// Parameters held, norms included, but for those of an earlier layer.
    pub parameters: u64,
    /// Those of them that one token meets: all, but for experts that it does not pass through.
    pub active_parameters: u64,
    /// FLOPs forward, a token, at this length.
    pub flops_per_token: u64,
    /// Bytes of recurrent state of the whole batch, the same at any length.
    pub state_bytes: u64,
    /// Bytes of keys and values of the whole batch after `seqlen` tokens.
    pub kv_bytes: u64,
}

/// Sums over layers, embedding, head and final norm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Parameters held.
    pub parameters: u64,
    /// Those of them that one token meets: all, but for experts that it does not pass through.
    pub active_parameters: u64,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// FLOPs forward, a token, head included.
    pub flops_per_token: u64,
    /// Bytes of recurrent state.
    pub state_bytes: u64,
    /// Bytes of keys and values.
    pub kv_bytes: u64,
}

/// How weights are held: `DType::F32.into()` where all are tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// The dtype of tensors.
    pub dtype: DType,
    /// The format of matrices, as of [`VarBuilder::quantised`].
    pub quant: Option<BlockFormat>,
}

impl From<DType> for Weights {
    fn from(dtype: DType) -> Self {
        Self { dtype, quant: None }
    }
}

/// Weights of one type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WeightRow {
    /// `f32`, `q8_0`
    pub held: &'static str,
    /// Tensors held so.
    pub tensors: u64,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Parameters that have been built, by what they are held in, most bytes first.
pub fn weights_by_type<'a>(groups: impl IntoIterator<Item = &'a ParameterGroup>) -> Vec<WeightRow> {
    let mut rows: BTreeMap<&'static str, WeightRow> = BTreeMap::new();
    for group in groups {
        let Some(held) = group.held else { continue };
        let empty = WeightRow { held: held.name(), tensors: 0, parameters: 0, bytes: 0 };
        let row = rows.entry(held.name()).or_insert(empty);
        row.tensors += 1;
        row.parameters = row.parameters.saturating_add(u64::try_from(elements(group)).unwrap_or(u64::MAX));
        let bytes = u64::try_from(held.bytes(elements(group)));
        row.bytes = row.bytes.saturating_add(bytes.unwrap_or(u64::MAX));
    }
    let mut rows: Vec<WeightRow> = rows.into_values().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    rows
}

/// The layer as bare shapes: every parameter, and what forward costs.
struct Shape {
    parts: Vec<Part>,
    mixers: Vec<Box<dyn Mixer>>,
    norms: usize,
}

/// Parameters of a layer that belong together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    /// Under which they are counted once in the model; `None` for the layer's own.
    pub(crate) share: Option<String>,
    /// Whether it is a parameter of all layers, and none of any one.
    common: bool,
    pub(crate) parameters: u128,
    /// Those that a token does not meet.
    idle: u128,
    groups: Vec<ParameterGroup>,
}

impl Part {
    fn add<'p>(parts: &'p mut Vec<Self>, share: Option<&str>) -> &'p mut Self {
        let known = parts.iter().position(|part| part.share.as_deref() == share);
        let place = known.unwrap_or_else(|| {
            parts.push(Self { share: share.map(String::from), ..Self::default() });
            parts.len() - 1
        });
        &mut parts[place]
    }
}

impl Shape {
    fn new(layer: &Layer, layers: usize, model: &ModelConfig, weights: Weights) -> Result<Self> {
        // As the second layer of a stack, whose shared parameters are the first one's.
        let root = shapes(weights);
        let place = root.layer(1, layers);
        let (mut mixers, mut norms, mut parts) = (vec![], BTreeSet::new(), vec![Part::default()]);
        let mut counted = 0;
        for branch in layer.stages.iter().flat_map(|stage| &stage.branches) {
            let share = branch.share.as_deref().or(layer.share.as_deref());
            let vb = if share.is_some() { place.sharing(0) } else { place.clone() };
            for path in [&branch.pre_norm, &branch.post_norm].into_iter().flatten() {
                if norms.insert(path) {
                    Norm::new(model.d_model, model.norm, &vb.pp(path))?;
                }
            }
            let mixer = branch.mixer.build(model.d_model, vb.pp(&branch.path))?;
            let idle = mixer.cost(1, 1).parameters.saturating_sub(mixer.active_parameters());
            Part::add(&mut parts, share).idle += u128::from(idle);
            mixers.push(mixer);
            let groups = root.groups();
            for group in &groups[counted..] {
                let holder = match group.name.split_once(".") {
                    Some(("layers", rest)) if rest.starts_with("0.") => share,
                    Some(("layers", _)) => None,
                    _ => Some(group.name.as_str()), // of all layers
                };
                let part = Part::add(&mut parts, holder);
                part.common |= !group.name.starts_with("layers.");
                part.parameters += elements(group);
                part.groups.push(group.clone());
            }
            counted = groups.len();
        }
        Ok(Self { parts, mixers, norms: norms.len() })
    }

    /// For one sequence. A norm costs four operations a feature: square, add, scale, weight.
    fn cost(&self, seqlen: usize, d_model: usize) -> Cost {
        let mixers: Cost = self.mixers.iter().map(|mixer| mixer.cost(1, seqlen)).sum();
        Cost { flops: mixers.flops + (4 * self.norms * d_model * seqlen) as u64, ..mixers }
    }

    fn links(&self) -> Vec<Link> {
        self.mixers.iter().map(|mixer| Link::new(&**mixer)).collect()
    }
}

fn elements(group: &ParameterGroup) -> u128 {
    group.shape.iter().map(|n| *n as u128).product()
}

fn shapes(weights: Weights) -> VarBuilder {
    VarBuilder::shapes(weights.dtype).quantised(weights.quant)
}

/// What a blueprint must know of a layer.
pub(crate) struct Sizes {
    /// Its parameters, norms included.
    pub(crate) parts: Vec<Part>,
    /// What its mixers need of earlier layers and leave for later ones.
    pub(crate) links: Vec<Link>,
}

/// The sizes of one of so many layers.
pub(crate) fn sizes(layer: &Layer, layers: usize, model: &ModelConfig) -> Result<Sizes> {
    let shape = Shape::new(layer, layers, model, DType::F32.into())?;
    let links = shape.links();
    Ok(Sizes { parts: shape.parts, links })
}

/// A distinct block in numbers.
struct Block {
    parts: Vec<Part>,
    cost: Cost,
    links: Vec<Link>,
}

impl Block {
    fn new(
        layer: &Layer,
        layers: usize,
        model: &ModelConfig,
        seqlen: usize,
        weights: Weights,
    ) -> Result<Self> {
        let shape = Shape::new(layer, layers, model, weights)?;
        let (cost, links) = (shape.cost(seqlen, model.d_model), shape.links());
        Ok(Self { parts: shape.parts, cost, links })
    }
}

/// Describes an architecture with weights held so, for `batch` sequences of `seqlen` tokens. Needs no weights and
/// next to no memory: each distinct block is built once, as shapes.
///
/// # Errors
/// If a block cannot be built, a layer needs what no earlier one hands on, or there are no or more than 2^24 sequences or tokens.
pub fn describe(
    architecture: &Architecture,
    batch: usize,
    seqlen: usize,
    weights: impl Into<Weights>,
) -> Result<Description> {
    let weights = weights.into();
    for (what, size) in [("batch", batch), ("seqlen", seqlen)] {
        if !(1..=MAX_WIDTH).contains(&size) {
            bail!("describe: {what} is {size}, expected 1 to {MAX_WIDTH}");
        }
    }
    let (model, depth) = (&architecture.model, architecture.layers.len());
    let (mut built, mut holders) = (BTreeMap::new(), BTreeMap::new());
    let (mut layers, mut groups) = (vec![], vec![]);
    let (mut total, mut links) = (Totals::default(), Row::new(model.d_model));
    for (index, layer) in architecture.layers.iter().enumerate() {
        let identity = serde_json::json!([layer.share, layer_json(&layer.stages)]).to_string();
        if !built.contains_key(&identity) {
            built.insert(identity.clone(), Block::new(layer, depth, model, seqlen, weights)?);
        }
        let Block { parts, cost, links: own_links } = &built[&identity];
        links.pass(own_links).map_err(|lack| lack.error(index, layer))?;
        let held = held(parts, index, &mut holders);
        let row = LayerRow {
            layer: index,
            block: layer.block.clone(),
            kind: kind(layer),
            shares: held.of,
            parameters: held.parameters as u64,
            active_parameters: held.parameters.saturating_sub(held.idle) as u64,
            flops_per_token: cost.flops / seqlen as u64,
            state_bytes: cost.state_bytes.saturating_mul(batch as u64),
            kv_bytes: cost.kv_bytes.saturating_mul(batch as u64),
        };
        total.parameters += row.parameters;
        total.active_parameters += row.active_parameters;
        groups.extend(held.groups);
        total.flops_per_token += row.flops_per_token;
        total.state_bytes = total.state_bytes.saturating_add(row.state_bytes);
        total.kv_bytes = total.kv_bytes.saturating_add(row.kv_bytes);
        layers.push(row);
    }
    let embedding = model.padded_vocab() as u64 * model.d_model as u64;
    let head = if model.tie_embeddings { 0 } else { embedding };
    let vb = shapes(weights);
    Norm::new(model.d_model, model.norm, &vb)?;
    let final_norm = vb.groups().iter().map(elements).sum::<u128>() as u64;
    if model.embedding_norm {
        Norm::new(model.d_model, model.norm, &vb)?;
    }
    for _ in 0..if model.tie_embeddings { 1 } else { 2 } {
        vb.matrix((model.padded_vocab(), model.d_model), "weight", Init::ZEROS)?;
    }
    if let Some(abacus) = &model.abacus {
        AbacusEmbedding::new(abacus, model.d_model, &vb)?;
    }
    groups.extend(vb.groups());
    let by_type = weights_by_type(&groups);
    total.weight_bytes = by_type.iter().fold(0, |sum: u64, row| sum.saturating_add(row.bytes));
    let norms = if model.embedding_norm { 2 } else { 1 };
    let places = model.abacus.as_ref().map_or(0, |a| AbacusEmbedding::parameters(a, model.d_model));
    let outside = embedding + places + head + norms * final_norm;
    total.parameters += outside;
    total.active_parameters += outside;
    if model.abacus.is_some() {
        total.state_bytes = total.state_bytes.saturating_add((batch * size_of::<u32>()) as u64);
    }
    total.flops_per_token += 2 * embedding + 4 * norms * model.d_model as u64;
    Ok(Description {
        name: architecture.name.clone(),
        hash: architecture.hash(),
        dtype: weights.quant.map_or(weights.dtype.as_str(), BlockFormat::name).into(),
        batch,
        seqlen,
        layers,
        embedding_parameters: embedding + places + (norms - 1) * final_norm,
        head_parameters: head,
        final_norm_parameters: final_norm,
        weights: by_type,
        total,
    })
}

/// What a layer holds that no earlier one does.
#[derive(Default)]
struct Held {
    parameters: u128,
    idle: u128,
    groups: Vec<ParameterGroup>,
    /// The first of the earlier layers whose parameters it holds.
    of: Option<usize>,
}

fn held(parts: &[Part], index: usize, holders: &mut BTreeMap<String, usize>) -> Held {
    let mut held = Held::default();
    for part in parts {
        let holder = part.share.clone().map_or(index, |id| *holders.entry(id).or_insert(index));
        if holder == index {
            held.parameters += part.parameters;
            held.idle += part.idle;
            held.groups.extend(part.groups.iter().cloned());
        } else if !part.common {
            held.of = Some(held.of.map_or(holder, |of| of.min(holder)));
        }
    }
    held
}

fn kind(layer: &Layer) -> String {
    let stages = layer.stages.iter().map(|stage| {
        let branches: Vec<&str> = stage.branches.iter().map(|b| b.mixer.kind()).collect();
        branches.join(" | ")
    });
    stages.collect::<Vec<_>>().join(" + ")
}
