//! RWKV-6's time mix, "Finch" (Peng et al. 2024, arXiv 2404.05892, section 4.2): RWKV-5 with token shift and decay that
//! depend on the data.
//!
//! ```text
//! δ_t = x_{t-1} - x_t       m_j = tanh((x + δ ⊙ μ_x) A_j) B_j           j = w, k, v, r, g
//! x_j = x + δ ⊙ (μ_j + m_j)
//! r, k, v, g = receptance x_r, key x_k, value x_v, gate x_g             w_t = exp(-exp(ω + tanh(x_w C) D))
//! y_t = r_tᵀ (S_{t-1} + diag(u) k_t v_tᵀ)      S_t = diag(w_t) S_{t-1} + k_t v_tᵀ
//! out = output (ln_x(y) ⊙ silu(g))             head by head, S: (n, p)
//! ```
//! As a matrix mixer: `M[t,s] = Σ_n r_t[n] k_s[n] Π_{s<j<t} w_j[n]` for s < t, and `Σ_n r_t[n] u[n] k_t[n]` at s = t.
//!
//! | symbol | parameter | fla's, where it differs | shape (BlinkDL's) |
//! |---|---|---|---|
//! | μ_x, μ_j | `time_maa_x`, `time_maa_{w,k,v,r,g}` | `x_bias` (5, d), r first | (d) |
//! | A, B | `time_maa_w1`, `time_maa_w2` | `x_proj.0.linear.weight`, `x_proj.2.weight`, r first | (d, 5 R), (5, R, d) |
//! | ω, u | `time_decay`, `time_faaaa` | | (c), (h, n), f32 |
//! | C, D | `time_decay_w1`, `time_decay_w2` | `w_proj.linear.lora.{0,2}.weight` | (d, R'), (R', c) |
//! | maps | `receptance`, `key`, `value`, `gate` `.weight` | | (c, d) |
//! | norm of heads | `ln_x.weight`, `ln_x.bias` | | (h p) |
//! | output | `output.weight` | | (d, h p) |
//! | S before the first token | `time_state`, optional | | (h, p, n) |

use candle_core::{D, Result, Tensor};
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, VarBuilder, in_blocks,
};

use crate::lora::{Between, Lora, Names, factor, turned};
use crate::mixes::{Mixes, settled};
use crate::readout::Readout;
use crate::scan::{Core, Heads, Projection, log_decay};
use crate::{Layout, Rwkv6Config, init};

/// The layer.
pub struct Rwkv6 {
    shift: DataShift,
    receptance: Linear,
    key: Linear,
    value: Linear,
    gate: Linear,
    decay: Lora,
    core: Core,
}

/// The token shift whose mixes depend on the data.
struct DataShift {
    first: Mixes,
    down: Linear,
    up: Vec<Linear>,
    mixes: Mixes,
    layout: Layout,
}

/// x in the mix of each projection.
struct Mixed {
    w: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    g: Tensor,
}

impl DataShift {
    fn new(d: usize, rank: usize, layout: Layout, depth: f64, vb: &VarBuilder) -> Result<Self> {
        let power = 1.0 - depth;
        let first = Mixes::rows(d, [("time_maa_x", init::shift(power, 0.0))], false, vb)?;
        let small = Init::Uniform { lo: -0.01, hi: 0.01 };
        let group = |name, shape: &[usize], init| {
            vb.get_group(ParameterGroup { weight_decay: false, ..ParameterGroup::weight(name, shape, init) })
        };
        let (down, up, mixes) = match layout {
            Layout::Pth => {
                let names = [
                    ("time_maa_w", init::shift(power, 0.0)),
                    ("time_maa_k", init::shift(power, 0.0)),
                    ("time_maa_v", init::shift(power, 0.3 * depth)),
                    ("time_maa_r", init::shift(0.5 * power, 0.0)),
                    ("time_maa_g", init::shift(0.5 * power, 0.0)),
                ];
                let mixes = Mixes::rows(d, names, false, vb)?;
                let down = factor((d, 5 * rank), "time_maa_w1", Init::ZEROS, layout, vb)?;
                let up = group("time_maa_w2", &[5, rank, d], small)?;
                let up = (0..5).map(|j| turned(&up.get(j)?)).collect::<Result<Vec<_>>>()?;
                (down, up, mixes)
            }
            Layout::Fla => {
                let mixes = Mixes::matrix(vb.get_f32((5, d), "x_bias", Init::Const(0.5))?)?;
                let down = factor((d, 5 * rank), "x_proj.0.linear.weight", Init::ZEROS, layout, vb)?;
                let up = group("x_proj.2.weight", &[d, 5 * rank], small)?;
                let parts = (0..5).map(|j| {
                    let part = up.narrow(1, j * rank, rank)?;
                    if settled(&up) { part.contiguous() } else { Ok(part) }
                });
                (down, parts.collect::<Result<Vec<_>>>()?, mixes)
            }
        };
        let up = up.into_iter().map(|w| Linear::from_tensors(w, None)).collect();
        Ok(Self { first, down: Linear::from_tensors(down, None), up, mixes, layout })
    }

    fn forward(&self, x: &Tensor, state: Option<&Tensor>, cu: Option<&[usize]>) -> Result<(Mixed, Tensor)> {
        let (first, _) = self.first.shift(x, None, state, cu)?;
        let hidden = self.down.forward(&first[0])?.tanh()?; // (b, l, 5 R)
        let rank = hidden.dim(D::Minus1)? / 5;
        let data = self.up.iter().enumerate();
        let data = data.map(|(j, up)| up.forward(&hidden.narrow(D::Minus1, j * rank, rank)?));
        let (mixed, last) = self.mixes.shift(x, Some(&data.collect::<Result<Vec<_>>>()?), state, cu)?;
        let Ok([a, b, c, d, g]) = <[Tensor; 5]>::try_from(mixed) else {
            candle_core::bail!("rwkv6: the token shift gives five mixes")
        };
        let mixed = match self.layout {
            Layout::Pth => Mixed { w: a, k: b, v: c, r: d, g },
            Layout::Fla => Mixed { r: a, w: b, k: c, v: d, g },
        };
        Ok((mixed, last))
    }
}

impl Rwkv6 {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &Rwkv6Config, vb: &VarBuilder) -> Result<Self> {
        let (n, depth, layout) = (config.head_size, config.init_depth, config.layout);
        let dim = config.dim_att.unwrap_or(d_model);
        let dim_value = config.dim_value.unwrap_or(dim);
        let h = dim / n.max(1);
        let p = dim_value / h.max(1);
        let shift = DataShift::new(d_model, config.d_mix_lora, layout, depth, vb)?;
        let bias = ParameterGroup::scale("time_decay", dim, init::decay(-6.0, 5.0, depth)).lr_scale(2.0);
        let names =
            Names { factors: ["time_decay_w1", "time_decay_w2"], fla: "w_proj.linear", bias: Some(bias) };
        let decay = Lora::new((d_model, config.d_decay_lora, dim), names, Between::Tanh, layout, vb)?;
        let bonus = vb.get_f32((h, n), "time_faaaa", init::bonus(depth))?;
        let map = |name: &str, outputs, scale| {
            Linear::with_init(d_model, outputs, false, init::matrix(scale, d_model), &vb.pp(name))
        };
        let (receptance, key) = (map("receptance", dim, 1.0)?, map("key", dim, 0.1)?);
        let (value, gate) = (map("value", dim_value, 1.0)?, map("gate", dim_value, 0.1)?);
        let heads = Heads::new((h, n, p), config.time_state, vb)?;
        let readout = Readout::new(d_model, (dim_value, p), config.norm_eps, depth, vb)?;
        let core = Core {
            kind: "rwkv6",
            d_model,
            heads,
            bonus,
            readout,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
        };
        Ok(Self { shift, receptance, key, value, gate, decay, core })
    }

    fn project(&self, x: &Tensor, state: Option<&Tensor>, cu: Option<&[usize]>) -> Result<Projection> {
        let (mixed, last) = self.shift.forward(x, state, cu)?;
        let heads = &self.core.heads;
        Ok(Projection {
            r: heads.keys(&self.receptance.forward(&mixed.r)?)?,
            k: heads.keys(&self.key.forward(&mixed.k)?)?,
            v: heads.values(&self.value.forward(&mixed.v)?)?,
            log_decay: log_decay(&heads.keys(&self.decay.forward(&mixed.w)?)?)?,
            gate: self.gate.forward(&mixed.g)?,
            last,
        })
    }
}

impl Rwkv6 {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        self.core.forward(x, ctx, &|x, state, cu| self.project(x, state, cu))
    }
}

impl Mixer for Rwkv6 {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, x, ctx, self.core.tracked(), &|x, ctx| self.forward_once(x, ctx))
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        self.core.step(x, ctx, &|x, state, cu| self.project(x, state, cu))
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        self.core.new_state(batch)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        self.core.cost(batch, seqlen)
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.core.groups.clone()
    }

    fn matrix(&self, x: &Tensor) -> Result<Option<Mixing>> {
        self.core.matrix(x, &|x, state, cu| self.project(x, state, cu)).map(Some)
    }
}
