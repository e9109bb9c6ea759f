//! H3, "hungry hungry hippos" (Fu, Dao et al. 2023, arXiv 2212.14052): two state spaces between three projections.
//!
//! ```text
//! q, k, v = maps of u with biases                                  h heads of m features, channel = head m + index
//! s_t = shift s_{t-1} + B k_t        k'_t = C s_t + D_k k_t        (d, N)        a memory of the last N keys
//! h_t = Ā h_{t-1} + B̄ k'_t v_tᵀ      o_t = 2 Re C h_t + D k'_t v_tᵀ   (h, m, m, n) complex, one system a head
//! out_t = output_linear(q_t o_t)                                   channel of the result = index h + head
//! ```
//! As a matrix mixer, head by head: `M[t,s] = (q_t · k'_s) (2 Re C Ā^(t-s) B̄ + D [t = s])`: linear attention under a
//! Toeplitz mask.
//!
//! The shift moves every entry one place up, so that the shift system is a convolution with the N taps
//! `K[j] = Σ_n B_n C_{n+j}`; its state here is the last N - 1 keys.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | maps | `{q,k,v}_proj`, `output_linear`: `weight`, `bias` | (d, d), (d) |
//! | shift B, C, D | `ssm_k_kernel.kernel.{B, C}`, `ssm_k_D` | (d, N), (1, d, N), (d) |
//! | A | `-exp(kernel.kernel.inv_A_real) + i kernel.kernel.A_imag` | (t, n), t = `n_ssm` systems |
//! | B, C, D | `kernel.kernel.{B, C}`, `D` | (t, n, 2), (1, h, n, 2), (h) |
//! | dt | `exp(kernel.kernel.log_dt)` | (h) |
//!
//! Source: HazyResearch/H3 `src/models/ssm/h3.py`, `ss_kernel_diag.py`, `ss_kernel_shift.py`.

mod config;
mod matrix;
mod systems;

use std::sync::{Arc, OnceLock};

use candle_core::{D, DType, Device, Result, Tensor, bail};
pub use config::{H3Config, H3Init};
use semisep_core::{Context, Cost, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder};
use semisep_kernels::{
    CausalConv1d, ModalScan, causal_conv1d, causal_conv1d_update, modal_scan, modal_update, state_dtype,
};
use systems::{Parameters, Systems};

const KIND: &str = "h3";

/// The layer.
pub struct H3 {
    config: H3Config,
    d_model: usize,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    output_linear: Linear,
    parameters: Parameters,
    /// What the parameters stand for, where they are fixed.
    systems: OnceLock<Arc<Systems>>,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

impl H3 {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &H3Config, vb: &VarBuilder) -> Result<Self> {
        let map = |name: &str| Linear::new(d_model, d_model, true, &vb.pp(name));
        Ok(Self {
            q_proj: map("q_proj")?,
            k_proj: map("k_proj")?,
            v_proj: map("v_proj")?,
            output_linear: map("output_linear")?,
            parameters: Parameters::new(d_model, config, vb)?,
            systems: OnceLock::new(),
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
        })
    }

    fn systems(&self) -> Result<Arc<Systems>> {
        if let Some(known) = self.systems.get() {
            return Ok(known.clone());
        }
        let systems = Arc::new(self.parameters.systems()?);
        if !self.parameters.tracked() {
            // Another thread may have been first; both are the same.
            let _ = self.systems.set(systems.clone());
        }
        Ok(systems)
    }

    fn heads(&self) -> usize {
        self.config.n_heads(self.d_model)
    }

    /// `t` (.., d) as columns (.., h, m, 1) of the heads' products, or as rows (.., h, 1, m).
    fn by_head(&self, t: &Tensor, columns: bool) -> Result<Tensor> {
        let m = self.config.head_dim;
        let (rows, columns) = if columns { (m, 1) } else { (1, m) };
        let lead = &t.dims()[..t.rank() - 1];
        t.reshape([lead, &[self.heads(), rows, columns]].concat())
    }

    /// Keys times values of every head, (.., h m m).
    fn products(&self, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        if self.config.head_dim == 1 {
            return k * v;
        }
        self.by_head(k, true)?.broadcast_mul(&self.by_head(v, false)?)?.flatten_from(D::Minus(3))
    }

    /// Queries times the heads' outputs (.., h m m), in the order of the output map, (.., d).
    fn read(&self, q: &Tensor, o: &Tensor) -> Result<Tensor> {
        let (h, m) = (self.heads(), self.config.head_dim);
        if m == 1 {
            return q * o;
        }
        let lead = &q.dims()[..q.rank() - 1];
        let o = o.reshape([lead, &[h, m, m]].concat())?;
        let read = self.by_head(q, true)?.broadcast_mul(&o)?.sum(D::Minus2)?; // (.., h, m)
        read.transpose(D::Minus1, D::Minus2)?.contiguous()?.flatten_from(D::Minus2)
    }

    /// Queries, keys after the shift system, values; and the shift system's state.
    fn project(&self, u: &Tensor, shift: &Tensor, ctx: &Context<'_>) -> Result<([Tensor; 3], Tensor)> {
        let (k, state) = causal_conv1d(CausalConv1d {
            x: &self.k_proj.forward(u)?,
            weight: shift,
            bias: None,
            silu: false,
            initial_state: ctx.initial("shift")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
        })?;
        Ok(([self.q_proj.forward(u)?, k, self.v_proj.forward(u)?], state))
    }
}

impl Mixer for H3 {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let systems = self.systems()?;
        let ([q, k, v], shift) = self.project(u, &systems.shift, ctx)?;
        let (o, ssm) = modal_scan(&ModalScan {
            u: &self.products(&k, &v)?,
            system: systems.diagonal(),
            initial_state: ctx.initial("ssm")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
        })?; // (b, l, 1, h m m)
        let out = self.output_linear.forward(&self.read(&q, &o.squeeze(2)?)?)?;
        ctx.leave(&[("shift", shift), ("ssm", ssm)], &lengths)?;
        Ok(out)
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, width) = u.dims2()?;
        if width != self.d_model {
            bail!("{KIND}: the input is {width} wide, expected {}", self.d_model);
        }
        state.check(KIND, b)?;
        let systems = self.systems()?;
        let (q, k, v) = (self.q_proj.forward(u)?, self.k_proj.forward(u)?, self.v_proj.forward(u)?);
        let k = causal_conv1d_update(state.get("shift")?, &k, &systems.shift, None, false)?;
        let o = modal_update(state.get("ssm")?, &self.products(&k, &v)?, &systems.diagonal())?;
        let out = self.output_linear.forward(&self.read(&q, &o.squeeze(1)?)?)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (dtype, n) = (state_dtype(self.dtype), self.config.d_state);
        let ssm = (batch, self.d_model * self.config.head_dim, n / 2, 2);
        State::new(KIND, batch)
            .with_zeros("shift", StateKind::Recurrent, (batch, self.d_model, n - 1), dtype, &self.device)?
            .with_zeros("ssm", StateKind::Recurrent, ssm, dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, d, n) = (batch * seqlen, self.d_model, self.config.d_state);
        let (wide, size) = (d * self.config.head_dim, self.dtype.size_in_bytes());
        let map = Cost::linear(rows, d, d, true, size);
        // N taps a key; pole, input and readout of n modes (14 each) a product, and the products themselves.
        let scans = 2 * d * n + wide * (14 * (n / 2) + 6);
        let state = batch * (d * (n - 1) + wide * n) * state_dtype(self.dtype).size_in_bytes();
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: 4 * map.flops + rows as u64 * scans as u64,
            bytes: 4 * map.bytes + (rows * (2 * d + 2 * wide) * size) as u64,
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
