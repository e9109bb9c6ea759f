//! DeltaNet (Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484) and gated DeltaNet (Yang et al.
//! 2025, arXiv 2412.06464): linear attention whose memory is corrected, not only added to.
//!
//! ```text
//! q, k = norm(act(conv(W u)))      v = silu(conv(W u))          β = σ(W u), doubled with allow_neg_eigval
//! g = -exp(A_log) softplus(W u + dt_bias)                       gated DeltaNet alone; a number a head
//! S_t = exp(g_t) S_{t-1} + k_t (β_t (v_t - k_tᵀ exp(g_t) S_{t-1}))            S: (heads, n, p)
//! o_t = q_tᵀ S_t / √n              out = o_proj [ norm(o) ⊙ silu(W u) ]       gate optional
//! ```
//! As a matrix mixer, head by head: `M[t,s] = q_tᵀ (Π_{s<r≤t} exp(g_r) (I - β_r k_r k_rᵀ)) k_s β_s / √n`. With β in
//! (0, 2) the eigenvalues of a transition reach below zero, and the layer can track parity (Grazzi et al. 2025).
//!
//! | symbol | parameters | shape |
//! |---|---|---|
//! | q, k, v | `q_proj`, `k_proj`, `v_proj` | (heads n, d) twice, (value heads p, d) |
//! | conv | `q_conv1d`, `k_conv1d`, `v_conv1d` | (width, 1, taps), oldest tap first |
//! | β, g | `b_proj`; `a_proj`, `A_log`, `dt_bias` | (value heads, d); (value heads) in f32 |
//! | gate | `g_proj` | (value heads p, d) |
//! | norm, output | `o_norm`, `o_proj` | (p); (d, value heads p) |
//!
//! With `fused_proj` the layout is Qwen3-Next's: `in_proj_qkvz` and `in_proj_ba`, whose rows are interleaved by key head
//! ([q | k | v of its value heads | gates of them] and [β | g]), one `conv1d` over q, k and v, `norm`, `out_proj`. Value
//! heads may outnumber key heads: each key head then serves as many neighbouring ones. Equations, names and defaults as in
//! flash-linear-attention's `layers/{delta_net,gated_deltanet}.py` and transformers' Qwen3-Next and OLMo-hybrid.

mod config;
mod matrix;
mod plan;
mod projection;

use candle_core::{DType, Device, Result, Tensor};
pub use config::{DeltaNetConfig, GatedDeltaNetConfig, QkActivation, QkNorm};
use plan::Plan;
use projection::{Conv, Projection, Projections};
use semisep_core::{
    Context, Cost, GatedRmsNorm, Linear, Mixer, Mixing, Norm, NormConfig, NormKind, ParameterGroup, State,
    StateKind, VarBuilder, in_blocks, softplus,
};
use semisep_kernels::{
    CausalConv1d, GatedDeltaRule, GatedDeltaRuleUpdate, causal_conv1d, causal_conv1d_update,
    gated_delta_rule, gated_delta_rule_update, rms_norm, state_dtype,
};

/// Either layer.
pub struct DeltaNet {
    plan: Plan,
    projections: Projections,
    decay: Option<Decay>,
    norm: OutputNorm,
    o_proj: Linear,
    /// 1/√n for each key channel: with it a root-mean-square norm is the norm to length one.
    unit: Tensor,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

struct Decay {
    a_log: Tensor,   // (h)
    dt_bias: Tensor, // (h)
}

enum OutputNorm {
    Plain(Norm),
    Gated(GatedRmsNorm),
}

/// What the kernel takes: q, k (.., h, n), v (.., h, p), β and the logarithm of the decay (.., h).
struct Inputs {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Option<Tensor>,
}

impl DeltaNet {
    /// With the parameters of `vb`.
    fn new(d_model: usize, plan: Plan, vb: &VarBuilder) -> Result<Self> {
        let Plan { n, p, value_heads: h, norm_eps: eps, .. } = plan;
        let [norm_name, out_name] = if plan.fused { ["norm", "out_proj"] } else { ["o_norm", "o_proj"] };
        let projections = Projections::new(d_model, &plan, vb)?;
        let decay = |init: &plan::DecayInit| {
            let a_log = vb.get_f32(h, "A_log", init.a_log())?;
            Ok::<_, candle_core::Error>(Decay { a_log, dt_bias: vb.get_f32(h, "dt_bias", init.dt_bias())? })
        };
        let norm = vb.pp(norm_name);
        Ok(Self {
            decay: plan.decay.as_ref().map(decay).transpose()?,
            norm: if plan.gate {
                OutputNorm::Gated(GatedRmsNorm::new(p, p, eps, true, &norm)?)
            } else {
                OutputNorm::Plain(Norm::new(p, NormConfig { kind: NormKind::Rms, eps }, &norm)?)
            },
            o_proj: Linear::new(h * p, d_model, false, &vb.pp(out_name))?,
            unit: Tensor::full(1.0 / (n as f64).sqrt(), n, vb.device())?.to_dtype(state_dtype(vb.dtype()))?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            projections,
            plan,
        })
    }

    /// The kernel's inputs; `convolve` runs one short convolution.
    fn inputs(
        &self,
        projection: &Projection,
        convolve: impl FnMut(&Conv, &Tensor) -> Result<Tensor>,
    ) -> Result<Inputs> {
        let Plan { n, p, key_heads, value_heads, .. } = self.plan;
        let [q, k, v] = self.projections.convolved(&self.plan, projection, convolve)?;
        let heads = |t: &Tensor, h: usize, width: usize| {
            let lead = &t.dims()[..t.rank() - 1];
            t.reshape([lead, &[h, width]].concat())
        };
        Ok(Inputs {
            q: self.key(&heads(&q, key_heads, n)?)?,
            k: self.key(&heads(&k, key_heads, n)?)?,
            v: heads(&v, value_heads, p)?,
            beta: self.plan.beta(projection)?,
            log_decay: self.log_decay(projection)?,
        })
    }

    /// Activated, normed queries or keys, (.., key heads, n) -> (.., value heads, n).
    fn key(&self, x: &Tensor) -> Result<Tensor> {
        let Plan { n, key_heads, value_heads, .. } = self.plan;
        let x = self.plan.activation.apply(x)?;
        let x = match self.plan.qk_norm {
            // x / √(Σ x² + eps), as in fla and Qwen3-Next.
            QkNorm::L2 => rms_norm(&x, Some(&self.unit), 1e-6 / n as f64, n)?,
            QkNorm::Sum => x.broadcast_div(&x.sum_keepdim(candle_core::D::Minus1)?)?,
            QkNorm::None => x,
        };
        if key_heads == value_heads {
            return Ok(x);
        }
        let lead = &x.dims()[..x.rank() - 2];
        let wide = [lead, &[key_heads, value_heads / key_heads, n]].concat();
        x.unsqueeze(x.rank() - 1)?.broadcast_as(wide)?.reshape([lead, &[value_heads, n]].concat())
    }

    /// g, in full precision.
    fn log_decay(&self, projection: &Projection) -> Result<Option<Tensor>> {
        let (Some(decay), Some(a)) = (&self.decay, &projection.a) else { return Ok(None) };
        let dt = softplus(&a.to_dtype(state_dtype(a.dtype()))?.broadcast_add(&decay.dt_bias)?)?;
        dt.broadcast_mul(&decay.a_log.exp()?.neg()?).map(Some)
    }

    fn scan(
        &self,
        inputs: &Inputs,
        initial: Option<&Tensor>,
        cu: Option<&[usize]>,
    ) -> Result<(Tensor, Tensor)> {
        gated_delta_rule(&GatedDeltaRule { initial_state: initial, cu_seqlens: cu, ..inputs.rule() })
    }

    /// Norm, gate and output map: o (.., h, p) -> (.., d).
    fn finish(&self, o: &Tensor, projection: &Projection) -> Result<Tensor> {
        let o = match (&self.norm, &projection.z) {
            (OutputNorm::Gated(norm), Some(z)) => norm.forward(o, &z.reshape(o.shape())?)?,
            (OutputNorm::Plain(norm), _) => norm.forward(o)?,
            (OutputNorm::Gated(_), None) => candle_core::bail!("{}: no gate was projected", self.plan.kind),
        };
        self.o_proj.forward(&o.flatten_from(o.rank() - 2)?)
    }
}

impl Inputs {
    fn rule(&self) -> GatedDeltaRule<'_> {
        let rule = GatedDeltaRule::new(&self.q, &self.k, &self.v, &self.beta);
        GatedDeltaRule { log_decay: self.log_decay.as_ref(), ..rule }
    }
}

impl DeltaNet {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(self.plan.kind, b, l)?;
        let projection = self.projections.forward(&self.plan, u)?;
        let mut left = Vec::new();
        let inputs = self.inputs(&projection, |conv, x| {
            let (y, state) = causal_conv1d(CausalConv1d {
                x,
                weight: &conv.weight,
                bias: conv.bias.as_ref(),
                silu: conv.silu,
                initial_state: ctx.initial(conv.state)?.as_ref(),
                cu_seqlens: ctx.cu_seqlens,
            })?;
            left.push((conv.state, state));
            Ok(y)
        })?;
        let (o, state) = self.scan(&inputs, ctx.initial("delta")?.as_ref(), ctx.cu_seqlens)?;
        let out = self.finish(&o, &projection)?;
        left.push(("delta", state));
        ctx.leave(&left, &lengths)?;
        Ok(out)
    }
}

impl Mixer for DeltaNet {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, u, ctx, self.o_proj.weight().track_op(), &|u, ctx| self.forward_once(u, ctx))
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = u.dims2()?;
        state.check(self.plan.kind, b)?;
        let projection = self.projections.forward(&self.plan, u)?;
        let inputs = self.inputs(&projection, |conv, x| {
            causal_conv1d_update(state.get(conv.state)?, x, &conv.weight, conv.bias.as_ref(), conv.silu)
        })?;
        let step = GatedDeltaRuleUpdate::new(&inputs.q, &inputs.k, &inputs.v, &inputs.beta);
        let step = GatedDeltaRuleUpdate { log_decay: inputs.log_decay.as_ref(), ..step };
        let o = gated_delta_rule_update(state.get("delta")?, &step)?; // (b, h, p)
        let out = self.finish(&o, &projection)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let Plan { kind, value_heads: h, n, p, .. } = self.plan;
        let dtype = state_dtype(self.dtype);
        let mut state = State::new(kind, batch);
        for conv in self.projections.convs() {
            let (width, taps) = conv.weight.dims2()?;
            state = state.with_zeros(
                conv.state,
                StateKind::Recurrent,
                (batch, width, taps - 1),
                dtype,
                &self.device,
            )?;
        }
        state.with_zeros("delta", StateKind::Recurrent, (batch, h, n, p), dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        /// Tokens of the kernel's chunk.
        const CHUNK: usize = 32;
        let Plan { value_heads: h, n, p, .. } = self.plan;
        let (rows, size) = (batch * seqlen, self.dtype.size_in_bytes());
        let maps = |parameter: &&ParameterGroup| parameter.shape.len() == 2;
        let linears: Cost = self
            .groups
            .iter()
            .filter(maps)
            .map(|map| Cost::linear(rows, map.shape[1], map.shape[0], false, size))
            .sum();
        let parameters = self.groups.iter().map(|g| g.elements() as u64).sum();
        let convs: usize = self.projections.convs().iter().map(|c| c.weight.elem_count()).sum();
        let windows: usize =
            self.projections.convs().iter().map(|c| c.weight.elem_count() - c.weight.dims()[0]).sum();
        // A token and head: scores, substitution and answers of half a chunk; two reads and one write of the state.
        let q = CHUNK.min(seqlen);
        let scan = 2 * convs + h * (2 * q * (n + p) + 6 * n * p);
        let state = batch * (h * n * p + windows) * state_dtype(self.dtype).size_in_bytes();
        Cost {
            parameters,
            flops: linears.flops + rows as u64 * scan as u64,
            bytes: linears.bytes + (rows * (4 * h * (n + p)) * size) as u64,
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
