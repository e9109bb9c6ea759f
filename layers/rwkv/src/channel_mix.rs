//! RWKV's channel mix: a squared-ReLU MLP behind a token shift, gated by a receptance up to version 6.
//!
//! ```text
//! x_j = x_t + (x_{t-1} - x_t) ⊙ μ_j          j = k, r
//! y = σ(receptance x_r) ⊙ value (relu(key x_k)²)                version 7: without the receptance
//! ```
//! Sources: Peng et al. 2023, eq. 18-20 (4); Peng et al. 2024 (5, 6); Peng et al. 2025 (7).
//!
//! | symbol | parameter, by version | shape |
//! |---|---|---|
//! | μ | 4, 5: `1 - time_mix_k`, `1 - time_mix_r`; 6: `time_maa_k`, `time_maa_r`; 7: `x_k` | (d) |
//! | maps | `key.weight`, `value.weight`, `receptance.weight` | (f, d), (d, f), (d, d) |

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder, in_blocks,
};
use semisep_kernels::{Activation, activation, gated_activation, state_dtype};

use crate::cost::cost;
use crate::mixes::Mixes;
use crate::{RwkvChannelMixConfig, init};

const KIND: &str = "rwkv_channel_mix";

/// The layer.
pub struct RwkvChannelMix {
    d_model: usize,
    dim_ffn: usize,
    mixes: Mixes, // k, and r where there is a receptance
    key: Linear,
    value: Linear,
    receptance: Option<Linear>,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

impl RwkvChannelMix {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &RwkvChannelMixConfig, vb: &VarBuilder) -> Result<Self> {
        let (d, dim_ffn, power) = (d_model, config.dim_ffn(d_model), 1.0 - config.init_depth);
        let mix = || init::mix(power, 0.0);
        let shift = || init::shift(power.powi(3), 0.0);
        let mixes = match config.version {
            4 | 5 => Mixes::rows(d, [("time_mix_k", mix()), ("time_mix_r", mix())], true, vb)?,
            6 => Mixes::rows(d, [("time_maa_k", shift()), ("time_maa_r", shift())], false, vb)?,
            _ => Mixes::rows(d, [("x_k", init::shift(power.powi(4), 0.0))], false, vb)?,
        };
        let map =
            |inputs, outputs, name: &str, init| Linear::with_init(inputs, outputs, false, init, &vb.pp(name));
        let gated = config.version < 7;
        Ok(Self {
            d_model,
            dim_ffn,
            mixes,
            key: map(d, dim_ffn, "key", init::matrix(if gated { 1.0 } else { 0.289 }, d))?,
            value: map(dim_ffn, d, "value", Init::ZEROS)?,
            receptance: gated.then(|| map(d, d, "receptance", Init::ZEROS)).transpose()?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    /// x (b, l, d) -> y (b, l, d), and the last token of each sequence.
    fn apply(&self, x: &Tensor, state: Option<&Tensor>, cu: Option<&[usize]>) -> Result<(Tensor, Tensor)> {
        let (mixed, last) = self.mixes.shift(x, None, state, cu)?;
        let y = self.value.forward(&activation(&self.key.forward(&mixed[0])?, Activation::Relu2)?)?;
        let y = match &self.receptance {
            Some(map) => gated_activation(&y, &map.forward(&mixed[1])?, Activation::Sigmoid)?,
            None => y,
        };
        Ok((y, last))
    }
}

impl RwkvChannelMix {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let (y, last) = self.apply(x, ctx.initial("shift")?.as_ref(), ctx.cu_seqlens)?;
        ctx.leave(&[("shift", last)], &lengths)?;
        Ok(y)
    }
}

impl Mixer for RwkvChannelMix {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, x, ctx, self.key.weight().track_op(), &|x, ctx| self.forward_once(x, ctx))
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = x.dims2()?;
        state.check(KIND, b)?;
        let (y, last) = self.apply(&x.unsqueeze(1)?, Some(state.get("shift")?), None)?;
        state.set("shift", last)?;
        state.advance(&vec![1; b]);
        y.squeeze(1)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let dtype = state_dtype(self.dtype);
        State::new(KIND, batch).with_zeros(
            "shift",
            StateKind::Recurrent,
            (batch, self.d_model),
            dtype,
            &self.device,
        )
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let state = batch * self.d_model * state_dtype(self.dtype).size_in_bytes();
        let extra = 8 * self.d_model + 2 * self.dim_ffn;
        cost(&self.groups, batch * seqlen, extra, self.dtype.size_in_bytes(), state)
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    /// It mixes along the sequence only by the token shift, before a non-linear map.
    fn matrix(&self, _: &Tensor) -> Result<Option<Mixing>> {
        Ok(None)
    }
}
