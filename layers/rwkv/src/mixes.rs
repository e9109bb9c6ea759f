//! The token shift of a layer: its mixes, under their names in checkpoints.

use candle_core::{Result, Tensor};
use semisep_core::{Init, VarBuilder};
use semisep_kernels::{TokenShift, token_shift};

/// Mixes of one input, one for each projection that reads it.
pub(crate) struct Mixes {
    source: Source,
    /// Whether they are stored as the share of the token itself.
    own_share: bool,
    /// (m, d): share of the token before; unless it must be computed each time, for training.
    ready: Option<Tensor>,
}

enum Source {
    /// One vector (d) a mix.
    Rows(Vec<Tensor>),
    /// (m, d)
    Matrix(Tensor),
}

impl Mixes {
    /// A vector a mix. Checkpoints have them as (1, 1, d) as well.
    pub(crate) fn rows<const M: usize>(
        d: usize,
        names: [(&str, Init); M],
        own_share: bool,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let rows = names.into_iter().map(|(name, init)| vb.get_f32(d, name, init));
        Self::new(Source::Rows(rows.collect::<Result<_>>()?), own_share)
    }

    /// One matrix (m, d) for all mixes.
    pub(crate) fn matrix(matrix: Tensor) -> Result<Self> {
        Self::new(Source::Matrix(matrix), false)
    }

    fn new(source: Source, own_share: bool) -> Result<Self> {
        let mut mixes = Self { source, own_share, ready: None };
        let settled = match &mixes.source {
            Source::Rows(rows) => rows.iter().all(settled),
            Source::Matrix(matrix) => settled(matrix),
        };
        mixes.ready = settled.then(|| mixes.compute()).transpose()?;
        Ok(mixes)
    }

    fn compute(&self) -> Result<Tensor> {
        let mix = match &self.source {
            Source::Rows(rows) => Tensor::stack(rows, 0)?,
            Source::Matrix(matrix) => matrix.clone(),
        };
        if self.own_share { mix.affine(-1.0, 1.0) } else { Ok(mix) }
    }

    /// x (b, l, d) in every mix, and the last token of each sequence; `data` adds to the mixes, `state` is the token
    /// before the first.
    pub(crate) fn shift(
        &self,
        x: &Tensor,
        data: Option<&[Tensor]>,
        state: Option<&Tensor>,
        cu_seqlens: Option<&[usize]>,
    ) -> Result<(Vec<Tensor>, Tensor)> {
        let mix = self.ready.clone().map_or_else(|| self.compute(), Ok)?;
        token_shift(&TokenShift { x, mix: &mix, data, state, cu_seqlens })
    }
}

/// Whether what is computed of a parameter once stays true: it is not trained, and has values at all.
pub(crate) fn settled(parameter: &Tensor) -> bool {
    !parameter.track_op() && parameter.is_contiguous()
}
