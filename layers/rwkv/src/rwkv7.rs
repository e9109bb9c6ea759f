//! RWKV-7's time mix, "Goose" (Peng et al. 2025, arXiv 2503.14456).
//!
//! ```text
//! x_j = x_t + (x_{t-1} - x_t) ⊙ μ_j      j = r, w, k, v, a, g
//! r, k, v = receptance x_r, key x_k, value x_v                 v ← v + (v_first - v) ⊙ σ(v0 + x_v V₁ V₂)   but in the first layer
//! log w = -e^{-1/2} σ(w0 + tanh(x_w W₁) W₂)    a = σ(a0 + x_a A₁ A₂)    g = σ(x_g G₁) G₂
//! κ = k ⊙ k_k, of unit length in each head     k ← k ⊙ (1 + (a - 1) ⊙ k_a)
//! S_t = (diag(w_t) - κ_t (a_t ⊙ κ_t)ᵀ)ᵀ S_{t-1} + k_t v_tᵀ         S: (n, p), head by head
//! y_t = ln_x(S_tᵀ r_t) + (Σ_n r_t r_k k_t) v_t         out = output (y ⊙ g)
//! ```
//! The transition adds `b (aᵀ S)` with a = -κ, b = a ⊙ κ. As a matrix mixer: `M[t,s] = r_tᵀ (Π_{s<j≤t} A_j) k_s`.
//!
//! | symbol | parameter | fla's, where it differs | shape (BlinkDL's) |
//! |---|---|---|---|
//! | μ | `x_r`, `x_w`, `x_k`, `x_v`, `x_a`, `x_g` | | (d) |
//! | w0, W | `w0`, `w1`, `w2` | `w_lora.lora.{0,2}.weight` | (d), (d, R), (R, d) |
//! | a0, A; v0, V | `a0`, `a1`, `a2`; `v0`, `v1`, `v2` | `a_lora`, `v_lora` | |
//! | G | `g1`, `g2` | `g_lora` | (d, R), (R, d) |
//! | k_k, k_a, r_k | `k_k`, `k_a`, `r_k` | | (d), (d), (h, n) |
//! | maps | `receptance`, `key`, `value`, `output` `.weight` | | (d, d) |
//! | norm of heads | `ln_x.weight`, `ln_x.bias` | | (h p) |
//! | S before the first token | `time_state`, optional | | (h, p, n) |

use candle_core::{D, DType, Device, Result, Tensor};
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, VarBuilder, in_blocks,
};
use semisep_kernels::{
    Activation, DeltaScan, DeltaUpdate, activation, delta_scan, delta_update, rms_norm, state_dtype,
};

use crate::cost::cost;
use crate::lora::{Between, Lora, Names};
use crate::mixes::Mixes;
use crate::readout::Readout;
use crate::scan::Heads;
use crate::{Rwkv7Config, init, matrix};

const KIND: &str = "rwkv7";

/// Under this name the first layer leaves its values (b, l, h p).
const V_FIRST: &str = "v_first";

/// The layer.
pub struct Rwkv7 {
    d_model: usize,
    kk_eps: f64,
    mixes: Mixes, // r, w, k, v, a, g
    receptance: Linear,
    key: Linear,
    value: Linear,
    decay: Lora,
    rate: Lora,
    residual: Option<Lora>,
    gate: Lora,
    k_k: Tensor, // (d)
    k_a: Tensor, // (d)
    r_k: Tensor, // (h, n)
    heads: Heads,
    readout: Readout,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// What a token gives, in the dtype of states but for the gate.
struct Projection {
    /// (b, l, h, n)
    r: Tensor,
    k: Tensor,
    log_decay: Tensor,
    a: Tensor,
    b: Tensor,
    /// (b, l, h, p)
    v: Tensor,
    /// (b, l, h p)
    gate: Tensor,
    /// Values for later layers, (b, l, h p); if this is the first.
    v_first: Option<Tensor>,
    /// The last token of each sequence, (b, d).
    last: Tensor,
}

impl Rwkv7 {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &Rwkv7Config, vb: &VarBuilder) -> Result<Self> {
        let (d, n, depth) = (d_model, config.head_size, config.init_depth);
        let h = d / n.max(1);
        let dim_value = config.dim_value.unwrap_or(d);
        let p = dim_value / h.max(1);
        let [rank_w, rank_a, rank_v, rank_g] = config.ranks(d);
        let shift = |power: f64| init::shift(power * (1.0 - depth), 0.0);
        let names = [
            ("x_r", shift(0.2)),
            ("x_w", shift(0.9)),
            ("x_k", shift(0.7)),
            ("x_v", shift(0.7)),
            ("x_a", shift(0.9)),
            ("x_g", shift(0.2)),
        ];
        let mixes = Mixes::rows(d, names, false, vb)?;
        let lora = |sizes, factors, fla, bias, between| {
            Lora::new(sizes, Names { factors, fla, bias }, between, config.layout, vb)
        };
        let bias = |name, width: usize, init| Some(ParameterGroup::scale(name, width, init));
        let w0 = bias("w0", d, init::decay7(depth, n)).map(|group| group.lr_scale(2.0));
        let decay = lora((d, rank_w, d), ["w1", "w2"], "w_lora", w0, Between::Tanh)?;
        let a0 = bias("a0", d, init::rate7(n));
        let rate = lora((d, rank_a, d), ["a1", "a2"], "a_lora", a0, Between::Nothing)?;
        let v0 = bias("v0", dim_value, init::ramp(0.73, -0.4));
        let residual = || lora((d, rank_v, dim_value), ["v1", "v2"], "v_lora", v0, Between::Nothing);
        let residual = config.value_residual.then(residual).transpose()?;
        let gate = lora((d, rank_g, dim_value), ["g1", "g2"], "g_lora", None, Between::Sigmoid)?;
        let map = |name: &str, outputs, scale| {
            Linear::with_init(d, outputs, false, init::matrix(scale, d), &vb.pp(name))
        };
        Ok(Self {
            d_model,
            kk_eps: config.kk_eps,
            mixes,
            // Uniform within ±0.5/√d in RWKV-LM: these are the standard deviations.
            receptance: map("receptance", d, 0.289)?,
            key: map("key", d, 0.0289)?,
            value: map("value", dim_value, 0.289)?,
            decay,
            rate,
            residual,
            gate,
            k_k: vb.get_f32(d, "k_k", init::ramp(0.71, -0.1))?,
            k_a: vb.get_f32(d, "k_a", Init::Const(1.02))?,
            r_k: vb.get_f32((h, n), "r_k", Init::Const(-0.04))?,
            heads: Heads::new((h, n, p), config.time_state, vb)?,
            readout: Readout::new(d, (dim_value, p), config.norm_eps, depth, vb)?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    /// `v_first` is what an earlier layer left, if this one asks for it.
    fn project(
        &self,
        x: &Tensor,
        v_first: Option<&Tensor>,
        state: Option<&Tensor>,
        cu: Option<&[usize]>,
    ) -> Result<Projection> {
        let wide = |t: Tensor| t.to_dtype(state_dtype(t.dtype()));
        let sigmoid = |t: Tensor| activation(&wide(t)?, Activation::Sigmoid);
        let (mixed, last) = self.mixes.shift(x, None, state, cu)?;
        let [xr, xw, xk, xv, xa, xg] = &mixed[..] else {
            candle_core::bail!("{KIND}: the token shift gives six mixes")
        };
        let (r, k) = (wide(self.receptance.forward(xr)?)?, wide(self.key.forward(xk)?)?);
        let own = self.value.forward(xv)?;
        let v = match (&self.residual, v_first) {
            (Some(residual), Some(first)) => {
                let (own, share) = (wide(own.clone())?, sigmoid(residual.forward(xv)?)?);
                (&own + ((wide(first.clone())? - &own)? * share)?)?
            }
            _ => wide(own.clone())?,
        };
        let log_decay = (sigmoid(self.decay.forward(xw)?)? * -(-0.5f64).exp())?;
        let rate = sigmoid(self.rate.forward(xa)?)?;
        let kk = self.unit(&k.broadcast_mul(&self.k_k)?)?;
        let k = (&k + (&k * (&rate - 1.0)?.broadcast_mul(&self.k_a)?)?)?;
        let heads = &self.heads;
        Ok(Projection {
            r: heads.keys(&r)?,
            k: heads.keys(&k)?,
            log_decay: heads.keys(&log_decay)?,
            a: heads.keys(&kk.neg()?)?,
            b: heads.keys(&(kk * rate)?)?,
            v: heads.values(&v)?,
            gate: self.gate.forward(xg)?,
            v_first: self.residual.is_none().then_some(own),
            last,
        })
    }

    /// Each head of (..., d) divided by its length.
    fn unit(&self, t: &Tensor) -> Result<Tensor> {
        // An RMS norm divides by length / √n.
        let n = self.heads.n as f64;
        rms_norm(t, None, self.kk_eps * self.kk_eps / n, self.heads.n)? * (1.0 / n.sqrt())
    }

    /// What of an earlier layer this one asks for.
    fn received(&self, ctx: &Context<'_>) -> Result<Option<Tensor>> {
        let advice = "rwkv7: give the first such layer of the stack `value_residual = false`: the others take its values";
        let received = |_| ctx.received(V_FIRST).map_err(|e| e.context(advice));
        self.residual.as_ref().map(received).transpose()
    }

    /// `output ((ln_x(y) + (Σ r r_k k) v) ⊙ gate)`; y is (..., h, p), as are v and, with n, r and k.
    fn finish(&self, y: &Tensor, p: &Projection, like: &Tensor) -> Result<Tensor> {
        let bonus = (&p.r * &p.k)?.broadcast_mul(&self.r_k)?.sum_keepdim(D::Minus1)?; // (b, l, h, 1)
        let bonus = p.v.broadcast_mul(&bonus)?.flatten_from(2)?;
        let y = (self.readout.norm(y)?.reshape(bonus.shape())? + bonus)?;
        let gated = (&y * p.gate.to_dtype(y.dtype())?)?;
        self.readout.output(&gated, like)
    }

    fn scan(&self, p: &Projection, state: Option<&Tensor>, cu: Option<&[usize]>) -> Result<(Tensor, Tensor)> {
        delta_scan(&DeltaScan {
            log_decay: Some(&p.log_decay),
            initial_state: state,
            cu_seqlens: cu,
            ..DeltaScan::new(&p.r, &p.k, &p.v, &p.a, &p.b)
        })
    }
}

impl Rwkv7 {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let first = self.received(ctx)?;
        let p = self.project(x, first.as_ref(), ctx.initial("shift")?.as_ref(), ctx.cu_seqlens)?;
        let (y, wkv) = self.scan(&p, self.heads.initial(ctx, lengths.len())?.as_ref(), ctx.cu_seqlens)?;
        let out = self.finish(&y, &p, x)?;
        if let Some(v) = &p.v_first {
            ctx.hand_on(V_FIRST, v);
        }
        ctx.leave(&[("shift", p.last), ("wkv", wkv)], &lengths)?;
        Ok(out)
    }
}

impl Mixer for Rwkv7 {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, x, ctx, self.key.weight().track_op(), &|x, ctx| self.forward_once(x, ctx))
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let first = self.received(ctx)?.map(|v| v.unsqueeze(1)).transpose()?;
        let state = ctx.state_mut()?;
        let (b, _) = x.dims2()?;
        state.check(KIND, b)?;
        let p = self.project(&x.unsqueeze(1)?, first.as_ref(), Some(state.get("shift")?), None)?;
        let [r, k, v, decay, a, kka] = [&p.r, &p.k, &p.v, &p.log_decay, &p.a, &p.b].map(|t| t.squeeze(1));
        let (r, k, v, decay, a, kka) = (r?, k?, v?, decay?, a?, kka?);
        let args = DeltaUpdate { log_decay: Some(&decay), ..DeltaUpdate::new(&r, &k, &v, &a, &kka) };
        let y = delta_update(state.get("wkv")?, &args)?; // (b, h, p)
        let out = self.finish(&y.unsqueeze(1)?, &p, x)?.squeeze(1)?;
        state.set("shift", p.last)?;
        state.advance(&vec![1; b]);
        if let Some(v) = &p.v_first {
            ctx.hand_on(V_FIRST, &v.squeeze(1)?);
        }
        Ok(out)
    }

    fn receives(&self) -> Vec<(&'static str, usize)> {
        self.residual.iter().map(|_| (V_FIRST, self.heads.h * self.heads.p)).collect()
    }

    fn hands_on(&self) -> Vec<(&'static str, usize)> {
        if self.residual.is_none() { vec![(V_FIRST, self.heads.h * self.heads.p)] } else { Vec::new() }
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        self.heads.new_state(KIND, (batch, self.d_model), self.dtype, &self.device)
    }

    /// A token decays, reads, corrects, adds to and reads out every element of its state: ten operations.
    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let heads = &self.heads;
        let extra = 10 * heads.h * heads.n * heads.p + 50 * self.d_model;
        let state = batch * heads.elements(self.d_model) * state_dtype(self.dtype).size_in_bytes();
        cost(&self.groups, batch * seqlen, extra, self.dtype.size_in_bytes(), state)
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    /// The values are the layer's own, without those of the first layer: the matrix is the same. A learnt initial state
    /// is left out.
    fn matrix(&self, x: &Tensor) -> Result<Option<Mixing>> {
        let p = self.project(x, None, None, None)?;
        let (y, _) = self.scan(&p, None, None)?;
        let matrix = matrix::delta(&p.r, &p.k, &p.log_decay, &p.a, &p.b)?;
        Ok(Some(Mixing { matrix, values: p.v.transpose(1, 2)?, output: y.transpose(1, 2)? }))
    }
}
