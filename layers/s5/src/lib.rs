//! S5: one multi-input, multi-output diagonal state-space model a layer (Smith, Warrington & Linderman 2023,
//! arXiv 2208.04933).
//!
//! ```text
//! x_k = Λ̄ ⊙ x_{k-1} + B̄ u_k                             x: (P) complex
//! y_k = 2 Re(C x_k) + D ⊙ u_k                            (without the 2 where both halves of the pairs are held)
//! Λ̄ = exp(Λ Δ)                       B̄ = Λ⁻¹ (Λ̄ - 1) B   zero-order hold, eq. 6
//! Λ̄ = (1 + Λ Δ/2) / (1 - Λ Δ/2)      B̄ = Δ / (1 - Λ Δ/2) B                 bilinear
//! ```
//! As a matrix mixer: `Y = Σ_p M_p ⊗ (2 Re C_p B̄_p)`, `M_p[t,s] = Λ̄_p^(t-s)`: every mode is 1-semiseparable.
//! The scan is the associative one of section 2.2; bidirectional layers add a second one from the end, with the same
//! `Λ̄` and `B̄` and an output map of its own.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | Λ | `Lambda_re`, `Lambda_im` | (P), f32; P = d_state / 2 with `conj_sym` |
//! | log Δ | `log_step` | (P, 1), f32 |
//! | B | `B` | (P, d, 2): real and imaginary part, f32 |
//! | C | `C`; `C1` and `C2` in both directions | (d, P, 2); (d, 2 P, 2) in both directions and complex normal |
//! | D | `D` | (d), f32 |
//! | gates | `out1.{kernel,bias}`, `out2.{kernel,bias}` | (d in, d out), (d) |
//! | norm | `norm.{scale,bias}` | (d), with `prenorm` |
//!
//! Names as in lindermanlab/S5, whose sequence layer has the model itself below `seq`; without activation and norm
//! there is no such prefix. Its batch norm is left out: rows of a batch do not touch each other here. Λ, Δ and B learn
//! at a rate of their own and without weight decay, as there. The step mode, which the reference lacks, is the
//! recurrence.

mod complex;
mod config;
mod hippo;
mod init;
mod matrix;
mod ssm;

use std::sync::OnceLock;

use candle_core::{Result, Tensor};
pub use config::{Activation, CInit, Discretization, Intervals, S5Config};
use semisep_core::{Context, Cost, Init, Mixer, Mixing, ParameterGroup, State, VarBuilder};
use semisep_kernels::{Activation as Function, activation, gated_activation, layer_norm, linear};

use crate::ssm::Core;

const KIND: &str = "s5";

/// The layer.
pub struct S5 {
    core: Core,
    config: S5Config,
    d_model: usize,
    out1: Option<Dense>,
    out2: Option<Dense>,
    norm: Option<(Tensor, Tensor)>, // scale, bias: (d)
    groups: Vec<ParameterGroup>,
}

impl S5 {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &S5Config, vb: &VarBuilder) -> Result<Self> {
        let core = if config.bare() { vb.clone() } else { vb.pp("seq") };
        let core = Core::new(d_model, config, None, &core)?;
        let dense =
            |name: &str, wanted: bool| wanted.then(|| Dense::new(d_model, d_model, &vb.pp(name))).transpose();
        let norm = |vb: VarBuilder| -> Result<(Tensor, Tensor)> {
            Ok((vb.get_f32(d_model, "scale", Init::ONES)?, vb.get_f32(d_model, "bias", Init::ZEROS)?))
        };
        Ok(Self {
            out1: dense("out1", config.activation == Activation::FullGlu)?,
            out2: dense("out2", !matches!(config.activation, Activation::Gelu | Activation::None))?,
            norm: config.prenorm.map(|_| norm(vb.pp("norm"))).transpose()?,
            groups: vb.groups(),
            config: config.clone(),
            core,
            d_model,
        })
    }

    /// The discrete system: `Λ̄` (P, 2) and `B̄` (P, d, 2), real and imaginary parts along the last axis. `B̄` is `B` where
    /// tokens have step sizes of their own.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn discretized(&self) -> Result<(Tensor, Tensor)> {
        self.core.discretized()
    }

    /// The layer around its model: norms, activation, residual connection.
    fn around(&self, u: &Tensor, model: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let norm = |x: &Tensor, wanted: bool| match &self.norm {
            Some((scale, bias)) if wanted => layer_norm(x, Some(scale), Some(bias), self.config.norm_eps),
            _ => Ok(x.clone()),
        };
        let pre = self.config.prenorm == Some(true);
        let y = self.activate(&model(&norm(u, pre)?)?)?;
        if self.norm.is_none() {
            return Ok(y);
        }
        norm(&(u + y)?, !pre)
    }

    /// `BatchedSequenceLayer` after its `seq`, without dropout.
    fn activate(&self, y: &Tensor) -> Result<Tensor> {
        if self.config.activation == Activation::None {
            return Ok(y.clone());
        }
        let g = activation(y, Function::GeluTanh)?;
        let Some(out2) = &self.out2 else { return Ok(g) };
        let gate = out2.forward(&g)?;
        let value = match (&self.out1, self.config.activation) {
            (Some(out1), _) => out1.forward(&g)?,
            (None, Activation::HalfGlu2) => y.clone(),
            (None, _) => g,
        };
        gated_activation(&value, &gate, Function::Sigmoid)
    }
}

impl Mixer for S5 {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        self.around(u, |x| self.core.forward(x, ctx))
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        self.around(u, |x| self.core.step(x, ctx))
    }

    fn causal(&self) -> bool {
        self.core.causal()
    }

    fn receives(&self) -> Vec<(&'static str, usize)> {
        self.core.receives()
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        self.core.new_state(batch)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, d) = (batch * seqlen, self.d_model);
        let core = self.core.cost(batch, seqlen);
        let maps = self.out1.iter().chain(&self.out2).count();
        let parameters = self.groups.iter().map(|g| g.elements() as u64).sum();
        Cost {
            parameters,
            flops: core.flops + (maps * 2 * rows * d * d) as u64 + 10 * (rows * d) as u64,
            bytes: core.bytes + (maps * (d * d + 2 * rows * d)) as u64 * 4,
            ..core
        }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, u: &Tensor) -> Result<Option<Mixing>> {
        let u = match (&self.norm, self.config.prenorm) {
            (Some((scale, bias)), Some(true)) => {
                layer_norm(u, Some(scale), Some(bias), self.config.norm_eps)?
            }
            _ => u.clone(),
        };
        self.core.matrix(&u)
    }
}

/// flax's `Dense`: `x kernel + bias`, the kernel (in, out).
struct Dense {
    kernel: Tensor,
    bias: Tensor,
    /// The kernel turned for the dense map, kept where it is not trained.
    turned: OnceLock<Tensor>,
}

impl Dense {
    fn new(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            kernel: vb.get((inputs, outputs), "kernel", Init::linear(inputs))?,
            bias: vb.get_f32(outputs, "bias", Init::ZEROS)?,
            turned: OnceLock::new(),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let turned = match self.turned.get() {
            Some(turned) => turned.clone(),
            None => {
                let turned = self.kernel.t()?.contiguous()?;
                if !self.kernel.track_op() {
                    let _ = self.turned.set(turned.clone());
                }
                turned
            }
        };
        linear(x, &turned, Some(&self.bias))
    }
}
