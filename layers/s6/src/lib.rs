//! S6: the selective state space alone (Gu & Dao 2023, arXiv 2312.00752, algorithm 2), without Mamba's convolution, gate
//! and expansion.
//!
//! ```text
//! [δ | B | C] = x_proj x          dt = softplus(dt_proj δ + bias)          x = in_proj u, or u itself
//! h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t       A = -exp(A_log), one (n) row a channel
//! y_t = C_t h_t + D x_t                          out = out_proj y, or y itself
//! ```
//! As a matrix mixer, channel by channel: `M[t,s] = Σ_n C_t[n] exp(A[n] Σ_{s<j≤t} dt_j) B_s[n] dt_s`, n-semiseparable.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input map | `in_proj.weight` | (d, d), with `in_proj` |
//! | s_Δ, s_B, s_C | `x_proj.weight` | (r + 2n, d), rows [δ, B, C] |
//! | dt | `dt_proj.weight`, `dt_proj.bias` | (d, r); (d) |
//! | A, D | `A_log`, `D` | (d, n); (d), f32 |
//! | output map | `out_proj.weight` | (d, d), with `out_proj` |
//! | h | state `ssm` | (b, d, n) f32 |
//!
//! Names and initial values as in state-spaces/mamba `mamba_simple.py`.

mod config;
mod matrix;

use candle_core::{D, DType, Device, Result, Tensor};
pub use config::S6Config;
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder,
};
use semisep_kernels::{
    SelectiveScan, SelectiveStateUpdate, selective_scan, selective_state_update, state_dtype,
};

const KIND: &str = "s6";

/// The layer.
pub struct S6 {
    config: S6Config,
    d_model: usize,
    dt_rank: usize,
    in_proj: Option<Linear>,
    x_proj: Linear,
    dt_proj: Linear,
    dt_bias: Tensor, // (d)
    a_log: Tensor,   // (d, n)
    a: Option<Tensor>,
    d: Tensor, // (d)
    out_proj: Option<Linear>,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// The scan's inputs: dt (..., d) before bias and softplus, B and C (..., n).
struct Selection {
    dt: Tensor,
    b: Tensor,
    c: Tensor,
}

impl S6 {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &S6Config, vb: &VarBuilder) -> Result<Self> {
        let (n, r) = (config.d_state, config.dt_rank(d_model));
        let square = |name: &str| Linear::new(d_model, d_model, false, &vb.pp(name));
        let in_proj = config.in_proj.then(|| square("in_proj")).transpose()?;
        let x_proj = Linear::new(d_model, r + 2 * n, false, &vb.pp("x_proj"))?;
        let (dt, bound) = (vb.pp("dt_proj"), (r as f64).powf(-0.5));
        let dt_proj = Linear::with_init(r, d_model, false, Init::Uniform { lo: -bound, hi: bound }, &dt)?;
        let dt_bias = dt.get_f32(d_model, "bias", Init::dt_bias(config.dt_min, config.dt_max, 1e-4))?;
        let a_log = vb.get_f32((d_model, n), "A_log", s4d_real())?;
        Ok(Self {
            a: (!a_log.track_op()).then(|| decay(&a_log)).transpose()?,
            d: vb.get_f32(d_model, "D", Init::ONES)?,
            out_proj: config.out_proj.then(|| square("out_proj")).transpose()?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
            dt_rank: r,
            in_proj,
            x_proj,
            dt_proj,
            dt_bias,
            a_log,
        })
    }

    fn a(&self) -> Result<Tensor> {
        self.a.clone().map_or_else(|| decay(&self.a_log), Ok)
    }

    fn enter(&self, u: &Tensor) -> Result<Tensor> {
        self.in_proj.as_ref().map_or_else(|| Ok(u.clone()), |p| p.forward(u))
    }

    fn leave(&self, y: Tensor) -> Result<Tensor> {
        self.out_proj.as_ref().map_or(Ok(y.clone()), |p| p.forward(&y))
    }

    fn select(&self, x: &Tensor) -> Result<Selection> {
        let (r, n) = (self.dt_rank, self.config.d_state);
        let dbc = self.x_proj.forward(x)?; // (..., r + 2n)
        let part = |start, len| dbc.narrow(D::Minus1, start, len);
        Ok(Selection { dt: self.dt_proj.forward(&part(0, r)?)?, b: part(r, n)?, c: part(r + n, n)? })
    }

    /// y (b, l, d) and the final state.
    fn scan(&self, x: &Tensor, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        let Selection { dt, b, c } = self.select(x)?;
        selective_scan(&SelectiveScan {
            d: Some(&self.d),
            dt_bias: Some(&self.dt_bias),
            dt_softplus: true,
            initial_state: ctx.initial("ssm")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
            ..SelectiveScan::new(x, &dt, &self.a()?, &b.unsqueeze(2)?, &c.unsqueeze(2)?)
        })
    }
}

impl Mixer for S6 {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let (y, ssm) = self.scan(&self.enter(u)?, ctx)?;
        let out = self.leave(y)?;
        ctx.leave(&[("ssm", ssm)], &lengths)?;
        Ok(out)
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = u.dims2()?;
        state.check(KIND, b)?;
        let x = self.enter(u)?;
        let Selection { dt, b: key, c } = self.select(&x)?;
        let y = selective_state_update(
            state.get("ssm")?,
            &SelectiveStateUpdate {
                d: Some(&self.d),
                dt_bias: Some(&self.dt_bias),
                dt_softplus: true,
                ..SelectiveStateUpdate::new(&x, &dt, &self.a()?, &key.unsqueeze(1)?, &c.unsqueeze(1)?)
            },
        )?;
        let out = self.leave(y)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (shape, dtype) = ((batch, self.d_model, self.config.d_state), state_dtype(self.dtype));
        State::new(KIND, batch).with_zeros("ssm", StateKind::Recurrent, shape, dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (d, n, r) = (self.d_model, self.config.d_state, self.dt_rank);
        let (rows, size) = (batch * seqlen, self.dtype.size_in_bytes());
        let squares = [&self.in_proj, &self.out_proj].into_iter().flatten();
        let linears = squares.map(|_| Cost::linear(rows, d, d, false, size)).sum::<Cost>()
            + Cost::linear(rows, d, r + 2 * n, false, size)
            + Cost::linear(rows, r, d, false, size);
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            // Per state element: decay (exp) and two multiply-adds; per channel the skip.
            flops: linears.flops + (rows * d) as u64 * (7 * n as u64 + 2),
            bytes: linears.bytes + (rows * (4 * d + 2 * n) * size) as u64,
            state_bytes: (batch * d * n * state_dtype(self.dtype).size_in_bytes()) as u64,
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

/// A = -exp(A_log): negative, so that the state decays.
fn decay(a_log: &Tensor) -> Result<Tensor> {
    a_log.exp()?.neg()
}

/// S4D-Real: A_log = ln(1..n) in each channel.
fn s4d_real() -> Init {
    Init::custom(|shape, _| {
        let n = shape[1];
        (0..shape[0] * n).map(|i| ((i % n + 1) as f32).ln()).collect()
    })
}
