//! Mamba: the selective state space, S6 (Gu & Dao 2023, arXiv 2312.00752).
//!
//! ```text
//! [x | z] = in_proj u                      x ← silu(conv(x))          depthwise, causal, k taps
//! [δ | B | C] = x_proj x                   dt = softplus(dt_proj δ + bias)
//! h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t       A = -exp(A_log), one (n) row a channel      (eq. 2, 4)
//! y_t = C_t h_t + D x_t                    out = out_proj (y ⊙ silu(z))
//! ```
//! As a matrix mixer, channel by channel: `M[t,s] = Σ_n C_t[n] exp(A[n] Σ_{s<j≤t} dt_j) B_s[n] dt_s`, n-semiseparable.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input map | `in_proj.weight` | (2e, d), rows [x, z] |
//! | conv | `conv1d.weight`, `conv1d.bias` | (e, 1, k), oldest tap first; (e) |
//! | s_B, s_C, s_Δ | `x_proj.weight` | (r + 2n, e), rows [δ, B, C] |
//! | dt | `dt_proj.weight`, `dt_proj.bias` | (e, r); (e) |
//! | A, D | `A_log`, `D` | (e, n); (e), f32 |
//! | output map | `out_proj.weight` | (d, e) |
//! | with h heads | `x_proj.weight`, `dt_proj.weight` | (h (r + 2n), e/h), (e, r): head by head, from the head's channels |
//! | norms | `dt_layernorm`, `b_layernorm`, `c_layernorm` | (r), (n), (n); Jamba: with weights, FalconMamba: without |
//!
//! Names, orders and defaults as in state-spaces/mamba `mamba_simple.py`.

mod config;
mod matrix;

use std::sync::OnceLock;

use candle_core::{D, DType, Device, Result, Tensor};
pub use config::{Mamba1Config, ParameterNorms};
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder, in_blocks,
};
use semisep_kernels::{
    Activation, CausalConv1d, SelectiveScan, SelectiveStateUpdate, activation, causal_conv1d,
    causal_conv1d_update, rms_norm, selective_scan, selective_state_update, state_dtype,
};

const KIND: &str = "mamba1";

/// The layer.
pub struct Mamba1 {
    config: Mamba1Config,
    d_model: usize,
    d_inner: usize,
    dt_rank: usize,
    in_proj: Linear,
    conv_weight: Tensor, // (e, k)
    conv_bias: Option<Tensor>,
    x_proj: Linear,
    dt_proj: Linear,
    heads: usize,
    dt_bias: Tensor, // (e)
    a_log: Tensor,   // (e, n)
    /// A, computed when it is first wanted, unless it is being trained.
    a: OnceLock<Tensor>,
    d: Tensor, // (e)
    norms: [Option<Tensor>; 3],
    out_proj: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// The scan's inputs: dt (..., e) before bias and softplus, B and C (..., h, n).
struct Selection {
    dt: Tensor,
    b: Tensor,
    c: Tensor,
}

impl Mamba1 {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &Mamba1Config, vb: &VarBuilder) -> Result<Self> {
        let (e, n, k) = (config.d_inner(d_model), config.d_state, config.d_conv);
        let r = config.dt_rank(d_model);
        let in_proj = Linear::new(d_model, 2 * e, config.bias, &vb.pp("in_proj"))?;
        let conv = vb.pp("conv1d");
        let conv_weight = conv.get_f32((e, 1, k), "weight", Init::linear(k))?.squeeze(1)?;
        let conv_bias = config.conv_bias.then(|| conv.get_f32(e, "bias", Init::linear(k))).transpose()?;
        let heads = config.n_mamba_heads;
        let x_proj = Linear::new(e / heads, heads * (r + 2 * n), false, &vb.pp("x_proj"))?;
        let bound = (r as f64).powf(-0.5);
        let dt = vb.pp("dt_proj");
        let dt_proj = Linear::with_init(r, e, false, Init::Uniform { lo: -bound, hi: bound }, &dt)?;
        let dt_bias = dt.get_f32(e, "bias", Init::dt_bias(config.dt_min, config.dt_max, 1e-4))?;
        let a_log = vb.get_f32((e, n), "A_log", s4d_real())?;
        Ok(Self {
            a: OnceLock::new(),
            a_log,
            d: vb.get_f32(e, "D", Init::ONES)?,
            norms: config.norm_weights(r, vb)?,
            out_proj: Linear::new(e, d_model, config.bias, &vb.pp("out_proj"))?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
            d_inner: e,
            dt_rank: r,
            in_proj,
            conv_weight,
            conv_bias,
            x_proj,
            dt_proj,
            heads,
            dt_bias,
        })
    }

    fn a(&self) -> Result<Tensor> {
        if let Some(a) = self.a.get() {
            return Ok(a.clone());
        }
        let a = decay(&self.a_log)?;
        Ok(if self.a_log.track_op() { a } else { self.a.get_or_init(|| a).clone() })
    }

    /// (..., d) -> x, z (..., e)
    fn split(&self, u: &Tensor) -> Result<(Tensor, Tensor)> {
        let xz = self.in_proj.forward(u)?;
        let e = self.d_inner;
        Ok((xz.narrow(D::Minus1, 0, e)?, xz.narrow(D::Minus1, e, e)?))
    }

    fn select(&self, x: &Tensor) -> Result<Selection> {
        if self.heads == 1 {
            let Selection { dt, b, c } = self.select_head(x, &self.x_proj, &self.dt_proj)?;
            return Ok(Selection { dt, b: b.unsqueeze(D::Minus2)?, c: c.unsqueeze(D::Minus2)? });
        }
        let rows = |map: &Linear, head: usize| {
            let weight = map.weight();
            let len = weight.dim(0)? / self.heads;
            Ok::<_, candle_core::Error>(Linear::from_tensors(weight.narrow(0, head * len, len)?, None))
        };
        let width = self.d_inner / self.heads;
        let (mut dt, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        for head in 0..self.heads {
            let x = x.narrow(D::Minus1, head * width, width)?;
            let found = self.select_head(&x, &rows(&self.x_proj, head)?, &rows(&self.dt_proj, head)?)?;
            dt.push(found.dt);
            b.push(found.b);
            c.push(found.c);
        }
        let side = x.rank() - 1;
        Ok(Selection {
            dt: Tensor::cat(&dt, D::Minus1)?,
            b: Tensor::stack(&b, side)?,
            c: Tensor::stack(&c, side)?,
        })
    }

    /// One head's dt, B and C, without an axis of heads, from its channels x.
    fn select_head(&self, x: &Tensor, x_proj: &Linear, dt_proj: &Linear) -> Result<Selection> {
        let (r, n) = (self.dt_rank, self.config.d_state);
        let dbc = x_proj.forward(x)?; // (..., r + 2n)
        let part = |k: usize, start, len| -> Result<Tensor> {
            let part = dbc.narrow(D::Minus1, start, len)?;
            match &self.config.norms {
                Some(norms) => rms_norm(&part, self.norms[k].as_ref(), norms.eps, len),
                None => Ok(part),
            }
        };
        Ok(Selection { dt: dt_proj.forward(&part(0, 0, r)?)?, b: part(1, r, n)?, c: part(2, r + n, n)? })
    }

    /// The scan over x (b, l, e), without a gate unless `z` is given.
    fn scan(&self, x: &Tensor, z: Option<&Tensor>, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        let Selection { dt, b, c } = self.select(x)?;
        selective_scan(&SelectiveScan {
            d: Some(&self.d),
            dt_bias: Some(&self.dt_bias),
            z,
            dt_softplus: true,
            initial_state: ctx.initial("ssm")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
            ..SelectiveScan::new(x, &dt, &self.a()?, &b, &c)
        })
    }

    fn convolve(&self, x: &Tensor, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        causal_conv1d(CausalConv1d {
            x,
            weight: &self.conv_weight,
            bias: self.conv_bias.as_ref(),
            silu: true,
            initial_state: ctx.initial("conv")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
        })
    }

    /// The parallel form over all of `u` at once.
    fn forward_once(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let (x, z) = self.split(u)?;
        let (x, conv) = self.convolve(&x, ctx)?;
        let (y, ssm) = self.scan(&x, Some(&z), ctx)?;
        let out = self.out_proj.forward(&y)?;
        ctx.leave(&[("conv", conv), ("ssm", ssm)], &lengths)?;
        Ok(out)
    }
}

impl Mixer for Mamba1 {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, u, ctx, self.in_proj.weight().track_op(), &|u, ctx| self.forward_once(u, ctx))
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = u.dims2()?;
        state.check(KIND, b)?;
        let (x, z) = self.split(u)?;
        let conv = state.get("conv")?;
        let x = causal_conv1d_update(conv, &x, &self.conv_weight, self.conv_bias.as_ref(), true)?;
        let Selection { dt, b: key, c } = self.select(&x)?;
        let y = selective_state_update(
            state.get("ssm")?,
            &SelectiveStateUpdate {
                d: Some(&self.d),
                dt_bias: Some(&self.dt_bias),
                z: Some(&z),
                dt_softplus: true,
                ..SelectiveStateUpdate::new(&x, &dt, &self.a()?, &key, &c)
            },
        )?;
        let out = self.out_proj.forward(&y)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (e, n, k, dtype) =
            (self.d_inner, self.config.d_state, self.config.d_conv, state_dtype(self.dtype));
        State::new(KIND, batch)
            .with_zeros("conv", StateKind::Recurrent, (batch, e, k - 1), dtype, &self.device)?
            .with_zeros("ssm", StateKind::Recurrent, (batch, e, n), dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (e, n, k, r) = (self.d_inner, self.config.d_state, self.config.d_conv, self.dt_rank);
        let (rows, size) = (batch * seqlen, self.dtype.size_in_bytes());
        let linears = Cost::linear(rows, self.d_model, 2 * e, false, size)
            + Cost::linear(rows, e, r + 2 * n, false, size)
            + Cost::linear(rows, r, e, false, size)
            + Cost::linear(rows, e, self.d_model, false, size);
        let parameters = self.groups.iter().map(|g| g.elements() as u64).sum();
        // Per channel: k taps; per state element: decay (exp), two multiply-adds; skip and gate.
        let flops = linears.flops + (rows * e) as u64 * (2 * k as u64 + 7 * n as u64 + 6);
        let bytes = linears.bytes + (rows * (5 * e + 2 * n * self.heads) * size) as u64;
        let state = batch * e * (n + k - 1) * state_dtype(self.dtype).size_in_bytes();
        Cost { parameters, flops, bytes, state_bytes: state as u64, kv_bytes: 0 }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, u: &Tensor) -> Result<Option<Mixing>> {
        matrix::mixing(self, u).map(Some)
    }
}

/// A = -exp(A_log): negative, so that the state decays.
fn decay(a_log: &Tensor) -> Result<Tensor> {
    activation(a_log, Activation::Exp)?.neg()
}

/// S4D-Real: A_log = ln(1..n) in each channel.
fn s4d_real() -> Init {
    Init::custom(|shape, _| {
        let n = shape[1];
        (0..shape[0] * n).map(|i| ((i % n + 1) as f32).ln()).collect()
    })
}
