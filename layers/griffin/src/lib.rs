//! Griffin's recurrent block: a real-gated linear recurrent unit between linear maps (De et al. 2024, arXiv 2402.19427).
//!
//! ```text
//! g = gelu(linear_y u)        x = conv(linear_x u)                                               (section 2.3)
//! r = σ(W_a x + b_a)          i = σ(W_x x + b_x)             block-diagonal maps                 (eq. 1, 2)
//! a = exp(-c softplus(Λ) r)   h_t = a_t ⊙ h_{t-1} + √(1 - a_t²) ⊙ i_t ⊙ x_t                      (eq. 3, 4)
//! y = linear_out(h ⊙ g)       at the first token of a sequence h = i ⊙ x
//! ```
//! As a matrix mixer, channel by channel: `M[t,s] = Π_{s<j≤t} a_j · √(1 - a_s²) i_s`: 1-semiseparable.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input maps | `linear_x.{weight,bias}`, `linear_y.{weight,bias}` | (e, d), (e) |
//! | conv | `conv_1d.{weight,bias}` | (e, 1, k), oldest tap first; (e) |
//! | W_a, b_a | `rg_lru.recurrent_gate_{weight,bias}` | (blocks, in, out), (blocks, out) |
//! | W_x, b_x | `rg_lru.input_gate_{weight,bias}` | (blocks, in, out), (blocks, out) |
//! | Λ | `rg_lru.recurrent_param` | (e), f32 |
//! | output map | `linear_out.{weight,bias}` | (d, e), (d) |
//!
//! Names as in the RecurrentGemma checkpoints, whose hidden state is in f32 as here.

mod config;
mod gates;
mod matrix;

use candle_core::{DType, Device, Result, Tensor};
pub use config::RgLruConfig;
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder,
};
use semisep_kernels::{
    CausalConv1d, RgLru, RgLruUpdate, causal_conv1d, causal_conv1d_update, gated_activation, rg_lru,
    rg_lru_update, state_dtype,
};

use crate::gates::BlockDiagonal;

const KIND: &str = "rg_lru";

/// The layer.
pub struct RgLruBlock {
    config: RgLruConfig,
    d_model: usize,
    width: usize,
    linear_x: Linear,
    linear_y: Linear,
    linear_out: Linear,
    conv_weight: Tensor, // (e, k)
    conv_bias: Tensor,   // (e)
    input_gate: BlockDiagonal,
    recurrent_gate: BlockDiagonal,
    recurrent_param: Tensor, // (e)
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// What the recurrence reads, (.., e) each.
struct Inputs {
    x: Tensor,
    input_gate: Tensor,
    recurrent_gate: Tensor,
}

impl RgLruBlock {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &RgLruConfig, vb: &VarBuilder) -> Result<Self> {
        let (e, k) = (config.width(d_model), config.conv1d_width);
        let out_std = (config.final_w_init_variance_scale / e as f64).sqrt();
        let (lo, hi) = config.a_init_range;
        // a² is uniform (a ring of the unit disc), softplus(Λ) = -ln a: an open gate keeps a^c, as in the code.
        let param = Init::custom(move |shape, rng| {
            let draw = |_| {
                let log_a = 0.5 * rng.uniform(lo * lo, hi * hi).ln();
                (-log_a).exp_m1().ln() as f32
            };
            (0..shape[0]).map(draw).collect()
        });
        let (conv, unit) = (vb.pp("conv_1d"), vb.pp("rg_lru"));
        Ok(Self {
            linear_x: Linear::new(d_model, e, true, &vb.pp("linear_x"))?,
            linear_y: Linear::new(d_model, e, true, &vb.pp("linear_y"))?,
            linear_out: Linear::with_init(
                e,
                d_model,
                true,
                Init::Normal { std: out_std },
                &vb.pp("linear_out"),
            )?,
            conv_weight: conv.get_f32((e, 1, k), "weight", Init::linear(k))?.squeeze(1)?,
            conv_bias: conv.get_f32(e, "bias", Init::ZEROS)?,
            input_gate: BlockDiagonal::new(e, config.num_blocks, "input_gate", &unit)?,
            recurrent_gate: BlockDiagonal::new(e, config.num_blocks, "recurrent_gate", &unit)?,
            recurrent_param: unit.get_f32(e, "recurrent_param", param)?,
            groups: vb.groups(),
            config: config.clone(),
            d_model,
            width: e,
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    fn gates(&self, x: Tensor) -> Result<Inputs> {
        let wide = x.to_dtype(state_dtype(self.dtype))?;
        Ok(Inputs {
            input_gate: self.input_gate.forward(&wide)?,
            recurrent_gate: self.recurrent_gate.forward(&wide)?,
            x,
        })
    }

    fn convolve(&self, u: &Tensor, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        causal_conv1d(CausalConv1d {
            x: &self.linear_x.forward(u)?,
            weight: &self.conv_weight,
            bias: Some(&self.conv_bias),
            silu: false,
            initial_state: ctx.initial("conv")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
        })
    }

    fn recur(&self, inputs: &Inputs, sequences: usize, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        let starts = ctx.state.as_ref().map_or_else(|| vec![true; sequences], |s| starts(s));
        rg_lru(&RgLru {
            c: self.config.c,
            initial_state: ctx.initial("h")?.as_ref(),
            starts: Some(&starts),
            cu_seqlens: ctx.cu_seqlens,
            ..RgLru::new(&inputs.x, &inputs.input_gate, &inputs.recurrent_gate, &self.recurrent_param)
        })
    }

    fn finish(&self, h: &Tensor, u: &Tensor) -> Result<Tensor> {
        let gate = self.linear_y.forward(u)?;
        self.linear_out.forward(&gated_activation(h, &gate, self.config.activation.into())?)
    }
}

/// Which sequences have no token yet.
fn starts(state: &State) -> Vec<bool> {
    state.seen().iter().map(|&seen| seen == 0).collect()
}

impl Mixer for RgLruBlock {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let (x, conv) = self.convolve(u, ctx)?;
        let (h, last) = self.recur(&self.gates(x)?, lengths.len(), ctx)?;
        let out = self.finish(&h, u)?;
        ctx.leave(&[("conv", conv), ("h", last)], &lengths)?;
        Ok(out)
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = u.dims2()?;
        state.check(KIND, b)?;
        let x = self.linear_x.forward(u)?;
        let x =
            causal_conv1d_update(state.get("conv")?, &x, &self.conv_weight, Some(&self.conv_bias), false)?;
        let Inputs { x, input_gate, recurrent_gate } = self.gates(x)?;
        let update = RgLruUpdate {
            x: &x,
            input_gate: &input_gate,
            recurrent_gate: &recurrent_gate,
            recurrent_param: &self.recurrent_param,
            c: self.config.c,
            starts: &starts(state),
        };
        let h = rg_lru_update(state.get("h")?, &update)?;
        let out = self.finish(&h, u)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (dtype, conv) = (state_dtype(self.dtype), (batch, self.width, self.config.conv1d_width - 1));
        State::new(KIND, batch)
            .with_zeros("conv", StateKind::Recurrent, conv, dtype, &self.device)?
            .with_zeros("h", StateKind::Recurrent, (batch, self.width), dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, d, e) = (batch * seqlen, self.d_model, self.width);
        let (k, size) = (self.config.conv1d_width, self.dtype.size_in_bytes());
        let linears = Cost::linear(rows, d, 2 * e, true, size) + Cost::linear(rows, e, d, true, size);
        // Taps, two maps of blocks, and about twenty operations of the unit and the gate.
        let token = 2 * k * e + 4 * e * (e / self.config.num_blocks) + 20 * e;
        let state = batch * e * k * state_dtype(self.dtype).size_in_bytes();
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: linears.flops + (rows * token) as u64,
            bytes: linears.bytes + (rows * 8 * e * size) as u64,
            state_bytes: state as u64,
            kv_bytes: 0,
        }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, u: &Tensor) -> Result<Option<Mixing>> {
        matrix::mixing(self, u).map(Some)
    }
}
