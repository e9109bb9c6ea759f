//! Recurrent networks: the LSTM (Hochreiter & Schmidhuber 1997), the GRU (Cho et al. 2014), the plain one (Elman 1990),
//! all with torch.nn's equations and names, and the minimal ones that are scans ([`MinimalRnn`]).
//!
//! ```text
//! LSTM   i, f, o = σ(W x + b + U h + c), g = tanh(..)             c_t = f c_{t-1} + i g     h_t = o tanh c_t
//! GRU    r, z = σ(W x + b + U h + c), n = tanh(W x + b + r (U h + c))    h_t = (1 - z) n + z h_{t-1}
//! plain  h_t = tanh(W x + b + U h + c)
//! ```
//! They read their own output: not linear in anything, they have no mixing matrix.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | W, b | `weight_ih_l{k}`, `bias_ih_l{k}` | (gates h, inputs), (gates h): rows i, f, g, o, or r, z, n |
//! | U, c | `weight_hh_l{k}`, `bias_hh_l{k}` | (gates h, h), (gates h) |
//! | output map | `out_proj.weight` | (d, h), where h is not d |

mod config;
mod minimal;
mod minimal_config;
mod stack;

use candle_core::{Result, Tensor};
use config::Sizes;
pub use config::{GruConfig, LstmConfig, Nonlinearity, RnnConfig};
pub use minimal::MinimalRnn;
pub use minimal_config::{Candidate, MinGruConfig, MinLstmConfig};
use semisep_core::{Context, Cost, Linear, Mixer, Mixing, ParameterGroup, State, VarBuilder};
pub use stack::RnnStack;

/// An LSTM, a GRU or a plain recurrent network as a layer: cells, and an output map where the widths differ.
pub struct Rnn {
    cells: RnnStack,
    out_proj: Option<Linear>,
    d_model: usize,
    groups: Vec<ParameterGroup>,
    element: usize,
}

impl Rnn {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub(crate) fn new(d_model: usize, sizes: Sizes, vb: &VarBuilder) -> Result<Self> {
        let cells = RnnStack::new(d_model, sizes, vb)?;
        let out_proj = (cells.hidden() != d_model)
            .then(|| Linear::new(cells.hidden(), d_model, false, &vb.pp("out_proj")))
            .transpose()?;
        Ok(Self { cells, out_proj, d_model, groups: vb.groups(), element: vb.dtype().size_in_bytes() })
    }

    fn finish(&self, h: Tensor) -> Result<Tensor> {
        self.out_proj.as_ref().map_or(Ok(h.clone()), |map| map.forward(&h))
    }
}

impl Mixer for Rnn {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        self.finish(self.cells.forward(u, ctx)?)
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        self.finish(self.cells.step(u, ctx)?)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        self.cells.new_state(batch)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let cells = self.cells.cost(batch, seqlen);
        let map = self
            .out_proj
            .as_ref()
            .map(|_| Cost::linear(batch * seqlen, self.cells.hidden(), self.d_model, false, self.element));
        let map = map.unwrap_or_default();
        let parameters = self.groups.iter().map(|g| g.elements() as u64).sum();
        Cost { parameters, flops: cells.flops + map.flops, bytes: cells.bytes + map.bytes, ..cells }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, _: &Tensor) -> Result<Option<Mixing>> {
        Ok(None)
    }
}
