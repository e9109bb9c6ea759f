//! S4 and S4D: a state-space model a channel, kept in continuous time.
//!
//! ```text
//! h' = A h + B u     y = 2 Re C h + D u                     of each pair of conjugate modes one is kept: (n) complex
//! S4D   A = diag(Λ)              Ā = e^(dt A), B̄ = (Ā - 1)/A B  (zoh), or bilinear
//! S4    A = diag(Λ) - P P*       Ā = (1 - dt/2 A)⁻¹ (1 + dt/2 A), B̄ = (1 - dt/2 A)⁻¹ dt B
//! h_t = Ā h_{t-1} + B̄ u_t        y_t = 2 Re C h_t + D u_t
//! out = glu(output_linear(gelu(y)))
//! ```
//! As a matrix mixer, channel by channel: a Toeplitz matrix, `M[t,s] = 2 Re C Ā^(t-s) B̄ + D [t = s]`, 2n-semiseparable.
//! Forward and step use one discretisation. `rate` scales dt: one set of parameters serves any sampling rate.
//!
//! | symbol | parameter (`format = "block"`, below `layer`) | shape |
//! |---|---|---|
//! | dt | `kernel.inv_dt`, under `dt_transform` | (d, 1), or (d, n) with `dt_tie = false` |
//! | Λ | `-f(kernel.A_real) - i kernel.A_imag`, f is `real_transform` | (s, n), s = `n_ssm` systems |
//! | B, P | `kernel.B`, `kernel.P` | (1, s, n, 2), (r, s, n, 2) |
//! | C | `kernel.C` | (c, d, n, 2); 2 c with `bidirectional` |
//! | D | `D` | (c, d) |
//! | output map | `output_linear.0.weight`, `.bias` beside `layer` | (2 d, c d) with glu |
//!
//! `format = "minimal"`: the names of `s4d.py`, see [`Format`]. A second readout makes the filter two-sided
//! (`bidirectional`): it reads `u_{t+1}, u_{t+2}, ...` backwards, and the layer then has no state.
//! A C that was transformed for a length (`l_kernel`, see [`S4Config::l_kernel`]) runs through the generating function.
//!
//! Sources: Gu, Goel and Ré 2021 (S4, arXiv 2111.00396); Gu, Gupta, Goel and Ré 2022 (S4D, arXiv 2206.11893);
//! state-spaces/s4 `models/s4/s4.py` and `s4d.py`.

mod config;
mod dplr;
mod hermitian;
mod hippo;
mod matrix;
mod output;
mod start;
mod system;

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Tensor, bail};
use config::Options;
pub use config::{DiagInit, Format, Pointwise, S4Config, S4dConfig, Transform};
pub use hippo::Hippo;
use output::Output;
use semisep_core::{Context, Cost, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder};
use semisep_kernels::{LongConv, ModalScan, long_conv, modal_filter, modal_scan, modal_update, state_dtype};
use system::{Discrete, Parameters};

/// The layer, of either kind.
pub struct S4 {
    options: Options,
    d_model: usize,
    parameters: Parameters,
    /// What the parameters stand for, where they are fixed.
    discrete: OnceLock<Arc<Discrete>>,
    /// `None` for bare banks of outputs.
    output: Option<Output>,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

impl S4 {
    /// S4 with the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &S4Config, vb: &VarBuilder) -> Result<Self> {
        Self::build(d_model, config.options(), true, vb)
    }

    /// S4D with the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn diagonal(d_model: usize, config: &S4dConfig, vb: &VarBuilder) -> Result<Self> {
        Self::build(d_model, config.options(), true, vb)
    }

    /// As many outputs a channel as banks, with nothing after them: (b, l, d) -> (b, l, banks, d).
    pub(crate) fn banks(d_model: usize, banks: usize, options: Options, vb: &VarBuilder) -> Result<Self> {
        let options = Options { channels: banks, activation: Pointwise::None, ..options };
        Self::build(d_model, options, false, vb)
    }

    fn build(d_model: usize, options: Options, finished: bool, vb: &VarBuilder) -> Result<Self> {
        let parameters = Parameters::new(d_model, options.clone(), vb)?;
        let output = finished.then(|| Output::new(d_model, &options, vb)).transpose()?;
        Ok(Self {
            options,
            d_model,
            parameters,
            discrete: OnceLock::new(),
            output,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    /// The system in steps, kept if the parameters are fixed.
    fn discrete(&self) -> Result<Arc<Discrete>> {
        if let Some(known) = self.discrete.get() {
            return Ok(known.clone());
        }
        let discrete = Arc::new(self.parameters.discrete()?);
        if !self.parameters.tracked() {
            // Another thread may have been first; both are the same.
            let _ = self.discrete.set(discrete.clone());
        }
        Ok(discrete)
    }

    /// The first `length` taps of all filters without the skips, (readouts, d, length) in f64. The readouts of a
    /// two-sided filter that look ahead come last, nearest tap first.
    ///
    /// # Errors
    /// If a parameter makes the state grow.
    pub fn kernel(&self, length: usize) -> Result<Tensor> {
        if length <= self.parameters.period() {
            return self.parameters.generated(length);
        }
        modal_filter(&self.discrete()?.view(), length)
    }

    /// C as `l_kernel = length` expects it, `C (1 - Ā^length)`: (readouts, d, n, 2) in f64.
    ///
    /// # Errors
    /// If the system is diagonal, or `length` is 0.
    pub fn transformed_readout(&self, length: usize) -> Result<Tensor> {
        self.parameters.transformed(length)
    }

    /// y (b, l, c, d) by the convolution, of sequences no longer than `longest`.
    fn convolve(&self, u: &Tensor, longest: usize, cu_seqlens: Option<&[usize]>) -> Result<Tensor> {
        let (filters, ahead) = self.filters(longest)?;
        let skip = self.parameters.skip();
        let outputs = (0..self.options.outputs()).map(|k| {
            let (filter, skip) = (filters.get(k)?, skip.get(k)?);
            long_conv(&LongConv { bias: Some(&skip), ahead, cu_seqlens, ..LongConv::new(u, &filter) })
        });
        Tensor::stack(&outputs.collect::<Result<Vec<_>>>()?, 2)
    }

    /// Filters (c, d, lk) without the skips, and how many taps of each look ahead.
    fn filters(&self, length: usize) -> Result<(Tensor, usize)> {
        let kernel = self.kernel(length)?;
        if !self.options.bidirectional {
            return Ok((kernel, 0));
        }
        let c = self.options.outputs();
        let turned: Vec<u32> = (0..length as u32).rev().collect();
        let turned = Tensor::new(turned, kernel.device())?;
        let ahead = kernel.narrow(0, c, c)?.contiguous()?.index_select(&turned, 2)?;
        Ok((Tensor::cat(&[&ahead, &kernel.narrow(0, 0, c)?], 2)?, length))
    }

    fn finish(&self, y: &Tensor) -> Result<Tensor> {
        self.output.as_ref().map_or_else(|| Ok(y.clone()), |output| output.forward(y))
    }

    fn check_width(&self, u: &Tensor) -> Result<()> {
        let width = u.dim(candle_core::D::Minus1)?;
        if width != self.d_model {
            bail!("{}: the input is {width} wide, expected {}", self.options.kind, self.d_model);
        }
        Ok(())
    }
}

impl Mixer for S4 {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        self.check_width(u)?;
        let lengths = ctx.check(self.options.kind, b, l)?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let two_sided = self.options.bidirectional;
        if two_sided && ctx.state.is_some() {
            bail!("{}: a bidirectional layer has no state to go on from", self.options.kind);
        }
        let generated = longest <= self.parameters.period() && ctx.state.is_none();
        if longest > 0 && (two_sided || generated) {
            return self.finish(&self.convolve(u, longest, ctx.cu_seqlens)?);
        }
        if two_sided {
            let shape = (b, l, self.options.outputs(), self.d_model);
            return self.finish(&Tensor::zeros(shape, u.dtype(), u.device())?);
        }
        let (y, state) = modal_scan(&ModalScan {
            u,
            system: self.discrete()?.view(),
            initial_state: ctx.initial("ssm")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
        })?;
        let out = self.finish(&y)?;
        ctx.leave(&[("ssm", state)], &lengths)?;
        Ok(out)
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        if self.options.bidirectional {
            bail!("{}: a bidirectional layer reads later tokens and cannot step", self.options.kind);
        }
        let (b, _) = u.dims2()?;
        self.check_width(u)?;
        let state = ctx.state_mut()?;
        state.check(self.options.kind, b)?;
        let y = modal_update(state.get("ssm")?, u, &self.discrete()?.view())?; // (b, c, d)
        let out = self.finish(&y)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn causal(&self) -> bool {
        !self.options.bidirectional
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let state = State::new(self.options.kind, batch);
        if self.options.bidirectional {
            return Ok(state);
        }
        let shape = (batch, self.d_model, self.options.modes(), 2);
        state.with_zeros("ssm", StateKind::Recurrent, shape, state_dtype(self.dtype), &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, d, n, c) = (batch * seqlen, self.d_model, self.options.modes(), self.options.readouts());
        let rank = self.parameters.rank();
        let size = self.dtype.size_in_bytes();
        let map = self.output.as_ref().map_or_else(Cost::default, |o| o.cost(rows, size));
        // A mode and token: the pole 6, the input 4, each rank 8, each readout 4.
        let scan = d * (n * (10 + 8 * rank + 4 * c) + 2 * c);
        let state =
            if self.causal() { 2 * batch * d * n * state_dtype(self.dtype).size_in_bytes() } else { 0 };
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: map.flops + rows as u64 * scan as u64,
            bytes: map.bytes + (rows * d * (1 + c) * size) as u64,
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
