//! What a model's layers multiply by: the mixing matrix of each layer and head over one text, as pictures and ranks.
//!
//! A state-space layer's matrix is semiseparable: the blocks below its diagonal have at most the rank of the state. That
//! of softmax attention is not. The ranks here are measured on the matrices that the layers' own kernels applied.

mod picture;

use candle_core::{DType, IndexOp, Tensor};
pub use picture::{Scale, png};
use rayon::prelude::*;
use semisep_core::Mixing;
use semisep_models::{LanguageModel, normal::Architecture, off_diagonal_rank};
use serde::Serialize;

use crate::{Error, Result};

/// Splits at which the blocks below the diagonal are taken.
const SPLITS: usize = 7;

/// Elements that the matrices of one layer may have: 1 GiB in f64.
const MAX_ELEMENTS: usize = 1 << 27;

/// One mixer over the whole text.
#[derive(Debug, Clone, Serialize)]
pub struct Inspected {
    /// Index of the layer.
    pub layer: usize,
    /// The block it is made of.
    pub block: String,
    /// Where the mixer's parameters are, below the layer.
    pub path: String,
    /// The kind of mixer.
    pub kind: String,
    /// The state size that the blueprint names, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_state: Option<u64>,
    /// Heads, or channels, that have a matrix.
    pub heads: usize,
    /// The rank of the blocks below the diagonal, of each head.
    pub off_diagonal_ranks: Vec<usize>,
    /// The largest of them.
    pub max_off_diagonal_rank: usize,
    /// The highest rank that the blocks could have.
    pub possible_rank: usize,
    /// Why there is no matrix, if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Runs `ids` through the model and looks at the matrix of each mixer; `picture(mixer, head, matrix)` receives each (l, l)
/// matrix of the first `heads` heads. Mixers that mix nothing along the sequence are passed over.
///
/// # Errors
/// If there are fewer than 2 tokens, too many for a model this wide, or the model fails.
pub fn inspect(
    model: &LanguageModel,
    architecture: &Architecture,
    ids: &[u32],
    tolerance: f64,
    heads: usize,
    picture: &mut dyn FnMut(&Inspected, usize, &Tensor) -> Result<()>,
) -> Result<Vec<Inspected>> {
    check_length(ids.len(), architecture.model.d_model)?;
    let places: Vec<Inspected> = places(architecture);
    let mut found = Vec::new();
    let mut failure = None;
    let input = Tensor::new(ids, &candle_core::Device::Cpu)?.unsqueeze(0)?;
    model
        .visit(&input, &mut |i, mixer, x| {
            let Some(place) = places.get(i) else {
                candle_core::bail!("the model has more mixers than its architecture")
            };
            let mut entry = place.clone();
            match mixer.matrix(x) {
                Ok(None) => return Ok(()),
                // What needs something of earlier layers may have no matrix of its input alone.
                Err(e) if !mixer.receives().is_empty() => entry.note = Some(e.to_string()),
                Err(e) => return Err(e),
                Ok(Some(mixing)) => {
                    measure(&mut entry, &mixing, tolerance)?;
                    for head in 0..heads.min(entry.heads) {
                        if let Err(e) = picture(&entry, head, &mixing.matrix.i((0, head))?) {
                            failure = Some(e);
                            candle_core::bail!("a picture could not be written");
                        }
                    }
                }
            }
            found.push(entry);
            Ok(())
        })
        .map_err(|e| failure.take().unwrap_or_else(|| e.into()))?;
    Ok(found)
}

fn check_length(l: usize, d_model: usize) -> Result<()> {
    if l < 2 {
        let message = format!("expected a text of at least 2 tokens, found {l}");
        return Err(Error::new(message).hint("there is nothing below the diagonal of one token"));
    }
    // Layers with a matrix for each channel have up to twice the model's width of them.
    let most = (MAX_ELEMENTS / (2 * d_model.max(1))).isqrt();
    if l > most {
        let message = format!("expected at most {most} tokens for a model {d_model} wide, found {l}");
        return Err(Error::new(message).hint("matrices have the square of the length: give a shorter text"));
    }
    Ok(())
}

/// Every mixer of an architecture, in order of use, with nothing measured yet.
fn places(architecture: &Architecture) -> Vec<Inspected> {
    let layers = architecture.layers.iter().enumerate();
    layers
        .flat_map(|(i, layer)| {
            let branches = layer.stages.iter().flat_map(|stage| &stage.branches);
            branches.map(move |branch| Inspected {
                layer: i,
                block: layer.block.clone(),
                path: branch.path.clone(),
                kind: branch.mixer.kind().into(),
                d_state: branch.mixer.to_json()["d_state"].as_u64(),
                heads: 0,
                off_diagonal_ranks: Vec::new(),
                max_off_diagonal_rank: 0,
                possible_rank: 0,
                note: None,
            })
        })
        .collect()
}

fn measure(entry: &mut Inspected, mixing: &Mixing, tolerance: f64) -> candle_core::Result<()> {
    let matrices = mixing.matrix.i(0)?.to_dtype(DType::F64)?; // (h, l, l)
    entry.heads = matrices.dim(0)?;
    let ranks = (0..entry.heads)
        .into_par_iter()
        .map(|head| off_diagonal_rank(&matrices.i(head)?, SPLITS, tolerance))
        .collect::<candle_core::Result<Vec<_>>>()?;
    entry.off_diagonal_ranks = ranks.iter().map(|r| r.rank).collect();
    entry.max_off_diagonal_rank = ranks.iter().map(|r| r.rank).max().unwrap_or(0);
    entry.possible_rank = ranks.iter().map(|r| r.possible).max().unwrap_or(0);
    Ok(())
}
