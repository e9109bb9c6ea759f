//! Layers that need something of earlier layers, standing alone.

use candle_core::{D, Result, Tensor};
use semisep_core::{Context, Cost, Mixer, Mixing, ParameterGroup, Shared, State};
use semisep_tests::randn;

/// Feeds a mixer with fixed linear maps of its own input where it asks for something of earlier layers.
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

    fn matrix(&self, x: &Tensor) -> Result<Option<Mixing>> {
        self.0.matrix(x)
    }
}
