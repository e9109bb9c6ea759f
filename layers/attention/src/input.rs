//! What queries, keys and values are made of.

use candle_core::{D, Result, Tensor};
use semisep_core::{Context, Cost, Init, Linear, Matrix, Norm, NormConfig, NormKind, Shared, VarBuilder};

use crate::AttentionConfig;

/// The input map, with the embedding beside its input and low-rank maps beside it where configured.
pub(crate) struct Input {
    d_model: usize,
    in_proj: Linear,
    /// Over the input and the embedding.
    norm: Option<Norm>,
    /// For queries, keys and values: down, up. None, or three.
    adapters: Vec<[Linear; 2]>,
}

impl Input {
    pub(crate) fn new(d_model: usize, config: &AttentionConfig, vb: &VarBuilder) -> Result<Self> {
        let (queries, keys) = config.widths(config.head_dim(d_model));
        let inputs = config.input_width(d_model);
        let norm = config.concat_embedding.as_ref().map(|concat| {
            let rms = NormConfig { kind: NormKind::Rms, eps: concat.norm_eps };
            Norm::new(inputs, rms, &vb.pp("input_layernorm"))
        });
        let mut adapters = Vec::new();
        if let Some(rank) = config.adapter_rank {
            for (name, width) in [("q_adapter", queries), ("k_adapter", keys), ("v_adapter", keys)] {
                let vb = vb.own().pp(name);
                // Nothing at first, as in LoRA.
                let up = Linear::with_init(rank, width, false, Init::ZEROS, &vb.pp(1))?;
                adapters.push([Linear::new(inputs, rank, false, &vb.pp(0))?, up]);
            }
        }
        Ok(Self {
            d_model,
            in_proj: Linear::new(inputs, queries + 2 * keys, config.qkv_bias, &vb.pp("in_proj"))?,
            norm: norm.transpose()?,
            adapters,
        })
    }

    /// Names and widths of what it reads beside its input.
    pub(crate) fn receives(&self) -> Vec<(&'static str, usize)> {
        self.norm.iter().map(|_| (Shared::EMBEDDING, self.d_model)).collect()
    }

    /// Queries, keys and values (.., queries + 2 keys) of u (.., d).
    pub(crate) fn forward(&self, u: &Tensor, ctx: &Context<'_>) -> Result<Tensor> {
        match &self.norm {
            None => self.project(u),
            Some(norm) => {
                let embedding = ctx.received(Shared::EMBEDDING)?.to_dtype(u.dtype())?;
                self.project(&norm.forward(&Tensor::cat(&[u, &embedding], D::Minus1)?)?)
            }
        }
    }

    /// The same with an embedding of zeros, for a layer that stands alone.
    pub(crate) fn alone(&self, u: &Tensor) -> Result<Tensor> {
        let mut shared = Shared::default();
        shared.set(Shared::EMBEDDING, u.zeros_like()?);
        self.forward(u, &Context { shared: Some(&mut shared), ..Context::default() })
    }

    fn project(&self, u: &Tensor) -> Result<Tensor> {
        let qkv = self.in_proj.forward(u)?;
        if self.adapters.is_empty() {
            return Ok(qkv);
        }
        let added = self.adapters.iter().map(|[down, up]| up.forward(&down.forward(u)?));
        qkv + Tensor::cat(&added.collect::<Result<Vec<_>>>()?, D::Minus1)?
    }

    pub(crate) fn cost(&self, rows: usize, bias: bool, size: usize) -> Cost {
        let map = |weight: &Matrix, bias| match *weight.dims() {
            [outputs, inputs] => Cost::linear(rows, inputs, outputs, bias, size),
            _ => Cost::default(),
        };
        let adapters = self.adapters.iter().flatten().map(|linear| map(linear.weight(), false));
        map(self.in_proj.weight(), bias) + adapters.sum()
    }
}
