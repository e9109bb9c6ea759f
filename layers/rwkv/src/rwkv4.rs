//! RWKV-4's time mix (Peng et al. 2023, arXiv 2305.13048).
//!
//! ```text
//! x_j = μ_j ⊙ x_t + (1 - μ_j) ⊙ x_{t-1}     for j = k, v, r                                       (eq. 11-13)
//! k = key x_k      v = value x_v      r = receptance x_r
//! y_t = (Σ_{s<t} e^{(t-1-s) w + k_s} v_s + e^{u + k_t} v_t) / (the same without v)      w = -e^{time_decay}  (eq. 16)
//! out = output (σ(r) ⊙ y)                                                               (eq. 17)
//! ```
//! As a matrix mixer, channel by channel: a softmax over the past of keys that fade linearly.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | μ | `time_mix_k`, `time_mix_v`, `time_mix_r` | (d) |
//! | w, u | `time_decay`, `time_first` | (c), f32 |
//! | maps | `key.weight`, `value.weight`, `receptance.weight` | (c, d) |
//! | output | `output.weight` | (d, c) |

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder, in_blocks,
};
use semisep_kernels::{
    Activation, Wkv4, Wkv4Update, gated_activation, state_dtype, wkv4, wkv4_state, wkv4_update,
};

use crate::cost::cost;
use crate::mixes::{Mixes, settled};
use crate::scan::log_decay;
use crate::{Rwkv4Config, init, matrix};

const KIND: &str = "rwkv4";

/// The layer.
pub struct Rwkv4 {
    d_model: usize,
    dim: usize,
    mixes: Mixes, // k, v, r
    time_decay: Tensor,
    w: Option<Tensor>,
    time_first: Tensor,
    key: Linear,
    value: Linear,
    receptance: Linear,
    output: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// Keys, values, receptances (b, l, c), and the last token of each sequence (b, d).
struct Projection {
    k: Tensor,
    v: Tensor,
    r: Tensor,
    last: Tensor,
}

impl Rwkv4 {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &Rwkv4Config, vb: &VarBuilder) -> Result<Self> {
        let (dim, depth) = (config.dim_att.unwrap_or(d_model), config.init_depth);
        let names = [
            ("time_mix_k", init::mix(1.0 - depth, 0.0)),
            ("time_mix_v", init::mix(1.0 - depth, 0.3 * depth)),
            ("time_mix_r", init::mix(0.5 * (1.0 - depth), 0.0)),
        ];
        let mixes = Mixes::rows(d_model, names, true, vb)?;
        let scale = |name, init, lr| vb.get_group(ParameterGroup::scale(name, dim, init).lr_scale(lr));
        let time_decay = scale("time_decay", init::decay(-5.0, 8.0, depth), 2.0)?;
        let time_first = scale("time_first", init::first(), 3.0)?;
        let map = |name: &str, init| Linear::with_init(d_model, dim, false, init, &vb.pp(name));
        Ok(Self {
            d_model,
            dim,
            mixes,
            w: settled(&time_decay).then(|| log_decay(&time_decay)).transpose()?,
            time_decay,
            time_first,
            key: map("key", Init::ZEROS)?,
            value: map("value", init::matrix(1.0, d_model))?,
            receptance: map("receptance", Init::ZEROS)?,
            output: Linear::with_init(dim, d_model, false, Init::ZEROS, &vb.pp("output"))?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    fn w(&self) -> Result<Tensor> {
        self.w.clone().map_or_else(|| log_decay(&self.time_decay), Ok)
    }

    fn project(&self, x: &Tensor, state: Option<&Tensor>, cu: Option<&[usize]>) -> Result<Projection> {
        let (mixed, last) = self.mixes.shift(x, None, state, cu)?;
        Ok(Projection {
            k: self.key.forward(&mixed[0])?,
            v: self.value.forward(&mixed[1])?,
            r: self.receptance.forward(&mixed[2])?,
            last,
        })
    }

    fn finish(&self, y: &Tensor, r: &Tensor) -> Result<Tensor> {
        self.output.forward(&gated_activation(y, r, Activation::Sigmoid)?)
    }
}

impl Rwkv4 {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let p = self.project(x, ctx.initial("shift")?.as_ref(), ctx.cu_seqlens)?;
        let (y, wkv) = wkv4(&Wkv4 {
            state: ctx.initial("wkv")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
            ..Wkv4::new(&p.k, &p.v, &self.w()?, &self.time_first)
        })?;
        let out = self.finish(&y, &p.r)?;
        ctx.leave(&[("shift", p.last), ("wkv", wkv)], &lengths)?;
        Ok(out)
    }
}

impl Mixer for Rwkv4 {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, x, ctx, self.output.weight().track_op(), &|x, ctx| self.forward_once(x, ctx))
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = x.dims2()?;
        state.check(KIND, b)?;
        let p = self.project(&x.unsqueeze(1)?, Some(state.get("shift")?), None)?;
        let (k, v) = (p.k.squeeze(1)?, p.v.squeeze(1)?);
        let args = Wkv4Update { k: &k, v: &v, w: &self.w()?, u: &self.time_first };
        let y = wkv4_update(state.get("wkv")?, &args)?; // (b, c)
        let out = self.finish(&y, &p.r.squeeze(1)?)?;
        state.set("shift", p.last)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (dtype, recurrent) = (state_dtype(self.dtype), StateKind::Recurrent);
        let mut state = State::new(KIND, batch)
            .with_zeros("shift", recurrent, (batch, self.d_model), dtype, &self.device)?
            .with_zeros("wkv", recurrent, (batch, 3, self.dim), dtype, &self.device)?;
        state.set("wkv", wkv4_state(batch, self.dim, self.dtype, &self.device)?)?;
        Ok(state)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let state = batch * (self.d_model + 3 * self.dim) * state_dtype(self.dtype).size_in_bytes();
        let extra = 9 * self.d_model + 20 * self.dim;
        cost(&self.groups, batch * seqlen, extra, self.dtype.size_in_bytes(), state)
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    /// A head a channel: (b, c, l, l).
    fn matrix(&self, x: &Tensor) -> Result<Option<Mixing>> {
        let p = self.project(x, None, None)?;
        let (y, _) = wkv4(&Wkv4::new(&p.k, &p.v, &self.w()?, &self.time_first))?;
        let column = |t: &Tensor| t.transpose(1, 2)?.contiguous()?.unsqueeze(3); // (b, c, l, 1)
        Ok(Some(Mixing {
            matrix: matrix::averaged(&p.k, &self.w()?, &self.time_first)?,
            values: column(&p.v)?,
            output: column(&y)?,
        }))
    }
}
