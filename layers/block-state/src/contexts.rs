//! From SSM outputs to keys and values of the cross-attention.

use candle_core::{Result, Tensor};
use semisep_core::{Init, Linear, State, VarBuilder};
use semisep_kernels::rms_norm;

use crate::config::{BlockStateConfig, Variant};
use crate::windows::{Source, Windows};

/// How a context becomes a vector for each head.
enum Lift {
    /// SH: weight (h, 1), bias (h).
    Scale(Tensor, Option<Tensor>),
    /// MH: a bank is a head.
    None,
    /// MF: d to h d.
    Map(Linear),
}

/// Learned contexts of the first window, and the identities of the slots: (s, d).
struct Learned {
    init: Tensor,
    ids: Tensor,
}

/// The contexts' part of the layer.
pub(crate) struct Contexts {
    lift: Lift,
    learned: Option<Learned>, // MF
    norm: Tensor,             // (d)
    k: Linear,
    v: Linear,
    heads: usize,
    norm_eps: f64,
    qk_eps: f64,
}

/// Keys, L2-normalised up to √e, and values: (.., h, e).
pub(crate) struct Keyed {
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

impl Contexts {
    pub(crate) fn new(d_model: usize, config: &BlockStateConfig, vb: &VarBuilder) -> Result<Self> {
        let (h, e, s) = (config.n_heads, config.head_dim(d_model), config.contexts);
        let lift = match config.variant {
            Variant::Sh => {
                let vb = vb.pp("lift");
                let bias = config.lift_bias.then(|| vb.get_f32(h, "bias", Init::linear(1))).transpose()?;
                Lift::Scale(vb.get_f32((h, 1), "weight", Init::linear(1))?, bias)
            }
            Variant::Mh => Lift::None,
            Variant::Mf => Lift::Map(Linear::new(d_model, h * d_model, config.lift_bias, &vb.pp("lift"))?),
        };
        let learned = (config.variant == Variant::Mf)
            .then(|| -> Result<_> {
                let normal = Init::Normal { std: 1.0 };
                Ok(Learned {
                    init: vb.get_f32((s, d_model), "init_contexts", normal.clone())?,
                    ids: vb.get_f32((s, d_model), "context_ids", normal)?,
                })
            })
            .transpose()?;
        Ok(Self {
            lift,
            learned,
            norm: vb.pp("context_norm").get_f32(d_model, "scale", Init::ONES)?,
            k: Linear::new(d_model, h * e, false, &vb.pp("context_k"))?,
            v: Linear::new(d_model, h * e, false, &vb.pp("context_v"))?,
            heads: h,
            norm_eps: config.norm_eps,
            qk_eps: config.qk_eps,
        })
    }

    /// A vector for each head: SSM outputs (n, banks, d) -> (n, h, d) for SH and MH, (n, s, h, d) for MF.
    pub(crate) fn lifted(&self, y: &Tensor) -> Result<Tensor> {
        let (n, banks, d) = y.dims3()?;
        match &self.lift {
            Lift::None => Ok(y.clone()),
            Lift::Scale(weight, bias) => {
                let c = y.broadcast_mul(&weight.to_dtype(y.dtype())?)?;
                match bias {
                    Some(bias) => c.broadcast_add(&bias.to_dtype(y.dtype())?.unsqueeze(1)?),
                    None => Ok(c),
                }
            }
            Lift::Map(map) => map.forward(y)?.reshape((n, banks, self.heads, d)),
        }
    }

    /// Keys and values of lifted contexts (.., h, d).
    pub(crate) fn keyed(&self, contexts: &Tensor) -> Result<Keyed> {
        let dims = contexts.dims().to_vec();
        let d = self.norm.elem_count();
        let mut c = rms_norm(&contexts.contiguous()?, Some(&self.norm), self.norm_eps, d)?;
        if let Some(Learned { ids, .. }) = &self.learned {
            c = c.broadcast_add(&ids.to_dtype(c.dtype())?.unsqueeze(1)?)?;
        }
        let c = c.reshape(((), self.heads, d))?;
        let per_head = |map: &Linear| -> Result<Tensor> {
            let e = map.weight().dim(0)? / self.heads;
            let head = |j: usize| {
                let c = c.narrow(1, j, 1)?.squeeze(1)?.contiguous()?;
                map.weight().narrow(0, j * e, e)?.apply(&c, None)
            };
            let all = (0..self.heads).map(head).collect::<Result<Vec<_>>>()?;
            let mut shape = dims.clone();
            shape.pop();
            shape.push(e);
            Tensor::stack(&all, 1)?.reshape(shape)
        };
        Ok(Keyed { k: unit(&per_head(&self.k)?, self.qk_eps)?, v: per_head(&self.v)? })
    }

    /// MF: keys and values (pieces, s, h, e) of every piece of a window, and those (sequences, s, h, e) that the state
    /// keeps. `y` is the SSM's output over all tokens, (n, s, d).
    pub(crate) fn of_windows(
        &self,
        y: &Tensor,
        windows: &Windows,
        state: Option<&State>,
    ) -> Result<(Keyed, Option<Keyed>)> {
        let mut sources: Vec<Source> = windows.pieces.iter().chain(&windows.next).copied().collect();
        sources.sort_unstable_by_key(|s| match *s {
            Source::Carried(i) => (0, i),
            Source::Learned => (1, 0),
            Source::Token(t) => (2, t),
        });
        sources.dedup();
        if state.is_none() {
            // What only a state would keep.
            sources.retain(|s| windows.pieces.contains(s));
        }
        let (mut keys, mut values) = (vec![], vec![]);
        let carried = |s: &&Source| matches!(s, Source::Carried(_));
        if let Some(state) = state {
            let rows: Vec<u32> = sources.iter().filter(carried).filter_map(Source::row).collect();
            for (name, to) in [("context_k", &mut keys), ("context_v", &mut values)] {
                to.push(rows_of(state.get(name)?, &rows)?);
            }
        }
        let fresh: Vec<Source> = sources.iter().filter(|s| !carried(s)).copied().collect();
        if !fresh.is_empty() {
            let new = self.keyed(&self.lifted(&self.fresh(y, &fresh)?)?)?;
            keys.push(new.k);
            values.push(new.v);
        }
        let (keys, values) = (cat(&keys)?, cat(&values)?);
        let pick = |wanted: &[Source]| -> Result<Keyed> {
            let place = |w: &Source| sources.iter().position(|s| s == w).unwrap_or_default() as u32;
            let rows: Vec<u32> = wanted.iter().map(place).collect();
            Ok(Keyed { k: rows_of(&keys, &rows)?, v: rows_of(&values, &rows)? })
        };
        Ok((pick(&windows.pieces)?, state.map(|_| pick(&windows.next)).transpose()?))
    }

    /// The SSM outputs, or what stands for them, of sources that are not carried: (m, s, d).
    fn fresh(&self, y: &Tensor, sources: &[Source]) -> Result<Tensor> {
        let mut parts = vec![];
        if let (Some(Source::Learned), Some(learned)) = (sources.first(), &self.learned) {
            parts.push(learned.init.to_dtype(y.dtype())?.unsqueeze(0)?);
        }
        let tokens: Vec<u32> = sources.iter().filter_map(Source::row).collect();
        if !tokens.is_empty() {
            parts.push(y.index_select(&Tensor::new(tokens, y.device())?, 0)?);
        }
        Tensor::cat(&parts, 0)
    }
}

impl Source {
    /// Its row in the state or among the tokens.
    fn row(&self) -> Option<u32> {
        match *self {
            Self::Learned => None,
            Self::Carried(i) | Self::Token(i) => Some(i as u32),
        }
    }
}

fn cat(parts: &[Tensor]) -> Result<Tensor> {
    let first = parts[0].dtype();
    let same: Vec<Tensor> = parts.iter().map(|p| p.to_dtype(first)).collect::<Result<_>>()?;
    Tensor::cat(&same, 0)
}

/// These rows of a tensor; itself where they are all of its rows.
fn rows_of(t: &Tensor, rows: &[u32]) -> Result<Tensor> {
    if rows.len() == t.dim(0)? && rows.iter().enumerate().all(|(i, &row)| i == row as usize) {
        return Ok(t.clone());
    }
    t.contiguous()?.index_select(&Tensor::new(rows, t.device())?, 0)
}

/// `√e · x / √(Σ x² + eps)` over the last dimension e.
pub(crate) fn unit(x: &Tensor, eps: f64) -> Result<Tensor> {
    let e = x.dim(candle_core::D::Minus1)?;
    rms_norm(&x.contiguous()?, None, eps / e as f64, e)
}
