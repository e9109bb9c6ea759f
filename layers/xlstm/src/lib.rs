//! mLSTM: the matrix memory of xLSTM (Beck et al. 2024, arXiv 2405.04517; Beck et al. 2025, arXiv 2503.13427).
//!
//! ```text
//! q, k, v = linear maps of x       ĩ, f̃ = cap tanh(map x / cap)                    one number a head and gate
//! C_t = σ(f̃_t) C_{t-1} + exp(ĩ_t) k_t v_tᵀ       n_t = σ(f̃_t) n_{t-1} + exp(ĩ_t) k_t            (eq. 19 to 21)
//! y_t = C_tᵀ q_t / max(|n_tᵀ q_t|, 1)            queries over √n
//! out = out_proj [ σ(ogate_preact x) ⊙ norm(y) ]          a layer norm of each head
//! ```
//! The input gate has no bound, so both states are kept as `exp(-m_t)` times themselves, with `m_t = max(ln σ(f̃_t) +
//! m_{t-1}, ĩ_t)` and `m = 0` before the first token. What is left is a scan with decays and gains of at most 1, and the
//! normaliser is one more column of its values, a column of ones:
//! ```text
//! [C|n]_t = exp(keep_t) [C|n]_{t-1} + exp(gain_t) k_t [v_t|1]ᵀ     keep = ln σ(f̃) + m_{t-1} - m_t     gain = ĩ - m_t
//! y_t = C_tᵀ q_t / (max(|n_tᵀ q_t|, exp(-m_t)) + eps)
//! ```
//! As a matrix mixer, head by head: `M[t,s] = q_t·k_s exp(gain_s + Σ_{s<r≤t} keep_r) / denominator_t`, n-semiseparable.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input maps | `q.weight`, `k.weight`, `v.weight`, `ogate_preact.weight` | (h n, d), (h n, d), (h p, d), (h p, d) |
//! | gates | `igate_preact.{weight,bias}`, `fgate_preact.{weight,bias}` | (h, d), (h) |
//! | head norm, output map | `multihead_norm.weight`, `out_proj.weight` | (h p), (d, h p) |
//!
//! Names and defaults as in xLSTM-7B (NX-AI/xlstm, `xlstm_large`).

mod config;
mod matrix;

use candle_core::{D, DType, Device, Result, Tensor};
pub use config::MlstmConfig;
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder, in_blocks,
    softplus,
};
use semisep_kernels::{
    Activation, DecayScan, DecayStateUpdate, MaxPlusScan, Stabilized, decay_scan, decay_state_update,
    gated_activation, layer_norm, max_plus_scan, state_dtype,
};

const KIND: &str = "mlstm";

/// The layer.
pub struct Mlstm {
    config: MlstmConfig,
    d_model: usize,
    /// Features a head of a query and of a value.
    dims: (usize, usize),
    maps: [Linear; 3],  // q, k, v
    gates: [Linear; 2], // input, forget
    output_gate: Linear,
    norm: [Option<Tensor>; 2], // weight, bias: (h p)
    out_proj: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// What the scan reads: scaled queries and keys (..., h, n), values with ones beside them (..., h, p + 1), and the gates'
/// logits (..., h), soft-capped: ĩ and ln σ(f̃).
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gain: Tensor,
    log_decay: Tensor,
}

impl Mlstm {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &MlstmConfig, vb: &VarBuilder) -> Result<Self> {
        let (h, (n, p), bias) = (config.num_heads, config.head_dims(d_model), config.use_bias);
        let small = Init::Normal { std: (0.4 / d_model as f64).sqrt() };
        let map = |name, outputs| Linear::with_init(d_model, outputs, bias, small.clone(), &vb.pp(name));
        let gate = |name, init: Init| -> Result<Linear> {
            let vb = vb.pp(name);
            let weight = vb.get((h, d_model), "weight", Init::ZEROS)?;
            Ok(Linear::from_tensors(weight, Some(vb.get_f32(h, "bias", init)?)))
        };
        // Forget gates from 3 to 6: memories of some twenty to some hundreds of tokens.
        let open = Init::custom(|shape, _| {
            let last = (shape[0].max(2) - 1) as f32;
            (0..shape[0]).map(|j| 3.0 + 3.0 * j as f32 / last).collect()
        });
        let norm = vb.pp("multihead_norm");
        let out_std = 2.0 / vb.place().map_or(1.0, |(_, layers)| layers as f64) / (d_model as f64).sqrt();
        let out = Init::Normal { std: out_std };
        Ok(Self {
            maps: [map("q", h * n)?, map("k", h * n)?, map("v", h * p)?],
            output_gate: map("ogate_preact", h * p)?,
            gates: [
                gate("igate_preact", Init::Const(config.input_gate_bias_init))?,
                gate("fgate_preact", open)?,
            ],
            norm: [
                Some(norm.get_f32(h * p, "weight", Init::ONES)?),
                bias.then(|| norm.get_f32(h * p, "bias", Init::ZEROS)).transpose()?,
            ],
            out_proj: Linear::with_init(h * p, d_model, bias, out, &vb.pp("out_proj"))?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
            dims: (n, p),
        })
    }

    fn heads(&self, x: &Tensor) -> Result<Heads> {
        let ((n, p), h) = (self.dims, self.config.num_heads);
        let lead = &x.dims()[..x.rank() - 1];
        let split = |map: &Linear, width| map.forward(x)?.reshape([lead, &[h, width]].concat());
        let [q, k, v] = &self.maps;
        let v = split(v, p)?;
        let ones = Tensor::ones([lead, &[h, 1]].concat(), v.dtype(), v.device())?;
        let gate = |map: &Linear| {
            let logit = map.forward(x)?.to_dtype(state_dtype(self.dtype))?;
            match self.config.gate_soft_cap {
                Some(cap) => (logit / cap)?.tanh()? * cap,
                None => Ok(logit),
            }
        };
        let [input, forget] = &self.gates;
        Ok(Heads {
            q: (split(q, n)? * (n as f64).powf(-0.5))?,
            k: split(k, n)?,
            v: Tensor::cat(&[&v, &ones], D::Minus1)?,
            log_gain: gate(input)?,
            log_decay: softplus(&gate(forget)?.neg()?)?.neg()?,
        })
    }

    /// The gates relative to the running maximum.
    fn stabilize(&self, heads: &Heads, ctx: &Context<'_>) -> Result<Stabilized> {
        max_plus_scan(&MaxPlusScan {
            state: ctx.initial("max")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
            ..MaxPlusScan::new(&heads.log_decay, &heads.log_gain)
        })
    }

    /// Numerators and normalisers (b, l, h, p + 1), and the final state.
    fn scan(&self, heads: &Heads, gates: &Stabilized, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        let (k, log_decay) = self.gated(heads, gates)?;
        decay_scan(&DecayScan {
            state: ctx.initial("memory")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
            ..DecayScan::new(&heads.q, &k, &heads.v, &log_decay)
        })
    }

    /// Keys with their gains, and the log decays at every feature: (..., h, n).
    fn gated(&self, heads: &Heads, gates: &Stabilized) -> Result<(Tensor, Tensor)> {
        let gain = gates.log_gain.exp()?.to_dtype(heads.k.dtype())?.reshape(column(&heads.k))?;
        let log_decay = gates.log_decay.reshape(column(&heads.k))?.broadcast_as(heads.k.shape())?;
        Ok((heads.k.broadcast_mul(&gain)?, log_decay))
    }

    /// What numerators are divided by, (..., h, 1): `max(|n·q|, exp(-m)) + eps`.
    fn denominator(&self, y: &Tensor, max: &Tensor) -> Result<Tensor> {
        let normalizer = y.narrow(D::Minus1, self.dims.1, 1)?.to_dtype(max.dtype())?;
        let floor = max.neg()?.exp()?.reshape(normalizer.shape())?;
        normalizer.abs()?.maximum(&floor)? + self.config.eps
    }

    /// y (..., h, p): numerators over their normalisers.
    fn normalized(&self, y: &Tensor, max: &Tensor) -> Result<Tensor> {
        let numerator = y.narrow(D::Minus1, 0, self.dims.1)?;
        let inverse = self.denominator(y, max)?.recip()?.to_dtype(y.dtype())?;
        numerator.broadcast_mul(&inverse)
    }

    /// Head norm, output gate and output map: y (..., h, p), x (..., d) -> (..., d).
    fn finish(&self, y: &Tensor, x: &Tensor) -> Result<Tensor> {
        let y = layer_norm(&y.contiguous()?, None, None, self.config.norm_eps)?;
        let mut y = y.flatten(D::Minus2, D::Minus1)?;
        let [weight, bias] = &self.norm;
        if let Some(weight) = weight {
            y = y.broadcast_mul(&weight.to_dtype(y.dtype())?)?;
        }
        if let Some(bias) = bias {
            y = y.broadcast_add(&bias.to_dtype(y.dtype())?)?;
        }
        let gate = self.output_gate.forward(x)?;
        self.out_proj.forward(&gated_activation(&y, &gate, Activation::Sigmoid)?)
    }

    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let heads = self.heads(x)?;
        let gates = self.stabilize(&heads, ctx)?;
        let (y, memory) = self.scan(&heads, &gates, ctx)?;
        let out = self.finish(&self.normalized(&y, &gates.max)?, x)?;
        ctx.leave(&[("memory", memory), ("max", gates.last)], &lengths)?;
        Ok(out)
    }
}

/// The shape of one number a head of these features.
fn column(features: &Tensor) -> Vec<usize> {
    [&features.dims()[..features.rank() - 1], &[1]].concat()
}

impl Mixer for Mlstm {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, x, ctx, self.out_proj.weight().track_op(), &|x, ctx| self.forward_once(x, ctx))
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = x.dims2()?;
        state.check(KIND, b)?;
        let heads = self.heads(x)?;
        let (decay, gain) = (heads.log_decay.unsqueeze(1)?, heads.log_gain.unsqueeze(1)?);
        let args = MaxPlusScan { state: Some(state.get("max")?), ..MaxPlusScan::new(&decay, &gain) };
        let gates = max_plus_scan(&args)?;
        let (k, log_decay) = self.gated(&heads, &gates)?;
        let args = DecayStateUpdate::new(&heads.q, &k, &heads.v, &log_decay);
        let y = decay_state_update(state.get("memory")?, &args)?; // (b, h, p + 1)
        let out = self.finish(&self.normalized(&y, &gates.last)?, x)?;
        state.set("max", gates.last)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (dtype, (n, p), h) = (state_dtype(self.dtype), self.dims, self.config.num_heads);
        let kind = StateKind::Recurrent;
        State::new(KIND, batch)
            .with_zeros("memory", kind, (batch, h, n, p + 1), dtype, &self.device)?
            .with_zeros("max", kind, (batch, h), dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        /// Tokens of the scan's chunks.
        const CHUNK: usize = 16;
        let ((n, p), h, d) = (self.dims, self.config.num_heads, self.d_model);
        let (rows, size, q) = (batch * seqlen, self.dtype.size_in_bytes(), CHUNK.min(seqlen));
        let bias = self.config.use_bias;
        let linears = Cost::linear(rows, d, 2 * h * (n + p), bias, size)
            + Cost::linear(rows, d, 2 * h, true, size)
            + Cost::linear(rows, h * p, d, bias, size);
        // A token: q · k over half a chunk, that times v, state in and out, decays; gates, normaliser, norm.
        let scan = h * (q * n + q * (p + 1) + 4 * (p + 1) * n + 9 * n) + 12 * h * p + 24 * h;
        let state = batch * h * (n * (p + 1) + 1);
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: linears.flops + rows as u64 * scan as u64,
            bytes: linears.bytes + (rows * (3 * h * n + 5 * h * p) * size) as u64,
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
