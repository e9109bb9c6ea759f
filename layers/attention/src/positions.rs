//! Where a token stands, as attention may learn it.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{Init, RelativeBias, Rotary, VarBuilder, alibi_table};
use semisep_kernels::attention::{cope, naive};
use semisep_kernels::{Attention as AttentionOp, Cope, attention, cope_attention, state_dtype};

use crate::AttentionConfig;

/// The positions of one layer.
pub(crate) enum Positions {
    None,
    Rotary(Rotary),
    Alibi(Alibi),
    Relative(RelativeBias),
    /// Embeddings (p, npos) or (h, p, npos).
    Contextual(Tensor),
}

/// ALiBi's biases up to the longest distance met so far.
pub(crate) struct Alibi {
    heads: usize,
    dtype: DType,
    device: Device,
    known: Mutex<Option<Tensor>>, // (h, a power of two)
}

impl Alibi {
    fn table(&self, reach: usize) -> Result<Tensor> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = known.as_ref().filter(|t| t.dims()[1] >= reach) {
            return Ok(table.clone());
        }
        let n = reach.next_power_of_two().max(64);
        let table = alibi_table(self.heads, n, self.dtype, &self.device)?;
        *known = Some(table.clone());
        Ok(table)
    }
}

impl Positions {
    pub(crate) fn new(d_model: usize, config: &AttentionConfig, vb: &VarBuilder) -> Result<Self> {
        let (h, p) = (config.n_heads, config.head_dim(d_model));
        if let Some(rope) = &config.rope {
            return Ok(Self::Rotary(Rotary::new(rope, p, vb.device())?));
        }
        if let Some(bias) = &config.rel_bias {
            // T5's initialisation.
            let std = (d_model as f64).powf(-0.5);
            return Ok(Self::Relative(RelativeBias::new(bias, h, std, &vb.pp("relative_attention_bias"))?));
        }
        if let Some(cope) = &config.cope {
            let shape = if cope.per_head { vec![h, p, cope.npos_max] } else { vec![p, cope.npos_max] };
            return Ok(Self::Contextual(vb.pp("cope").get_f32(shape, "pos_emb", Init::ZEROS)?));
        }
        if config.alibi {
            let (dtype, device) = (state_dtype(vb.dtype()), vb.device().clone());
            return Ok(Self::Alibi(Alibi { heads: h, dtype, device, known: Mutex::new(None) }));
        }
        Ok(Self::None)
    }

    /// Queries or keys, (b, l, heads, p), turned to their positions.
    pub(crate) fn turn(
        &self,
        t: Tensor,
        positions: &[usize],
        cu_seqlens: Option<&[usize]>,
    ) -> Result<Tensor> {
        match self {
            Self::Rotary(rotary) => rotary.forward(&t, positions, cu_seqlens),
            _ => Ok(t),
        }
    }

    /// Attention output (b, l, h, p).
    pub(crate) fn attend(&self, op: AttentionOp) -> Result<Tensor> {
        match self {
            Self::Contextual(pos_emb) => cope_attention(&Cope { attention: op, pos_emb }),
            _ => attention(&AttentionOp { bias: self.bias(&op)?.as_ref(), ..op }),
        }
    }

    /// The weights that [`Positions::attend`] applies: (b, h, l, l).
    pub(crate) fn weights(&self, op: AttentionOp) -> Result<Tensor> {
        match self {
            Self::Contextual(pos_emb) => cope::naive::weights(&Cope { attention: op, pos_emb }),
            _ => naive::weights(&AttentionOp { bias: self.bias(&op)?.as_ref(), ..op }),
        }
    }

    fn bias(&self, op: &AttentionOp) -> Result<Option<Tensor>> {
        match self {
            Self::Alibi(alibi) => alibi.table(op.k.dim(1)?.max(1)).map(Some),
            Self::Relative(bias) => bias.table().map(Some),
            _ => Ok(None),
        }
    }
}
