//! HGRN2: a gated linear recurrence whose state is expanded by an outer product (Qin et al. 2024, arXiv 2404.07904).
//!
//! ```text
//! q = silu(q_proj x)     i = i_proj x      f = β + (1 - β) σ(f_proj x)          β: a lower bound, 0 in the first layer
//! S_t = diag(f_t) S_{t-1} + (1 - f_t) i_tᵀ              S: (h, n, n)                            (section 3.2)
//! y_t = S_tᵀ q_t / √n                                   out = o_proj norm(y)      one norm over all heads
//! ```
//! As a matrix mixer, head by head: `M[t,s] = Σ_n q_t[n] (1 - f_s[n]) Π_{s<r≤t} f_r[n] / √n`, n-semiseparable. Keys are
//! what the gates leave: there is no key map.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input maps | `q_proj.weight`, `f_proj.weight`, `i_proj.weight` | (d, d) |
//! | convolutions | `q_conv1d.weight`, `f_conv1d.weight`, `i_conv1d.weight` | (d, 1, taps), with `use_short_conv`; no SiLU |
//! | bounds | `lower_bounds`, beside the layers | (layers, d): β_i is the sum of the first i after the first of their softmax over layers |
//! | norm, output map | `g_norm.weight`, `o_proj.weight` | (d), (d, d) |
//!
//! Names and defaults as in flash-linear-attention.

mod bound;
mod config;
mod matrix;

use candle_core::{D, DType, Device, Result, Tensor};
pub use config::Hgrn2Config;
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, ShortConv, ShortConvs, State, StateKind,
    VarBuilder, in_blocks,
};
use semisep_kernels::{
    Activation, DecayScan, DecayStateUpdate, activation, decay_scan, decay_state_update, rms_norm,
    state_dtype,
};

use crate::bound::LowerBound;

const KIND: &str = "hgrn2";

/// The layer.
pub struct Hgrn2 {
    config: Hgrn2Config,
    d_model: usize,
    maps: [Linear; 3], // q, f, i
    convs: ShortConvs, // of the same
    bound: LowerBound,
    norm: Option<Tensor>, // (d)
    o_proj: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// What the scan reads: scaled queries, keys, inputs and log decays, (..., h, n).
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
}

impl Hgrn2 {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &Hgrn2Config, vb: &VarBuilder) -> Result<Self> {
        let map = |name| Linear::with_init(d_model, d_model, false, Init::Normal { std: 0.02 }, &vb.pp(name));
        let conv = |name| ShortConv::new(d_model, config.conv_size, config.conv_bias, false, &vb.pp(name));
        let convs = || -> Result<_> {
            let [q, f, i] = ["q_conv1d", "f_conv1d", "i_conv1d"].map(conv);
            Ok(ShortConvs::of([("conv_q", q?), ("conv_f", f?), ("conv_i", i?)]))
        };
        Ok(Self {
            maps: [map("q_proj")?, map("f_proj")?, map("i_proj")?],
            convs: if config.use_short_conv { convs()? } else { ShortConvs::default() },
            bound: LowerBound::new(d_model, config.use_lower_bound, vb)?,
            norm: config
                .elementwise_affine
                .then(|| vb.pp("g_norm").get_f32(d_model, "weight", Init::ONES))
                .transpose()?,
            o_proj: map("o_proj")?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
        })
    }

    /// Projections (..., d) of q, f and i, before their convolutions.
    fn project(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let [q, f, i] = &self.maps;
        Ok([q.forward(x)?, f.forward(x)?, i.forward(x)?])
    }

    /// Projections (..., d), convolved, as heads.
    fn heads(&self, [q, f, i]: &[Tensor; 3]) -> Result<Heads> {
        let (n, lead) = (self.config.expand_ratio, &q.dims()[..q.rank() - 1]);
        let split = |t: &Tensor| t.reshape([lead, &[self.d_model / n, n]].concat());
        let (log_decay, k) = self.bound.gates(f, self.dtype)?;
        Ok(Heads {
            q: (split(&activation(q, Activation::Silu)?)? * (n as f64).powf(-0.5))?,
            k: split(&k)?,
            v: split(i)?,
            log_decay: split(&log_decay)?,
        })
    }

    /// Heads of x (b, l, d), and the new states of the convolutions.
    fn convolved(&self, x: &Tensor, ctx: &Context<'_>) -> Result<(Heads, Vec<(&'static str, Tensor)>)> {
        let mut projections = self.project(x)?;
        let left = self.convs.forward(&mut projections, ctx)?;
        Ok((self.heads(&projections)?, left))
    }

    /// y (b, l, h, n) and the final state.
    fn scan(&self, heads: &Heads, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        decay_scan(&DecayScan {
            state: ctx.initial("hgrn2")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
            ..DecayScan::new(&heads.q, &heads.k, &heads.v, &heads.log_decay)
        })
    }

    /// Norm and output map: y (..., h, n) -> (..., d).
    fn finish(&self, y: &Tensor) -> Result<Tensor> {
        let y = y.flatten(D::Minus2, D::Minus1)?;
        self.o_proj.forward(&rms_norm(&y, self.norm.as_ref(), self.config.norm_eps, self.d_model)?)
    }

    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let (heads, mut entries) = self.convolved(x, ctx)?;
        let (y, last) = self.scan(&heads, ctx)?;
        let out = self.finish(&y)?;
        entries.push(("hgrn2", last));
        ctx.leave(&entries, &lengths)?;
        Ok(out)
    }
}

impl Mixer for Hgrn2 {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, x, ctx, self.o_proj.weight().track_op(), &|x, ctx| self.forward_once(x, ctx))
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = x.dims2()?;
        state.check(KIND, b)?;
        let mut projections = self.project(x)?;
        self.convs.step(&mut projections, state)?;
        let Heads { q, k, v, log_decay } = self.heads(&projections)?;
        let args = DecayStateUpdate::new(&q, &k, &v, &log_decay);
        let y = decay_state_update(state.get("hgrn2")?, &args)?; // (b, h, n)
        let out = self.finish(&y)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (dtype, n) = (state_dtype(self.dtype), self.config.expand_ratio);
        let state = self.convs.with_states(State::new(KIND, batch), dtype, &self.device)?;
        let shape = (batch, self.d_model / n, n, n);
        state.with_zeros("hgrn2", StateKind::Recurrent, shape, dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        /// Tokens of the scan's chunks.
        const CHUNK: usize = 16;
        let (d, n, rows) = (self.d_model, self.config.expand_ratio, batch * seqlen);
        let (size, q) = (self.dtype.size_in_bytes(), CHUNK.min(seqlen));
        let linears = Cost::linear(rows, d, 3 * d, false, size) + Cost::linear(rows, d, d, false, size);
        let taps = if self.convs.is_empty() { 0 } else { self.config.conv_size };
        // A token: q · k over half a chunk, that times v, state in and out, decays; gates, convolutions and norm.
        let scan = d * (2 * q + 4 * n + 8) + d * (6 * taps + 24);
        let state = batch * d * (n + 3 * taps.saturating_sub(1));
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: linears.flops + rows as u64 * scan as u64,
            bytes: linears.bytes + (rows * 7 * d * size) as u64,
            state_bytes: (state * state_dtype(self.dtype).size_in_bytes()) as u64,
            kv_bytes: 0,
        }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, x: &Tensor) -> Result<Option<Mixing>> {
        matrix::mixing(self, x).map(Some)
    }
}
