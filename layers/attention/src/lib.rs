//! Softmax attention (Vaswani et al. 2017) with grouped queries, all kinds of positions, windows, soft cap, output gate
//! and the short convolution of the Mamba-2 hybrids.
//!
//! ```text
//! [q | k | v] = in_proj u           [q | k | v] ← conv([q | k | v])   depthwise, causal, no activation; if d_conv > 0
//! q, k ← norm(q), norm(k)           q, k ← rotate(q), rotate(k)       if configured, in this order
//! o_t = Σ_s softmax_s( cap · tanh(q_t · k_s · scale / cap) + bias[t-s] ) v_s      over t - window < s ≤ t
//! out = out_proj (o · sigmoid(gate))                                 the gate if configured
//! ```
//! Positions: rotary (Su et al. 2021); ALiBi, `bias[n] = -slope n` (Press et al. 2022); T5's learned bias by buckets of
//! distances (Raffel et al. 2020); CoPE, by counted tokens (Golovneva et al. 2024); none. With `window_mode = "block"`
//! the window is the block of the sequence in which t lies.
//!
//! As a matrix mixer, head by head: the softmax rows themselves; of full rank, not semiseparable.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input map | `in_proj.weight` (`.bias`) | (p (h + 2 h_kv), d), rows [q, k, v]; gated: q is (p of q, p of gate) by head |
//! | with the embedding | `input_layernorm.weight` | (2 d): the norm over both; the input map is then 2 d wide |
//! | adapters | `q_adapter.{0,1}.weight`, `k_adapter`, `v_adapter` | (r, d), (h p, r): added to the input map |
//! | conv | `conv1d.weight`, `conv1d.bias` | (p (h + 2 h_kv), 1, k), oldest tap first |
//! | T5 bias | `relative_attention_bias.weight` | (buckets, h) |
//! | CoPE | `cope.pos_emb` | (p, npos) or (h, p, npos) |
//! | norms on q, k | `q_norm.weight`, `k_norm.weight` | (p); across heads (h p), (h_kv p) |
//! | output map | `out_proj.weight` (`.bias`) | (d, h p) |
//!
//! Names and orders as in state-spaces/mamba `mha.py`. Its prefill keeps the convolved q, k, v as convolution state; here
//! the state is the convolution's input, so that decoding equals the parallel form.

mod config;
mod input;
mod matrix;
mod positions;

use candle_core::{D, DType, Device, Result, Tensor};
pub use config::{AttentionConfig, ConcatEmbedding, CopeConfig, QkNorm};
use input::Input;
use positions::Positions;
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, Norm, NormConfig, NormKind, ParameterGroup, State, StateKind,
    VarBuilder, in_blocks,
};
use semisep_kernels::{
    Attention as AttentionOp, CausalConv1d, causal_conv1d, causal_conv1d_update, state_dtype,
};

const KIND: &str = "attention";

/// The layer.
pub struct Attention {
    config: AttentionConfig,
    d_model: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    input: Input,
    conv: Option<(Tensor, Tensor)>, // weight (channels, k), bias (channels)
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    positions: Positions,
    out_proj: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    cache_dtype: DType,
    device: Device,
}

/// Queries, keys and values, (b, l, heads, p).
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// (b, l, h p), before the sigmoid.
    gate: Option<Tensor>,
}

impl Attention {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &AttentionConfig, vb: &VarBuilder) -> Result<Self> {
        let (h, kv, p) = (config.n_heads, config.n_kv_heads(), config.head_dim(d_model));
        let (queries, keys) = config.widths(p);
        let width = queries + 2 * keys;
        let input = Input::new(d_model, config, vb)?;
        let conv = (config.d_conv > 0)
            .then(|| -> Result<_> {
                let (vb, k) = (vb.pp("conv1d"), config.d_conv);
                let weight = vb.get_f32((width, 1, k), "weight", Init::linear(k))?.squeeze(1)?;
                Ok((weight, vb.get_f32(width, "bias", Init::linear(k))?))
            })
            .transpose()?;
        let norm = |name, heads: usize| {
            let norm = |c: &QkNorm| {
                let width = if c.across_heads { heads * p } else { p };
                match c.unit_offset {
                    true => Norm::with_unit_offset(width, c.eps, &vb.pp(name)),
                    false => Norm::new(width, NormConfig { kind: NormKind::Rms, eps: c.eps }, &vb.pp(name)),
                }
            };
            config.qk_norm.as_ref().map(norm).transpose()
        };
        Ok(Self {
            q_norm: norm("q_norm", h)?,
            k_norm: norm("k_norm", kv)?,
            positions: Positions::new(d_model, config, vb)?,
            out_proj: Linear::new(h * p, d_model, config.out_bias, &vb.pp("out_proj"))?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            cache_dtype: vb.activation_dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
            heads: h,
            kv_heads: kv,
            head_dim: p,
            input,
            conv,
        })
    }

    /// qkv (b, l, queries + 2 keys), convolved, -> heads with norms and positions applied.
    fn split(&self, qkv: &Tensor, positions: &[usize], cu_seqlens: Option<&[usize]>) -> Result<Heads> {
        let turn = |t: Tensor, norm: &Option<Norm>| {
            self.positions.turn(self.normed(t, norm.as_ref())?, positions, cu_seqlens)
        };
        let (b, l, _) = qkv.dims3()?;
        let (h, kv, p) = (self.heads, self.kv_heads, self.head_dim);
        let (queries, keys) = self.config.widths(p);
        let part =
            |start, heads: usize, p| qkv.narrow(D::Minus1, start, heads * p)?.reshape((b, l, heads, p));
        let (q, gate) = match self.config.output_gate {
            false => (part(0, h, p)?, None),
            true => {
                let both = part(0, h, 2 * p)?;
                let gate = both.narrow(D::Minus1, p, p)?.contiguous()?.reshape((b, l, h * p))?;
                (both.narrow(D::Minus1, 0, p)?.contiguous()?, Some(gate))
            }
        };
        Ok(Heads {
            q: turn(q, &self.q_norm)?,
            k: turn(part(queries, kv, p)?, &self.k_norm)?,
            v: part(queries + keys, kv, p)?,
            gate,
        })
    }

    /// Queries or keys, (b, l, heads, p), normed where configured.
    fn normed(&self, t: Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        match (norm, &self.config.qk_norm) {
            (Some(norm), Some(QkNorm { across_heads: true, .. })) => {
                norm.forward(&t.flatten_from(2)?)?.reshape(t.shape())
            }
            (Some(norm), _) => norm.forward(&t),
            (None, _) => Ok(t),
        }
    }

    /// Head outputs (b, l, h p), gated where configured, -> (b, l, d).
    fn output(&self, o: &Tensor, gate: Option<&Tensor>) -> Result<Tensor> {
        let o = o.flatten_from(2)?;
        let o = match gate {
            // sigmoid(g) = (1 + tanh(g/2)) / 2: nothing overflows, neither in the gradient.
            Some(g) => (o * g.affine(0.5, 0.0)?.tanh()?.affine(0.5, 0.5)?)?,
            None => o,
        };
        self.out_proj.forward(&o)
    }

    fn options<'a>(&'a self, heads: &'a Heads) -> AttentionOp<'a> {
        AttentionOp {
            causal: self.config.causal,
            window: self.config.window,
            window_mode: self.config.window_mode.into(),
            softcap: self.config.softcap,
            scale: self.config.scale,
            ..AttentionOp::new(&heads.q, &heads.k, &heads.v)
        }
    }

    fn convolve(&self, qkv: Tensor, ctx: &Context<'_>) -> Result<(Tensor, Option<Tensor>)> {
        let Some((weight, bias)) = &self.conv else { return Ok((qkv, None)) };
        let (out, last) = causal_conv1d(CausalConv1d {
            x: &qkv,
            weight,
            bias: Some(bias),
            silu: false,
            initial_state: ctx.initial("conv")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
        })?;
        Ok((out, Some(last)))
    }

    /// Appends keys and values, attends to all of them, and advances the state.
    fn attend_cached(
        &self,
        heads: &Heads,
        state: &mut State,
        lengths: &[usize],
        cu_seqlens: Option<&[usize]>,
    ) -> Result<Tensor> {
        state.append("k", &heads.k, lengths)?;
        state.append("v", &heads.v, lengths)?;
        let kv_lens: Vec<usize> = state.held("k")?.iter().zip(lengths).map(|(s, l)| s + l).collect();
        let (k, v) = (state.get("k")?, state.get("v")?);
        self.positions.attend(AttentionOp {
            k,
            v,
            cu_seqlens,
            kv_lens: Some(&kv_lens),
            ..self.options(heads)
        })
    }
}

impl Attention {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let positions = ctx.state.as_ref().map_or_else(|| vec![0; lengths.len()], |s| s.seen().to_vec());
        let (qkv, conv) = self.convolve(self.input.forward(u, ctx)?, ctx)?;
        let heads = self.split(&qkv, &positions, ctx.cu_seqlens)?;
        let o = match ctx.state.as_deref_mut() {
            Some(state) => self.attend_cached(&heads, state, &lengths, ctx.cu_seqlens)?,
            None => {
                self.positions.attend(AttentionOp { cu_seqlens: ctx.cu_seqlens, ..self.options(&heads) })?
            }
        };
        let out = self.output(&o, heads.gate.as_ref())?;
        let entries: Vec<(&str, Tensor)> = conv.into_iter().map(|c| ("conv", c)).collect();
        ctx.leave(&entries, &lengths)?;
        Ok(out)
    }
}

impl Mixer for Attention {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, u, ctx, !self.causal() || self.out_proj.weight().track_op(), &|u, ctx| {
            self.forward_once(u, ctx)
        })
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, _) = u.dims2()?;
        ctx.state_mut()?.check(KIND, b)?;
        let mut qkv = self.input.forward(u, ctx)?;
        let state = ctx.state_mut()?;
        if let Some((weight, bias)) = &self.conv {
            qkv = causal_conv1d_update(state.get("conv")?, &qkv, weight, Some(bias), false)?;
        }
        let heads = self.split(&qkv.unsqueeze(1)?, state.seen(), None)?;
        let o = self.attend_cached(&heads, state, &vec![1; b], None)?;
        let out = self.output(&o, heads.gate.as_ref())?.squeeze(1)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn receives(&self) -> Vec<(&'static str, usize)> {
        self.input.receives()
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let kind = StateKind::Cache { limit: self.config.window };
        let cache = (batch, 0, self.kv_heads, self.head_dim);
        let state = State::new(KIND, batch)
            .with_zeros("k", kind, cache, self.cache_dtype, &self.device)?
            .with_zeros("v", kind, cache, self.cache_dtype, &self.device)?;
        if self.conv.is_none() {
            return Ok(state);
        }
        let (queries, keys) = self.config.widths(self.head_dim);
        let width = queries + 2 * keys;
        let conv = (batch, width, self.config.d_conv - 1);
        state.with_zeros("conv", StateKind::Recurrent, conv, state_dtype(self.dtype), &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (h, kv, p, k) = (self.heads, self.kv_heads, self.head_dim, self.config.d_conv);
        let (queries, keys) = self.config.widths(p);
        let (rows, width, size) = (batch * seqlen, queries + 2 * keys, self.dtype.size_in_bytes());
        let linears = self.input.cost(rows, self.config.qkv_bias, size)
            + Cost::linear(rows, h * p, self.d_model, self.config.out_bias, size);
        let reach = self.config.window.map_or(seqlen, |w| w.min(seqlen)) as u64;
        // Pairs (query, key) in the causal band.
        let pairs = batch as u64 * (seqlen as u64 * reach - reach * reach.saturating_sub(1) / 2);
        let conv_state = batch * width * k.saturating_sub(1) * state_dtype(self.dtype).size_in_bytes();
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: linears.flops + 4 * pairs * (h * p) as u64 + 2 * (rows * width * k) as u64,
            bytes: linears.bytes + (rows * (width + h * p) * size) as u64,
            state_bytes: conv_state as u64,
            kv_bytes: 2 * batch as u64 * reach * (kv * p * size) as u64,
        }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, u: &Tensor) -> Result<Option<Mixing>> {
        matrix::mixing(self, u).map(Some)
    }
}
