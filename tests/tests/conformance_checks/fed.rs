//! Layers that need something of earlier layers, standing alone.

use candle_core::{D, Result, Tensor};
use semisep_core::{Context, Cost, Mixer, Mixing, ParameterGroup, Shared, State};
use semisep_tests::randn;

/// Feeds a mixer with fixed maps of its own input where it asks for something of earlier layers: linear ones, but for
/// times between tokens, which are positive.
pub(crate) struct Fed(pub(crate) Box<dyn Mixer>);

impl Fed {
    fn shared(&self, x: &Tensor) -> Result<Shared> {
        let mut shared = Shared::default();
        for (i, (name, width)) in self.0.receives().into_iter().enumerate() {
            let map = randn(500 + i as u64, &[x.dim(D::Minus1)?, width], x.dtype())?;
            let mut shape = x.dims().to_vec();
            shape.pop();
            shape.push(width);
            let value = match x.elem_count() {
                0 => Tensor::zeros(shape, x.dtype(), x.device())?,
                _ => x.reshape(((), x.dim(D::Minus1)?))?.matmul(&map)?.reshape(shape)?,
            };
            let value = if name == "intervals" { value.sqr()?.affine(0.1, 0.2)? } else { value };
            shared.set(name, value);
        }
        Ok(shared)
    }
}

impl Mixer for Fed {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let mut shared = self.shared(x)?;
        let state = ctx.state.as_deref_mut();
        self.0.forward(x, &mut Context { state, cu_seqlens: ctx.cu_seqlens, shared: Some(&mut shared) })
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let mut shared = self.shared(x)?;
        let state = ctx.state.as_deref_mut();
        self.0.step(x, &mut Context { state, cu_seqlens: None, shared: Some(&mut shared) })
    }

    fn causal(&self) -> bool {
        self.0.causal()
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        self.0.new_state(batch)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        self.0.cost(batch, seqlen)
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.0.parameter_groups()
    }

    /// A matrix is asked for without a context: none where the times between tokens come with it.
    fn matrix(&self, x: &Tensor) -> Result<Option<Mixing>> {
        let timed = self.0.receives().iter().any(|(name, _)| *name == "intervals");
        match self.0.matrix(x) {
            Err(error) if timed => {
                assert!(error.to_string().contains("no earlier layer leaves `intervals`"), "{error}");
                Ok(None)
            }
            mixing => mixing,
        }
    }
}
