//! Gated linear attention, GLA (Yang et al. 2023, arXiv 2312.06635).
//!
//! ```text
//! q = q_proj x    k = k_proj x    v = v_proj x      g = ln σ(gk_proj x) / τ      g ≤ 0: a log decay a key feature
//! S_t = diag(exp g_t) S_{t-1} + k_t v_tᵀ            S: (h, n, p)                                 (eq. 3)
//! y_t = S_tᵀ q_t / √n                               out = o_proj [ norm(y) ⊙ silu(g_proj x) ]    (section 4.4)
//! ```
//! As a matrix mixer, head by head: `M[t,s] = Σ_n q_t[n] k_s[n] exp(Σ_{s<r≤t} g_r[n]) / √n`, n-semiseparable.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input maps | `q_proj.weight`, `k_proj.weight`, `v_proj.weight`, `g_proj.weight` | (h n, d), (h_kv n, d), (h_kv p, d), (h p, d) |
//! | decays | `gk_proj.0.weight`, `gk_proj.1.weight`, `gk_proj.1.bias` | (r, d), (h_kv n, r), (h_kv n) |
//! | convolutions | `q_conv1d.weight`, `k_conv1d.weight`, `v_conv1d.weight` | (width, 1, taps), with `use_short_conv` |
//! | head norm | `g_norm_swish_gate.weight`, or `g_norm.weight` without SiLU gate | (p) |
//! | output map | `o_proj.weight` | (d, h p) |
//!
//! Names and defaults as in flash-linear-attention; τ is `gate_logit_normalizer`.

mod config;
mod matrix;

use candle_core::{DType, Device, Result, Tensor};
pub use config::GlaConfig;
use semisep_core::{
    Context, Cost, HeadNorm, Init, Linear, Mixer, Mixing, ParameterGroup, ShortConvs, State, StateKind,
    VarBuilder, in_blocks, repeat_heads, softplus,
};
use semisep_kernels::{DecayScan, DecayStateUpdate, activation, decay_scan, decay_state_update, state_dtype};

const KIND: &str = "gla";
/// Names of the convolutions' states.
/// Gain of the initial values, as in the paper's code.
const GAIN: f64 = 0.176_776_695_296_636_9; // 2^-2.5

/// The layer.
pub struct Gla {
    config: GlaConfig,
    d_model: usize,
    /// Features a head of a query and of a value.
    dims: (usize, usize),
    maps: [Linear; 3],   // q, k, v
    decays: [Linear; 2], // down, up
    gate: Option<Linear>,
    convs: ShortConvs,
    norm: HeadNorm,
    o_proj: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// What the scan reads: scaled queries, keys, values and log decays, (..., h, n) or (..., h, p).
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
}

impl Gla {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &GlaConfig, vb: &VarBuilder) -> Result<Self> {
        let (n, p) = config.head_dims(d_model);
        let (h, kv, rank) = (config.num_heads, config.kv_heads(), config.gate_low_rank_dim);
        let map = |name, inputs, outputs, bias| {
            Linear::with_init(inputs, outputs, bias, Init::xavier(inputs, outputs, GAIN), &vb.pp(name))
        };
        let maps = [
            map("q_proj", d_model, h * n, false)?,
            map("k_proj", d_model, kv * n, false)?,
            map("v_proj", d_model, kv * p, false)?,
        ];
        let convs = match config.use_short_conv {
            true => ShortConvs::new([h * n, kv * n, kv * p], config.conv_size, config.conv_bias, vb)?,
            false => ShortConvs::default(),
        };
        let gate = config.use_output_gate.then(|| map("g_proj", d_model, h * p, false)).transpose()?;
        let act = config.use_output_gate.then_some(config.gate_fn);
        Ok(Self {
            decays: [map("gk_proj.0", d_model, rank, false)?, map("gk_proj.1", rank, kv * n, true)?],
            norm: HeadNorm::new(p, config.norm_eps, config.elementwise_affine, act, vb)?,
            o_proj: map("o_proj", h * p, d_model, false)?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
            dims: (n, p),
            maps,
            gate,
            convs,
        })
    }

    /// Projections (..., width) of (..., d), before their convolutions.
    fn project(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let [q, k, v] = &self.maps;
        Ok([q.forward(x)?, k.forward(x)?, v.forward(x)?])
    }

    /// `ln σ(gk_proj x) / τ`, no less than `clamp_min`: (..., d) -> (..., h_kv n).
    fn log_decays(&self, x: &Tensor) -> Result<Tensor> {
        let [down, up] = &self.decays;
        let logits = up.forward(&down.forward(x)?)?;
        let log_decay = (softplus(&logits.neg()?)? * (-1.0 / self.config.gate_logit_normalizer))?;
        match self.config.clamp_min {
            Some(min) => log_decay.maximum(min),
            None => Ok(log_decay),
        }
    }

    /// Projections (..., width), convolved, as heads.
    fn heads(&self, [q, k, v]: &[Tensor; 3], x: &Tensor) -> Result<Heads> {
        let ((n, p), (h, kv)) = (self.dims, (self.config.num_heads, self.config.kv_heads()));
        let lead = &x.dims()[..x.rank() - 1];
        let split = |t: &Tensor, heads, width| t.reshape([lead, &[heads, width]].concat());
        let mapped = |t: Tensor| match self.config.feature_map {
            Some(act) => activation(&t, act.into()),
            None => Ok(t),
        };
        Ok(Heads {
            q: (mapped(split(q, h, n)?)? * (n as f64).powf(-0.5))?,
            k: repeat_heads(&mapped(split(k, kv, n)?)?, h)?,
            v: repeat_heads(&split(v, kv, p)?, h)?,
            log_decay: repeat_heads(&split(&self.log_decays(x)?, kv, n)?, h)?,
        })
    }

    /// y (b, l, h, p) and the final state.
    fn scan(&self, heads: &Heads, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        decay_scan(&DecayScan {
            state: ctx.initial("gla")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
            ..DecayScan::new(&heads.q, &heads.k, &heads.v, &heads.log_decay)
        })
    }

    /// Norm, gate and output map: y (..., h, p), x (..., d) -> (..., d).
    fn finish(&self, y: &Tensor, x: &Tensor) -> Result<Tensor> {
        let gate = self.gate.as_ref().map(|map| map.forward(x)).transpose()?;
        self.o_proj.forward(&self.norm.forward(y, gate.as_ref())?)
    }

    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let mut projections = self.project(x)?;
        let mut entries = self.convs.forward(&mut projections, ctx)?;
        let (y, last) = self.scan(&self.heads(&projections, x)?, ctx)?;
        let out = self.finish(&y, x)?;
        entries.push(("gla", last));
        ctx.leave(&entries, &lengths)?;
        Ok(out)
    }
}

impl Mixer for Gla {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, x, ctx, self.o_proj.weight().track_op(), &|x, ctx| self.forward_once(x, ctx))
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = x.dims2()?;
        state.check(KIND, b)?;
        let mut projections = self.project(x)?;
        self.convs.step(&mut projections, state)?;
        let Heads { q, k, v, log_decay } = self.heads(&projections, x)?;
        let args = DecayStateUpdate::new(&q, &k, &v, &log_decay);
        let y = decay_state_update(state.get("gla")?, &args)?; // (b, h, p)
        let out = self.finish(&y, x)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (dtype, (n, p)) = (state_dtype(self.dtype), self.dims);
        let state = self.convs.with_states(State::new(KIND, batch), dtype, &self.device)?;
        state.with_zeros(
            "gla",
            StateKind::Recurrent,
            (batch, self.config.num_heads, n, p),
            dtype,
            &self.device,
        )
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        /// Tokens of the scan's chunks.
        const CHUNK: usize = 16;
        let ((n, p), (h, kv)) = (self.dims, (self.config.num_heads, self.config.kv_heads()));
        let (rows, size, q) = (batch * seqlen, self.dtype.size_in_bytes(), CHUNK.min(seqlen));
        let gate = if self.gate.is_some() { h * p } else { 0 };
        let (widths, rank) = (h * n + kv * (n + p), self.config.gate_low_rank_dim);
        let linears = Cost::linear(rows, self.d_model, widths + gate + rank, false, size)
            + Cost::linear(rows, rank, kv * n, true, size)
            + Cost::linear(rows, h * p, self.d_model, false, size);
        let taps = if self.convs.is_empty() { 0 } else { self.config.conv_size };
        // A token: q · k over half a chunk, that times v, state in and out, decays; convolutions, norm and gate.
        let scan = h * (q * n + q * p + 4 * p * n + 8 * n) + 2 * taps * widths + 8 * h * p;
        let state = batch * (h * p * n + widths * taps.saturating_sub(1));
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: linears.flops + rows as u64 * scan as u64,
            bytes: linears.bytes + (rows * (3 * h * n + 4 * h * p) * size) as u64,
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
