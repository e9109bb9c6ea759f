//! Mamba-2: state-space duality, SSD (Dao & Gu 2024, arXiv 2405.21060).
//!
//! ```text
//! [z0 | x0 | z | xBC | dt] = in_proj u        xBC ← silu(conv(xBC))      [x | B | C] = xBC
//! dt = clamp(softplus(dt + dt_bias), dt_limit)                A = -exp(A_log), one number a head
//! h_t = exp(dt_t A) h_{t-1} + dt_t x_t ⊗ B_t                  h: (heads, p, n)       (eq. 16, section 7)
//! y_t = h_t C_t + D x_t               out = out_proj [ silu(z0) ⊙ x0 | norm(y ⊙ silu(z)) ]
//! ```
//! As a matrix mixer, head by head: `M[t,s] = (C_t · B_s) exp(A Σ_{s<j≤t} dt_j) dt_s`, n-semiseparable: a masked
//! attention whose mask is the decay.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input map | `in_proj.weight` | (2 d_inner + 2 g n + h, d) |
//! | conv over x, B, C | `conv1d.weight`, `conv1d.bias` | (d_ssm + 2 g n, 1, k), oldest tap first |
//! | A, D, dt | `A_log`, `D`, `dt_bias` | (h), f32; D (h p) with `D_has_hdim` |
//! | gated norm | `norm.weight` | (d_ssm), over groups of d_ssm / g |
//! | output map | `out_proj.weight` | (d, d_inner) |
//!
//! With `ssm_multipliers` (Falcon-H1) z, x, B, C and dt are what in_proj gives times a factor each.
//!
//! `z0`, `x0` (d_inner - d_ssm wide) exist only where d_ssm < d_inner: a gated MLP beside the SSM. Names, orders and
//! defaults as in state-spaces/mamba `mamba2.py`; `dt_limit` holds in single steps too, which mamba_ssm forgets.

mod config;
mod matrix;

use candle_core::{D, DType, Device, Result, Tensor};
pub use config::Mamba2Config;
use semisep_core::{
    Context, Cost, GatedRmsNorm, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder,
    in_blocks,
};
use semisep_kernels::{
    Activation, CausalConv1d, SsdChunkScan, SsdStateUpdate, activation, causal_conv1d, causal_conv1d_update,
    gated_activation, ssd_chunk_scan, ssd_state_update, state_dtype,
};

const KIND: &str = "mamba2";

/// The layer.
pub struct Mamba2 {
    config: Mamba2Config,
    d_model: usize,
    d_inner: usize,
    d_ssm: usize,
    in_proj: Linear,
    multipliers: Option<Tensor>, // in_proj's rows
    conv_weight: Tensor,         // (d_ssm + 2 g n, k)
    conv_bias: Option<Tensor>,
    a_log: Tensor, // (h)
    a: Option<Tensor>,
    d: Tensor,       // (h) or (h, p)
    dt_bias: Tensor, // (h)
    norm: Option<GatedRmsNorm>,
    out_proj: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// in_proj's output, cut up; each (..., width).
struct Projection {
    mlp: Option<(Tensor, Tensor)>, // z0, x0
    z: Tensor,
    xbc: Tensor,
    dt: Tensor,
}

impl Mamba2 {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &Mamba2Config, vb: &VarBuilder) -> Result<Self> {
        let (d_inner, d_ssm, h) = (config.d_inner(d_model), config.d_ssm(d_model), config.n_heads(d_model));
        let (gn, k) = (config.ngroups * config.d_state, config.d_conv);
        let in_proj = Linear::new(d_model, 2 * d_inner + 2 * gn + h, config.bias, &vb.pp("in_proj"))?;
        let (conv, width) = (vb.pp("conv1d"), d_ssm + 2 * gn);
        let conv_weight = conv.get_f32((width, 1, k), "weight", Init::linear(k))?.squeeze(1)?;
        let conv_bias = config.conv_bias.then(|| conv.get_f32(width, "bias", Init::linear(k))).transpose()?;
        let dt_bias = vb.get_f32(h, "dt_bias", Init::dt_bias(config.dt_min, config.dt_max, 1e-4))?;
        let a_log = vb.get_f32(h, "A_log", config.a_init())?;
        let d = if config.d_has_hdim {
            vb.get_f32(d_ssm, "D", Init::ONES)?.reshape((h, config.headdim))?
        } else {
            vb.get_f32(h, "D", Init::ONES)?
        };
        let norm = |vb: VarBuilder| {
            let group = config.norm_group(d_model);
            GatedRmsNorm::new(d_ssm, group, config.norm_eps, config.norm_before_gate, &vb)
        };
        let out_bias = config.out_bias.unwrap_or(config.bias);
        Ok(Self {
            norm: config.rmsnorm.then(|| norm(vb.pp("norm"))).transpose()?,
            out_proj: Linear::new(d_inner, d_model, out_bias, &vb.pp("out_proj"))?,
            multipliers: multipliers(config, d_model, vb)?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            a: (!a_log.track_op()).then(|| decay(&a_log)).transpose()?,
            config: config.clone(),
            d_model,
            d_inner,
            d_ssm,
            in_proj,
            conv_weight,
            conv_bias,
            a_log,
            d,
            dt_bias,
        })
    }

    fn a(&self) -> Result<Tensor> {
        self.a.clone().map_or_else(|| decay(&self.a_log), Ok)
    }

    fn heads(&self) -> usize {
        self.d_ssm / self.config.headdim
    }

    fn project(&self, u: &Tensor) -> Result<Projection> {
        let all = self.in_proj.forward(u)?;
        let all = match &self.multipliers {
            Some(factors) => all.broadcast_mul(&factors.to_dtype(all.dtype())?)?,
            None => all,
        };
        let (mlp, gn) = (self.d_inner - self.d_ssm, self.config.ngroups * self.config.d_state);
        let part = |start, len| all.narrow(D::Minus1, start, len);
        let (z, xbc) = (2 * mlp, 2 * mlp + self.d_ssm);
        let dt = xbc + self.d_ssm + 2 * gn;
        Ok(Projection {
            mlp: (mlp > 0)
                .then(|| Ok::<_, candle_core::Error>((part(0, mlp)?, part(mlp, mlp)?)))
                .transpose()?,
            z: part(z, self.d_ssm)?,
            xbc: part(xbc, self.d_ssm + 2 * gn)?,
            dt: part(dt, self.heads())?,
        })
    }

    /// xBC (..., d_ssm + 2 g n) -> x (..., h, p), B and C (..., g, n)
    fn split(&self, xbc: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let (g, n) = (self.config.ngroups, self.config.d_state);
        let lead = &xbc.dims()[..xbc.rank() - 1];
        let part = |start, rows: usize, width: usize| {
            let shape: Vec<usize> = lead.iter().copied().chain([rows, width]).collect();
            xbc.narrow(D::Minus1, start, rows * width)?.reshape(shape)
        };
        Ok((
            part(0, self.heads(), self.config.headdim)?,
            part(self.d_ssm, g, n)?,
            part(self.d_ssm + g * n, g, n)?,
        ))
    }

    fn convolve(&self, xbc: &Tensor, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        causal_conv1d(CausalConv1d {
            x: xbc,
            weight: &self.conv_weight,
            bias: self.conv_bias.as_ref(),
            silu: true,
            initial_state: ctx.initial("conv")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
        })
    }

    /// y (b, l, h, p) and the final state, ungated.
    fn scan(&self, xbc: &Tensor, dt: &Tensor, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        let (x, b, c) = self.split(xbc)?;
        ssd_chunk_scan(&SsdChunkScan {
            d: Some(&self.d),
            dt_bias: Some(&self.dt_bias),
            dt_softplus: true,
            dt_limit: self.config.dt_limit(),
            initial_state: ctx.initial("ssm")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
            ..SsdChunkScan::new(&x, dt, &self.a()?, &b, &c, self.config.chunk_size)
        })
    }

    /// Gate, norm, MLP part and output map: y (..., d_ssm) -> (..., d).
    fn finish(&self, y: &Tensor, p: &Projection) -> Result<Tensor> {
        let y = match &self.norm {
            Some(norm) => norm.forward(y, &p.z)?,
            None => gated_activation(y, &p.z, Activation::Silu)?,
        };
        match &p.mlp {
            Some((z0, x0)) => {
                let mlp = gated_activation(x0, z0, Activation::Silu)?;
                self.out_proj.forward(&Tensor::cat(&[&mlp, &y], D::Minus1)?)
            }
            None => self.out_proj.forward(&y),
        }
    }

    /// The parallel form over all of `u` at once.
    fn forward_once(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let projection = self.project(u)?;
        let (xbc, conv) = self.convolve(&projection.xbc, ctx)?;
        let (y, ssm) = self.scan(&xbc, &projection.dt, ctx)?;
        let out = self.finish(&y.flatten_from(2)?, &projection)?;
        ctx.leave(&[("conv", conv), ("ssm", ssm)], &lengths)?;
        Ok(out)
    }
}

impl Mixer for Mamba2 {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, u, ctx, self.in_proj.weight().track_op(), &|u, ctx| self.forward_once(u, ctx))
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = u.dims2()?;
        state.check(KIND, b)?;
        let projection = self.project(u)?;
        let xbc = causal_conv1d_update(
            state.get("conv")?,
            &projection.xbc,
            &self.conv_weight,
            self.conv_bias.as_ref(),
            true,
        )?;
        let (x, key, c) = self.split(&xbc)?;
        let y = ssd_state_update(
            state.get("ssm")?,
            &SsdStateUpdate {
                d: Some(&self.d),
                dt_bias: Some(&self.dt_bias),
                dt_softplus: true,
                dt_limit: self.config.dt_limit(),
                ..SsdStateUpdate::new(&x, &projection.dt, &self.a()?, &key, &c)
            },
        )?; // (b, h, p)
        let out = self.finish(&y.flatten_from(1)?, &projection)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let Mamba2Config { d_state, d_conv, headdim, ngroups, .. } = self.config;
        let (dtype, width) = (state_dtype(self.dtype), self.d_ssm + 2 * ngroups * d_state);
        let ssm = (batch, self.heads(), headdim, d_state);
        State::new(KIND, batch)
            .with_zeros("conv", StateKind::Recurrent, (batch, width, d_conv - 1), dtype, &self.device)?
            .with_zeros("ssm", StateKind::Recurrent, ssm, dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let Mamba2Config { d_state: n, d_conv: k, headdim: p, ngroups: g, chunk_size, .. } = self.config;
        let (rows, h, size) = (batch * seqlen, self.heads(), self.dtype.size_in_bytes());
        let (width, q) = (self.d_ssm + 2 * g * n, chunk_size.min(seqlen));
        let wide = self.in_proj.weight().dims()[0];
        let linears = Cost::linear(rows, self.d_model, wide, false, size)
            + Cost::linear(rows, self.d_inner, self.d_model, false, size);
        let parameters = self.groups.iter().map(|g| g.elements() as u64).sum();
        // A token: k taps; C·B over half a chunk for each group; that times x, state in and out, for each head.
        let scan = 2 * k * width + g * q * n + h * (q * p + 4 * p * n) + 8 * self.d_ssm;
        let state = batch * (h * p * n + width * (k - 1)) * state_dtype(self.dtype).size_in_bytes();
        Cost {
            parameters,
            flops: linears.flops + rows as u64 * scan as u64,
            bytes: linears.bytes + (rows * (2 * width + 3 * self.d_ssm) * size) as u64,
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

/// The factors on in_proj's rows, in full precision.
fn multipliers(config: &Mamba2Config, d_model: usize, vb: &VarBuilder) -> Result<Option<Tensor>> {
    let Some([z, x, b, c, dt]) = config.ssm_multipliers else { return Ok(None) };
    let (d_ssm, gn) = (config.d_ssm(d_model), config.ngroups * config.d_state);
    let mlp = config.d_inner(d_model) - d_ssm;
    let parts = [(1.0, 2 * mlp), (z, d_ssm), (x, d_ssm), (b, gn), (c, gn), (dt, config.n_heads(d_model))];
    let rows: Vec<f64> = parts.iter().flat_map(|&(factor, n)| std::iter::repeat_n(factor, n)).collect();
    Tensor::new(rows, &Device::Cpu)?.to_dtype(state_dtype(vb.dtype()))?.to_device(vb.device()).map(Some)
}

/// A = -exp(A_log): negative, so that the state decays.
fn decay(a_log: &Tensor) -> Result<Tensor> {
    activation(a_log, Activation::Exp)?.neg()
}
