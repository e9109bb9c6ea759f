//! Mamba-3: trapezoidal discretisation, data-dependent rotations, and several inputs and outputs a head (Lahoti et al.
//! 2026, arXiv 2603.15569).
//!
//! ```text
//! [z | x | B | C | dt | A | λ | φ] = in_proj u
//! A ← min(-(max(A, 0) + 1 / (1 - min(A, 0))), -A_floor)       dt ← softplus(dt + dt_bias)       λ ← σ(λ)
//! θ_t = θ_{t-1} + π tanh(φ_t) dt_t          B, C ← turn(norm(B) + B_bias, θ), turn(norm(C) + C_bias, θ)
//! u_t = Σ_r v_{t,r} ⊗ B_{t,r}               v = x (SISO), or x ⊙ mimo_x_r (MIMO, r of R)
//! h_t = α_t h_{t-1} + (1-λ_t) dt_t α_t u_{t-1} + λ_t dt_t u_t           α = exp(A dt)           h: (heads, p, n)
//! y_{t,r} = [norm](h_t C_{t,r} + D v_{t,r}) ⊙ silu(z ⊙ mimo_z_r)        out = out_proj Σ_r y_{t,r} ⊙ mimo_o_r
//! ```
//! As a matrix mixer, head by head: `M[t,s] = (C_t · B_s) L[t,s] (γ_s + β_{s+1})` for s < t and `(C_t · B_t) γ_t` on the
//! diagonal, with γ = λ dt, β = (1-λ) dt and `L[t,s] = Π_{s<j≤t} α_j`: n-semiseparable below the diagonal, hence a scan with
//! one decay a head.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input map | `in_proj.weight` | (2 h p + 2 R g n + 3 h + s, d), rows as above |
//! | dt, D | `dt_bias`, `D` | (h), f32 |
//! | B, C | `B_norm.weight`, `C_norm.weight`; `B_bias`, `C_bias` | (n); (h, R, n), f32 |
//! | MIMO maps | `mimo_x`, `mimo_z`, `mimo_o` | (h, R, p) |
//! | norm | `norm.weight` | (h p), over each head, with `is_outproj_norm` |
//! | output map | `out_proj.weight` | (d, h p) |
//! | h; θ; last B; last x | states `ssm`; `angle`; `k`; `v` | (b, h, p, n); (b, h, s); (b, R, h, n); (b, h, p) |
//!
//! Names, orders and defaults as in state-spaces/mamba `mamba3.py`. Pairs that turn are (2j, 2j + 1) in SISO and
//! (j, j + n/2) in MIMO layers, as there. Angles are kept up to whole turns.

mod config;
mod matrix;
mod scan;
mod tokens;

use candle_core::{D, DType, Device, Result, Tensor};
pub use config::Mamba3Config;
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder, in_blocks,
};
use semisep_kernels::{Activation, gated_activation, gated_rms_norm, state_dtype};

use crate::scan::Before;
use crate::tokens::Tokens;

const KIND: &str = "mamba3";

/// The layer.
pub struct Mamba3 {
    config: Mamba3Config,
    d_model: usize,
    in_proj: Linear,
    dt_bias: Tensor,    // (h)
    key_norm: Tensor,   // (n)
    query_norm: Tensor, // (n)
    key_bias: Tensor,   // (h, R, n)
    query_bias: Tensor, // (h, R, n)
    mimo: Option<Mimo>,
    d: Tensor,            // (h)
    norm: Option<Tensor>, // (h p)
    out_proj: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// What spreads one value over R and back, each (h, R, p).
struct Mimo {
    x: Tensor,
    z: Tensor,
    o: Tensor,
}

impl Mamba3 {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &Mamba3Config, vb: &VarBuilder) -> Result<Self> {
        let (h, p, n, r) = (config.n_heads(d_model), config.headdim, config.d_state, config.rank());
        let widths = 2 * h * p + 2 * r * config.ngroups * n + 3 * h + config.num_rope_angles();
        let spread = |name: &str, value: f64| vb.get_f32((h, r, p), name, Init::Const(value));
        let mimo = || {
            let share = 1.0 / r as f64;
            Ok::<_, candle_core::Error>(Mimo {
                x: spread("mimo_x", share)?,
                z: spread("mimo_z", 1.0)?,
                o: spread("mimo_o", share)?,
            })
        };
        Ok(Self {
            in_proj: Linear::new(d_model, widths, false, &vb.pp("in_proj"))?,
            dt_bias: vb.get_f32(h, "dt_bias", Init::dt_bias(config.dt_min, config.dt_max, 1e-4))?,
            key_norm: vb.pp("B_norm").get_f32(n, "weight", Init::ONES)?,
            query_norm: vb.pp("C_norm").get_f32(n, "weight", Init::ONES)?,
            key_bias: vb.get_f32((h, r, n), "B_bias", Init::ONES)?,
            query_bias: vb.get_f32((h, r, n), "C_bias", Init::ONES)?,
            mimo: config.is_mimo.then(mimo).transpose()?,
            d: vb.get_f32(h, "D", Init::ONES)?,
            norm: config
                .is_outproj_norm
                .then(|| vb.pp("norm").get_f32(h * p, "weight", Init::ONES))
                .transpose()?,
            out_proj: Linear::new(h * p, d_model, false, &vb.pp("out_proj"))?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
        })
    }

    fn heads(&self) -> usize {
        self.config.n_heads(self.d_model)
    }

    /// Norm, gate and output map: what the scan gave, (b, l, R, h, p), becomes (b, l, d).
    fn finish(&self, y: &Tensor, tokens: &Tokens, dtype: DType) -> Result<Tensor> {
        let (b, l, r, h, p) = y.dims5()?;
        let y = y.flatten_from(3)?; // (b, l, R, h p)
        // (h, R, p) -> (R, h p)
        let spread = |t: &Tensor| t.to_dtype(y.dtype())?.transpose(0, 1)?.flatten_from(1);
        let z = tokens.z.unsqueeze(2)?; // (b, l, 1, h p)
        let z = match &self.mimo {
            Some(mimo) => z.broadcast_mul(&spread(&mimo.z)?)?,
            None => z,
        };
        let y = match &self.norm {
            Some(weight) => gated_rms_norm(&y, &z, Some(weight), self.config.norm_eps, p, true)?,
            None => gated_activation(&y, &z, Activation::Silu)?,
        };
        let y = match &self.mimo {
            Some(mimo) => y.broadcast_mul(&spread(&mimo.o)?)?.sum(2)?,
            None => y.reshape((b, l, r * h * p))?,
        };
        self.out_proj.forward(&y.to_dtype(dtype)?)
    }

    /// The parallel form over all of `u` at once.
    fn forward_once(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        if l == 0 {
            let nothing = self.in_proj.forward(u)?; // refuses another width
            return nothing.narrow(D::Minus1, 0, 0)?.pad_with_zeros(D::Minus1, 0, self.d_model);
        }
        let (tokens, angle) = self.tokens(u, ctx)?;
        let before = match &ctx.state {
            Some(state) => {
                let (h, k) = (state.get("ssm")?.clone(), state.get("k")?.clone());
                Some(Before { h, k, v: self.spread(state.get("v")?)? })
            }
            None => None,
        };
        let (y, ssm) =
            scan::scan(&tokens, &self.d.to_dtype(tokens.v.dtype())?, before.as_ref(), ctx.cu_seqlens)?;
        let out = self.finish(&y, &tokens, u.dtype())?;
        if let Some(state) = &ctx.state {
            let k = scan::last(&tokens.k, state.get("k")?, ctx.cu_seqlens)?;
            let v = scan::last(&tokens.x, state.get("v")?, ctx.cu_seqlens)?;
            ctx.leave(&[("ssm", ssm), ("angle", angle), ("k", k), ("v", v)], &lengths)?;
        }
        Ok(out)
    }
}

impl Mixer for Mamba3 {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, u, ctx, self.in_proj.weight().track_op(), &|u, ctx| self.forward_once(u, ctx))
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, _) = u.dims2()?;
        ctx.state_mut()?.check(KIND, b)?;
        let (tokens, angle) = self.tokens(&u.unsqueeze(1)?, ctx)?;
        let state = ctx.state_mut()?;
        let last = self.spread(state.get("v")?)?;
        let skip = self.d.to_dtype(last.dtype())?;
        let y = scan::step(&tokens, &skip, state.get("ssm")?, state.get("k")?, &last)?;
        let out = self.finish(&y, &tokens, u.dtype())?.squeeze(1)?;
        state.set("angle", angle)?;
        state.set("k", tokens.k.squeeze(1)?)?;
        state.set("v", tokens.x.squeeze(1)?)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (h, p, n, r) = (self.heads(), self.config.headdim, self.config.d_state, self.config.rank());
        let (dtype, device) = (state_dtype(self.dtype), &self.device);
        let angle = (batch, h, self.config.num_rope_angles());
        State::new(KIND, batch)
            .with_zeros("ssm", StateKind::Recurrent, (batch, h, p, n), dtype, device)?
            .with_zeros("angle", StateKind::Recurrent, angle, dtype, device)?
            .with_zeros("k", StateKind::Recurrent, (batch, r, h, n), dtype, device)?
            .with_zeros("v", StateKind::Recurrent, (batch, h, p), dtype, device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (h, p, n, r) = (self.heads(), self.config.headdim, self.config.d_state, self.config.rank());
        let (rows, size, s) = (batch * seqlen, self.dtype.size_in_bytes(), self.config.num_rope_angles());
        let wide = self.in_proj.weight().dims()[0];
        let linears = Cost::linear(rows, self.d_model, wide, false, size)
            + Cost::linear(rows, h * p, self.d_model, false, size);
        // A token and head: for each rank C·B over half a chunk of keys, times v, state in and out; what is taken off
        // the diagonal; norms, biases and rotations of B and C.
        let chunk = (r * seqlen).min(scan::CHUNK);
        let head = r * (chunk * (n + p) + 4 * p * n + 2 * r * (n + p) + 12 * n) + 30 * s;
        let state = batch * h * (p * n + s + r * n + p) * state_dtype(self.dtype).size_in_bytes();
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: linears.flops + (rows * h * (head + 8 * r * p)) as u64,
            bytes: linears.bytes + (rows * h * r * (2 * n + 3 * p) * size) as u64,
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

/// Part `len` wide of the last dimension, and where the next begins.
fn part(t: &Tensor, start: &mut usize, len: usize) -> Result<Tensor> {
    let part = t.narrow(D::Minus1, *start, len)?;
    *start += len;
    Ok(part)
}
