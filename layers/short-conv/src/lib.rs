//! Gated short convolution, the mixer of LFM2 (Liquid AI 2025, arXiv 2511.23404, section 3).
//!
//! ```text
//! [B | C | x] = in_proj u        y = out_proj (C ⊙ conv(B ⊙ x))        conv: depthwise, causal, k taps, no activation
//! ```
//! As a matrix mixer, channel by channel: a Toeplitz band of k diagonals, `M[t,s] = w[k-1-(t-s)]` for `0 ≤ t-s < k`.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input map | `in_proj.weight`, `in_proj.bias` | (3d, d), rows [B, C, x] |
//! | conv | `conv.weight`, `conv.bias` | (d, 1, k), oldest tap first; (d) |
//! | output map | `out_proj.weight`, `out_proj.bias` | (d, d) |
//! | last inputs of the conv | state `conv` | (b, d, k-1) f32, oldest first |
//!
//! Names, order and defaults as in LFM2 checkpoints and transformers' `Lfm2ShortConv`.

mod config;
mod matrix;

use candle_core::{D, DType, Device, Result, Tensor};
pub use config::ShortConvConfig;
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder, in_blocks,
};
use semisep_kernels::{
    Activation, CausalConv1d, causal_conv1d, causal_conv1d_update, gated_activation, state_dtype,
};

const KIND: &str = "short_conv";

/// The layer.
pub struct ShortConv {
    config: ShortConvConfig,
    d_model: usize,
    in_proj: Linear,
    conv_weight: Tensor, // (d, k)
    conv_bias: Option<Tensor>,
    out_proj: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

impl ShortConv {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &ShortConvConfig, vb: &VarBuilder) -> Result<Self> {
        let (conv, k) = (vb.pp("conv"), config.d_conv);
        Ok(Self {
            in_proj: Linear::new(d_model, 3 * d_model, config.bias, &vb.pp("in_proj"))?,
            conv_weight: conv.get_f32((d_model, 1, k), "weight", Init::linear(k))?.squeeze(1)?,
            conv_bias: config.bias.then(|| conv.get_f32(d_model, "bias", Init::linear(k))).transpose()?,
            out_proj: Linear::new(d_model, d_model, config.bias, &vb.pp("out_proj"))?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
        })
    }

    /// u (..., d) -> B ⊙ x and C, (..., d) each.
    fn split(&self, u: &Tensor) -> Result<(Tensor, Tensor)> {
        let bcx = self.in_proj.forward(u)?;
        let part = |i| bcx.narrow(D::Minus1, i * self.d_model, self.d_model);
        Ok((gate(&part(2)?, &part(0)?)?, part(1)?))
    }

    fn convolve(&self, x: &Tensor, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        causal_conv1d(CausalConv1d {
            x,
            weight: &self.conv_weight,
            bias: self.conv_bias.as_ref(),
            silu: false,
            initial_state: ctx.initial("conv")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
        })
    }
}

impl ShortConv {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let (x, c) = self.split(u)?;
        let (y, conv) = self.convolve(&x, ctx)?;
        let out = self.out_proj.forward(&gate(&y, &c)?)?;
        ctx.leave(&[("conv", conv)], &lengths)?;
        Ok(out)
    }
}

impl Mixer for ShortConv {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, u, ctx, self.out_proj.weight().track_op(), &|u, ctx| self.forward_once(u, ctx))
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = u.dims2()?;
        state.check(KIND, b)?;
        let (x, c) = self.split(u)?;
        let y =
            causal_conv1d_update(state.get("conv")?, &x, &self.conv_weight, self.conv_bias.as_ref(), false)?;
        let out = self.out_proj.forward(&gate(&y, &c)?)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let shape = (batch, self.d_model, self.config.d_conv - 1);
        let dtype = state_dtype(self.dtype);
        State::new(KIND, batch).with_zeros("conv", StateKind::Recurrent, shape, dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, d, k) = (batch * seqlen, self.d_model, self.config.d_conv);
        let size = self.dtype.size_in_bytes();
        let linears = Cost::linear(rows, d, 3 * d, self.config.bias, size)
            + Cost::linear(rows, d, d, self.config.bias, size);
        let state = batch * d * (k - 1) * state_dtype(self.dtype).size_in_bytes();
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            // Per channel: two gates and k taps.
            flops: linears.flops + (rows * d * (2 * k + 2)) as u64,
            bytes: linears.bytes + (rows * 7 * d * size) as u64,
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

fn gate(x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    gated_activation(x, gate, Activation::Identity)
}
