//! Cells on top of each other, with torch.nn's parameters.

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{Context, Cost, Init, ParameterGroup, State, StateKind, VarBuilder};
use semisep_kernels::{Recurrence, linear, recurrence, state_dtype};

use crate::config::{GruConfig, LstmConfig, RnnConfig, Sizes};

/// The cells of an LSTM, a GRU or a plain recurrent network, without an output map.
pub struct RnnStack {
    pub(crate) sizes: Sizes,
    inputs: usize,
    hidden: usize,
    layers: Vec<Layer>,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

struct Layer {
    weight_ih: Tensor, // (gates h, inputs)
    weight_hh: Tensor, // (gates h, h)
    bias_ih: Option<Tensor>,
    bias_hh: Option<Tensor>,
}

impl RnnStack {
    /// An LSTM's cells over `inputs` features, with the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn lstm(inputs: usize, config: &LstmConfig, vb: &VarBuilder) -> Result<Self> {
        Self::new(inputs, config.into(), vb)
    }

    /// A GRU's cells over `inputs` features, with the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn gru(inputs: usize, config: &GruConfig, vb: &VarBuilder) -> Result<Self> {
        Self::new(inputs, config.into(), vb)
    }

    /// Plain cells over `inputs` features, with the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn plain(inputs: usize, config: &RnnConfig, vb: &VarBuilder) -> Result<Self> {
        Self::new(inputs, config.into(), vb)
    }

    pub(crate) fn new(inputs: usize, sizes: Sizes, vb: &VarBuilder) -> Result<Self> {
        let hidden = sizes.hidden.unwrap_or(inputs);
        let (rows, init) = (sizes.cell.gates() * hidden, Init::linear(hidden));
        let mut layers = Vec::with_capacity(sizes.layers);
        for k in 0..sizes.layers {
            let width = if k == 0 { inputs } else { hidden };
            let bias = |name: &str| {
                sizes.bias.then(|| vb.get_f32(rows, &format!("{name}_l{k}"), init.clone())).transpose()
            };
            layers.push(Layer {
                weight_ih: vb.get((rows, width), &format!("weight_ih_l{k}"), init.clone())?,
                weight_hh: vb.get((rows, hidden), &format!("weight_hh_l{k}"), init.clone())?,
                bias_ih: bias("bias_ih")?,
                bias_hh: bias("bias_hh")?,
            });
        }
        let (groups, dtype, device) = (vb.groups(), vb.dtype(), vb.device().clone());
        Ok(Self { sizes, inputs, hidden, layers, groups, dtype, device })
    }

    /// Width of the outputs.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Outputs of the last cell, (b, l, h), for x (b, l, inputs), from the context's state on.
    ///
    /// # Errors
    /// As [`semisep_core::Mixer::forward`].
    pub fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(self.sizes.kind, b, l)?;
        let (h, states) = (self.hidden, self.sizes.cell.states());
        // (n, layers, s, h): what an LSTM keeps as two entries.
        let initial = match (ctx.initial("h")?, states) {
            (Some(hs), 2) => match ctx.initial("c")? {
                Some(cs) => Some(Tensor::stack(&[hs, cs], 2)?),
                None => None,
            },
            (Some(hs), _) => Some(hs.unsqueeze(2)?),
            (None, _) => None,
        };
        let (mut y, mut last) = (x.clone(), Vec::with_capacity(self.layers.len()));
        for (k, layer) in self.layers.iter().enumerate() {
            let side = linear(&y, &layer.weight_ih, layer.bias_ih.as_ref())?;
            let initial = initial.as_ref().map(|s| s.narrow(1, k, 1)?.squeeze(1)).transpose()?;
            let (out, state) = recurrence(&Recurrence {
                bias_hh: layer.bias_hh.as_ref(),
                initial_state: initial.as_ref(),
                cu_seqlens: ctx.cu_seqlens,
                ..Recurrence::new(self.sizes.cell, &side, &layer.weight_hh)
            })?;
            y = out;
            last.push(state);
        }
        let last = Tensor::stack(&last, 1)?; // (n, layers, s, h)
        let part = |k: usize| last.narrow(2, k, 1)?.reshape((lengths.len(), self.layers.len(), h));
        let mut entries = vec![("h", part(0)?)];
        if states == 2 {
            entries.push(("c", part(1)?));
        }
        ctx.leave(&entries, &lengths)?;
        Ok(y)
    }

    /// One token a row, (b, inputs) -> (b, h).
    ///
    /// # Errors
    /// As [`semisep_core::Mixer::step`].
    pub fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        ctx.state_mut()?;
        self.forward(&x.unsqueeze(1)?, ctx)?.squeeze(1)
    }

    /// The state before the first token: `h`, and for the LSTM `c`, (b, layers, h).
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn new_state(&self, batch: usize) -> Result<State> {
        let (shape, dtype) = ((batch, self.layers.len(), self.hidden), state_dtype(self.dtype));
        let zeros =
            |state: State, name| state.with_zeros(name, StateKind::Recurrent, shape, dtype, &self.device);
        let state = zeros(State::new(self.sizes.kind, batch), "h")?;
        if self.sizes.cell.states() == 2 { zeros(state, "c") } else { Ok(state) }
    }

    pub(crate) fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, h, size) = (batch * seqlen, self.hidden, self.dtype.size_in_bytes());
        let (gates, layers) = (self.sizes.cell.gates(), self.layers.len());
        let maps: Cost = (0..layers)
            .map(|k| {
                let width = if k == 0 { self.inputs } else { h };
                Cost::linear(rows, width, gates * h, true, size)
                    + Cost::linear(rows, h, gates * h, true, size)
            })
            .sum();
        let state = batch * layers * self.sizes.cell.states() * h * state_dtype(self.dtype).size_in_bytes();
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: maps.flops + (rows * layers * 8 * gates * h) as u64,
            bytes: maps.bytes,
            state_bytes: state as u64,
            kv_bytes: 0,
        }
    }
}
