//! Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236): attention without softmax, causal.
//!
//! ```text
//! q = φ(q_proj x)    k = φ(k_proj x)    v = v_proj x
//! S_t = S_{t-1} + v_t k_tᵀ      z_t = z_{t-1} + k_t        S: (h, p, n), z: (h, n)                (eq. 18, 19)
//! y_t = S_t q_t / (z_t · q_t)   out = o_proj norm(y)       the division is optional              (eq. 20)
//! ```
//! As a matrix mixer, head by head: `M[t,s] = (q_t · k_s) / Σ_{r≤t} (q_t · k_r)` for `s ≤ t`. The sum of keys is the
//! state of one more value, which is always 1: one scan finds both.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input maps | `q_proj.weight`, `k_proj.weight`, `v_proj.weight` | (h n, d), (h_kv n, d), (h_kv p, d) |
//! | φ | `feature_map_q.*`, `feature_map_k.*`, where it has parameters | (n, n) |
//! | head norm | `norm.weight` | (p) |
//! | output map | `o_proj.weight` | (d, h p) |
//!
//! Names and options as in flash-linear-attention; queries are scaled by 1/√n, which a division takes away again.

mod config;
mod feature_map;
mod matrix;

use candle_core::{D, DType, Device, Result, Tensor};
pub use config::{LinearAttentionConfig, OutputNorm};
pub use feature_map::FeatureMap;
use feature_map::Features;
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder, in_blocks,
    repeat_heads,
};
use semisep_kernels::{
    ScalarDecayScan, ScalarDecayStateUpdate, rms_norm, scalar_decay_scan, scalar_decay_state_update,
    state_dtype,
};

const KIND: &str = "linear_attention";
/// Added to the sums that `φ(q)`, `φ(k)` and outputs are divided by, as in flash-linear-attention.
const SUM_EPS: f64 = 1e-4;
const DIVISOR_EPS: f64 = 1e-10;

/// The layer.
pub struct LinearAttention {
    config: LinearAttentionConfig,
    d_model: usize,
    /// Features a head of a query before φ, after φ, and of a value.
    dims: (usize, usize, usize),
    maps: [Linear; 3], // q, k, v
    feature_q: Features,
    /// `None` if it is that of the queries.
    feature_k: Option<Features>,
    no_decay: Tensor, // (h) zeros
    norm: Option<Tensor>,
    o_proj: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

impl LinearAttention {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &LinearAttentionConfig, vb: &VarBuilder) -> Result<Self> {
        let ((raw, p), (h, kv)) = (config.head_dims(d_model), (config.num_heads, config.kv_heads()));
        let map = |name, inputs, outputs| {
            Linear::with_init(inputs, outputs, false, Init::linear(inputs), &vb.pp(name))
        };
        let maps = [
            map("q_proj", d_model, h * raw)?,
            map("k_proj", d_model, kv * raw)?,
            map("v_proj", d_model, kv * p)?,
        ];
        let features = |name| Features::new(config.feature_map, raw, &vb.pp(name));
        let weighted = config.output_norm == OutputNorm::RmsNorm && config.elementwise_affine;
        Ok(Self {
            feature_q: features("feature_map_q")?,
            feature_k: (!config.tie_feature_map_qk).then(|| features("feature_map_k")).transpose()?,
            norm: weighted.then(|| vb.pp("norm").get_f32(p, "weight", Init::ONES)).transpose()?,
            o_proj: map("o_proj", h * p, d_model)?,
            groups: vb.groups(),
            no_decay: Tensor::zeros(h, state_dtype(vb.dtype()), vb.device())?,
            dtype: vb.dtype(),
            device: vb.device().clone(),
            dims: (raw, config.feature_map.features(raw), p),
            config: config.clone(),
            d_model,
            maps,
        })
    }

    /// Features of the values as the scan sees them: with the one that counts keys.
    fn value_width(&self) -> usize {
        self.dims.2 + usize::from(self.config.do_feature_map_norm)
    }

    /// Scaled `φ(q)`, `φ(k)` (..., h, n) and values (..., h, p or p + 1) of (..., d).
    fn heads(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let ((raw, n, p), (h, kv)) = (self.dims, (self.config.num_heads, self.config.kv_heads()));
        let lead = &x.dims()[..x.rank() - 1];
        let shape = |heads: usize, width: usize| [lead, &[heads, width]].concat();
        let [q, k, v] = &self.maps;
        let mapped = |t: Tensor, features: &Features, normed: bool| {
            let t = features.forward(&t)?;
            if !normed {
                return Ok(t);
            }
            t.broadcast_div(&(t.sum_keepdim(D::Minus1)? + SUM_EPS)?)
        };
        let q = mapped(q.forward(x)?.reshape(shape(h, raw))?, &self.feature_q, self.config.norm_q)?;
        let feature_k = self.feature_k.as_ref().unwrap_or(&self.feature_q);
        let k = mapped(k.forward(x)?.reshape(shape(kv, raw))?, feature_k, self.config.norm_k)?;
        let mut v = v.forward(x)?.reshape(shape(kv, p))?;
        if self.config.do_feature_map_norm {
            let ones = Tensor::ones(shape(kv, 1), v.dtype(), v.device())?;
            v = Tensor::cat(&[&v, &ones], D::Minus1)?;
        }
        Ok([(q * (n as f64).powf(-0.5))?, repeat_heads(&k, h)?, repeat_heads(&v, h)?])
    }

    /// Divides by the last feature of what the scan gave, where it counts keys: (..., p or p + 1) -> (..., p).
    fn divide(&self, y: &Tensor) -> Result<Tensor> {
        if !self.config.do_feature_map_norm {
            return Ok(y.clone());
        }
        let p = self.dims.2;
        let divisor = (y.narrow(D::Minus1, p, 1)? + DIVISOR_EPS)?;
        y.narrow(D::Minus1, 0, p)?.broadcast_div(&divisor)
    }

    /// Norm and output map: y (..., h, p) -> (..., d).
    fn finish(&self, y: &Tensor) -> Result<Tensor> {
        let y = match self.config.output_norm {
            OutputNorm::RmsNorm => rms_norm(y, self.norm.as_ref(), self.config.norm_eps, self.dims.2)?,
            OutputNorm::Identity => y.clone(),
        };
        self.o_proj.forward(&y.flatten(D::Minus2, D::Minus1)?)
    }

    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let [q, k, v] = self.heads(x)?;
        let (y, last) = scalar_decay_scan(&ScalarDecayScan {
            state: ctx.initial("sum")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
            ..ScalarDecayScan::new(&q, &k, &v, &self.no_decay)
        })?;
        let out = self.finish(&self.divide(&y)?)?;
        ctx.leave(&[("sum", last)], &lengths)?;
        Ok(out)
    }
}

impl Mixer for LinearAttention {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, x, ctx, self.o_proj.weight().track_op(), &|x, ctx| self.forward_once(x, ctx))
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = x.dims2()?;
        state.check(KIND, b)?;
        let [q, k, v] = self.heads(x)?;
        let args = ScalarDecayStateUpdate::new(&q, &k, &v, &self.no_decay);
        let y = scalar_decay_state_update(state.get("sum")?, &args)?;
        let out = self.finish(&self.divide(&y)?)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let shape = (batch, self.config.num_heads, self.value_width(), self.dims.1);
        let dtype = state_dtype(self.dtype);
        State::new(KIND, batch).with_zeros("sum", StateKind::Recurrent, shape, dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        /// Tokens of the scan's chunks.
        const CHUNK: usize = 64;
        let ((raw, n, p), (h, kv)) = (self.dims, (self.config.num_heads, self.config.kv_heads()));
        let (rows, size, q) = (batch * seqlen, self.dtype.size_in_bytes(), CHUNK.min(seqlen));
        let wide = self.value_width();
        let linears = Cost::linear(rows, self.d_model, h * raw + kv * (raw + p), false, size)
            + Cost::linear(rows, h * p, self.d_model, false, size);
        // A token: q · k over half a chunk, that times v, state in and out, for each head; φ, norm.
        let scan = h * (q * n + q * wide + 4 * wide * n) + (h + kv) * self.config.feature_map.flops(raw);
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: linears.flops + rows as u64 * (scan + 4 * h * p) as u64,
            bytes: linears.bytes + (rows * (2 * h * n + 3 * h * p) * size) as u64,
            state_bytes: (batch * h * wide * n * state_dtype(self.dtype).size_in_bytes()) as u64,
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
