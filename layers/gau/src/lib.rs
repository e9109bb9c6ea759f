//! The gated attention unit (Hua et al. 2022, "Transformer Quality in Linear Time", section 2): one wide head whose
//! output is gated, attention and feed-forward layer at once.
//!
//! ```text
//! [v, g] = silu(to_hidden u)       z = silu(to_qk u)
//! q = γ_0 ∘ z + β_0                k = γ_1 ∘ z + β_1            rotated if configured
//! o_t = Σ_s relu(c_t q_t · k_s)² v_s     or softmax_s(q_t · k_s / √s)
//! y   = to_out (o ∘ g)
//! ```
//! c is 1 / l (the paper's, which no token alone can know), 1 / (t + 1) or a constant. As a matrix mixer: the weights
//! themselves, one head; of full rank.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | v, g | `to_hidden.weight` (`.bias`) | (2 e, d), rows [v, g] |
//! | z | `to_qk.weight` (`.bias`) | (s, d) |
//! | γ, β | `gamma`, `beta` | (2, s) |
//! | output | `to_out.weight` (`.bias`) | (d, e) |
//!
//! The norm before it and the residual are the stack's.

mod config;

use candle_core::{D, DType, Device, Result, Tensor, bail};
pub use config::{GauAttention, GauConfig, GauScale};
use semisep_core::{
    Activation, Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, Rotary, State, StateKind,
    VarBuilder, in_blocks,
};
use semisep_kernels::attention::naive;
use semisep_kernels::{Attention, Weighting, activation, attention};

const KIND: &str = "gau";

/// The layer.
pub struct Gau {
    config: GauConfig,
    d_model: usize,
    hidden: usize,
    to_hidden: Linear,
    to_qk: Linear,
    gamma: Tensor, // (2, s)
    beta: Tensor,  // (2, s)
    rotary: Option<Rotary>,
    to_out: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    cache_dtype: DType,
    device: Device,
}

/// Queries, with their factor, and keys (b, l, 1, s), values (b, l, 1, e), gates (b, l, e).
struct Parts {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
}

impl Gau {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &GauConfig, vb: &VarBuilder) -> Result<Self> {
        let (s, e, bias) = (config.d_qk, config.d_hidden(d_model), config.bias);
        Ok(Self {
            to_hidden: Linear::new(d_model, 2 * e, bias, &vb.pp("to_hidden"))?,
            to_qk: Linear::new(d_model, s, bias, &vb.pp("to_qk"))?,
            gamma: vb.get_f32((2, s), "gamma", Init::Normal { std: 0.02 })?,
            beta: vb.get_f32((2, s), "beta", Init::ZEROS)?,
            rotary: config.rope.as_ref().map(|r| Rotary::new(r, s, vb.device())).transpose()?,
            to_out: Linear::new(e, d_model, bias, &vb.pp("to_out"))?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            cache_dtype: vb.activation_dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
            hidden: e,
        })
    }

    /// Whether the factor of the scores asks for the whole length.
    fn needs_length(&self) -> bool {
        self.config.attention == GauAttention::Relu2 && self.config.scale == GauScale::SeqLen
    }

    /// u (b, l, d), whose sequences of `lengths` begin at `positions`, -> what attends and gates.
    fn parts(
        &self,
        u: &Tensor,
        positions: &[usize],
        lengths: &[usize],
        cu_seqlens: Option<&[usize]>,
    ) -> Result<Parts> {
        let (b, l, _) = u.dims3()?;
        let (s, e, silu) = (self.config.d_qk, self.hidden, Activation::Silu.into());
        let hidden = activation(&self.to_hidden.forward(u)?, silu)?;
        let z = activation(&self.to_qk.forward(u)?, silu)?;
        let head = |i: usize| -> Result<Tensor> {
            let row = |t: &Tensor| t.narrow(0, i, 1)?.squeeze(0)?.to_dtype(z.dtype());
            let t = z.broadcast_mul(&row(&self.gamma)?)?.broadcast_add(&row(&self.beta)?)?;
            let t = t.reshape((b, l, 1, s))?;
            self.rotary.as_ref().map_or(Ok(t.clone()), |r| r.forward(&t, positions, cu_seqlens))
        };
        let q = match self.factors(positions, lengths) {
            Some(factors) => {
                let factors = Tensor::from_vec(factors, (b, l, 1, 1), &Device::Cpu)?;
                head(0)?.broadcast_mul(&factors.to_dtype(z.dtype())?.to_device(z.device())?)?
            }
            None => head(0)?,
        };
        Ok(Parts {
            q,
            k: head(1)?,
            v: hidden.narrow(D::Minus1, 0, e)?.reshape((b, l, 1, e))?,
            gate: hidden.narrow(D::Minus1, e, e)?.contiguous()?,
        })
    }

    /// The factor of each token's scores, unless it is one for all.
    fn factors(&self, positions: &[usize], lengths: &[usize]) -> Option<Vec<f64>> {
        if self.config.attention == GauAttention::Softmax || self.config.scale == GauScale::Constant {
            return None;
        }
        let of = |(&start, &len): (&usize, &usize)| {
            let whole = self.config.scale == GauScale::SeqLen;
            (0..len).map(move |t| 1.0 / if whole { len as f64 } else { (start + t + 1) as f64 })
        };
        Some(positions.iter().zip(lengths).flat_map(of).collect())
    }

    fn options<'a>(&self, parts: &'a Parts) -> Attention<'a> {
        let (weighting, scale) = match self.config.attention {
            GauAttention::Softmax => (Weighting::Softmax, None),
            GauAttention::Relu2 => (Weighting::ReluSquared, Some(self.config.scale_value.unwrap_or(1.0))),
        };
        let causal = self.config.causal;
        Attention { weighting, scale, causal, ..Attention::new(&parts.q, &parts.k, &parts.v) }
    }

    fn output(&self, o: &Tensor, gate: &Tensor) -> Result<Tensor> {
        self.to_out.forward(&(o.flatten_from(2)? * gate)?)
    }
}

impl Gau {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        if ctx.state.is_some() && !self.causal() {
            bail!(
                "{KIND}: no state with {}: every output depends on the whole sequence",
                if self.config.causal { "scale = \"seq_len\"" } else { "causal = false" }
            );
        }
        let positions = ctx.state.as_ref().map_or_else(|| vec![0; lengths.len()], |s| s.seen().to_vec());
        let cu_seqlens = ctx.cu_seqlens;
        let parts = self.parts(u, &positions, &lengths, cu_seqlens)?;
        let o = match ctx.state.as_deref_mut() {
            None => attention(&Attention { cu_seqlens, ..self.options(&parts) })?,
            Some(state) => {
                state.append("k", &parts.k, &lengths)?;
                state.append("v", &parts.v, &lengths)?;
                let kv_lens: Vec<usize> = positions.iter().zip(&lengths).map(|(s, l)| s + l).collect();
                let (k, v) = (state.get("k")?, state.get("v")?);
                attention(&Attention { k, v, cu_seqlens, kv_lens: Some(&kv_lens), ..self.options(&parts) })?
            }
        };
        let y = self.output(&o, &parts.gate)?;
        ctx.leave(&[], &lengths)?;
        Ok(y)
    }
}

impl Mixer for Gau {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, u, ctx, !self.causal() || self.to_out.weight().track_op(), &|u, ctx| {
            self.forward_once(u, ctx)
        })
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, _) = u.dims2()?;
        ctx.state_mut()?.check(KIND, b)?;
        self.forward(&u.unsqueeze(1)?, ctx)?.squeeze(1)
    }

    fn causal(&self) -> bool {
        self.config.causal && !self.needs_length()
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let kind = StateKind::Cache { limit: None };
        let (dtype, s, e) = (self.cache_dtype, self.config.d_qk, self.hidden);
        State::new(KIND, batch).with_zeros("k", kind, (batch, 0, 1, s), dtype, &self.device)?.with_zeros(
            "v",
            kind,
            (batch, 0, 1, e),
            dtype,
            &self.device,
        )
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (d, s, e, bias) = (self.d_model, self.config.d_qk, self.hidden, self.config.bias);
        let (rows, size) = (batch * seqlen, self.dtype.size_in_bytes());
        let linears = Cost::linear(rows, d, 2 * e, bias, size)
            + Cost::linear(rows, d, s, bias, size)
            + Cost::linear(rows, e, d, bias, size);
        let pairs =
            (batch * seqlen) as u64 * if self.config.causal { seqlen + 1 } else { 2 * seqlen } as u64 / 2;
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: linears.flops + 2 * pairs * (s + e) as u64,
            bytes: linears.bytes + (rows * (2 * s + 3 * e) * size) as u64,
            state_bytes: 0,
            kv_bytes: (rows * (s + e) * self.cache_dtype.size_in_bytes()) as u64,
        }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, u: &Tensor) -> Result<Option<Mixing>> {
        let (b, l, _) = u.dims3()?;
        let parts = self.parts(u, &vec![0; b], &vec![l; b], None)?;
        let op = self.options(&parts);
        Ok(Some(Mixing {
            matrix: naive::weights(&op)?,
            values: parts.v.transpose(1, 2)?.contiguous()?,
            output: attention(&op)?.transpose(1, 2)?.contiguous()?,
        }))
    }
}
