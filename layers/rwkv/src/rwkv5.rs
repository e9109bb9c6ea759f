//! RWKV-5's time mix, "Eagle" (Peng et al. 2024, arXiv 2404.05892, section 4.1).
//!
//! ```text
//! x_j = μ_j ⊙ x_t + (1 - μ_j) ⊙ x_{t-1}    j = k, v, r, g         r, k, v, g = receptance x_r, key x_k, value x_v, gate x_g
//! y_t = r_tᵀ (S_{t-1} + diag(u) k_t v_tᵀ)      S_t = diag(w) S_{t-1} + k_t v_tᵀ      w = exp(-exp(time_decay))
//! out = output (ln_x(y) ⊙ silu(g))             head by head, S: (n, p)
//! ```
//! As a matrix mixer: `M[t,s] = Σ_n r_t[n] k_s[n] w[n]^(t-1-s)` for s < t, and `Σ_n r_t[n] u[n] k_t[n]` at s = t.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | μ | `time_mix_k`, `time_mix_v`, `time_mix_r`, `time_mix_g` | (d) |
//! | w, u | `time_decay`, `time_faaaa` | (h, n), f32 |
//! | maps | `receptance`, `key`, `value`, `gate` `.weight` | (c, d) |
//! | norm of heads | `ln_x.weight`, `ln_x.bias` | (c), eps 64e-5 |
//! | output | `output.weight` | (d, c) |
//! | S before the first token | `time_state`, optional | (h, p, n) |

use candle_core::{Result, Tensor};
use semisep_core::{Context, Cost, Linear, Mixer, Mixing, ParameterGroup, State, VarBuilder, in_blocks};

use crate::mixes::{Mixes, settled};
use crate::readout::Readout;
use crate::scan::{Core, Heads, Projection, every_token, log_decay};
use crate::{Rwkv5Config, init};

/// The layer.
pub struct Rwkv5 {
    mixes: Mixes, // r, k, v, g
    maps: [Linear; 4],
    time_decay: Tensor, // (h, n)
    log_decay: Option<Tensor>,
    core: Core,
}

impl Rwkv5 {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &Rwkv5Config, vb: &VarBuilder) -> Result<Self> {
        let (dim, n, depth) = (config.dim_att.unwrap_or(d_model), config.head_size, config.init_depth);
        let h = dim / n.max(1);
        let names = [
            ("time_mix_r", init::mix(0.5 * (1.0 - depth), 0.0)),
            ("time_mix_k", init::mix(1.0 - depth, 0.0)),
            ("time_mix_v", init::mix(1.0 - depth, 0.3 * depth)),
            ("time_mix_g", init::mix(0.5 * (1.0 - depth), 0.0)),
        ];
        let mixes = Mixes::rows(d_model, names, true, vb)?;
        let decay = ParameterGroup::scale("time_decay", (h, n), init::decay(-6.0, 5.0, depth));
        let time_decay = vb.get_group(decay.lr_scale(2.0))?;
        let bonus = vb.get_f32((h, n), "time_faaaa", init::bonus(depth))?;
        let map = |name: &str, scale| {
            Linear::with_init(d_model, dim, false, init::matrix(scale, d_model), &vb.pp(name))
        };
        let maps = [map("receptance", 1.0)?, map("key", 0.1)?, map("value", 1.0)?, map("gate", 0.1)?];
        let heads = Heads::new((h, n, n), config.time_state, vb)?;
        let readout = Readout::new(d_model, (dim, n), config.norm_eps, depth, vb)?;
        let core = Core {
            kind: "rwkv5",
            d_model,
            heads,
            bonus,
            readout,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
        };
        let log_decay = settled(&time_decay).then(|| log_decay(&time_decay)).transpose()?;
        Ok(Self { mixes, maps, time_decay, log_decay, core })
    }

    fn project(&self, x: &Tensor, state: Option<&Tensor>, cu: Option<&[usize]>) -> Result<Projection> {
        let (mixed, last) = self.mixes.shift(x, None, state, cu)?;
        let [r, k, v, g] = [0, 1, 2, 3].map(|j| self.maps[j].forward(&mixed[j]));
        let decay = self.log_decay.clone().map_or_else(|| log_decay(&self.time_decay), Ok)?;
        let heads = &self.core.heads;
        Ok(Projection {
            r: heads.keys(&r?)?,
            k: heads.keys(&k?)?,
            v: heads.values(&v?)?,
            log_decay: every_token(&decay, x)?,
            gate: g?,
            last,
        })
    }
}

impl Rwkv5 {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        self.core.forward(x, ctx, &|x, state, cu| self.project(x, state, cu))
    }
}

impl Mixer for Rwkv5 {
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
