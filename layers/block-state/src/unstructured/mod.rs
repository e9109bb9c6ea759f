//! A long convolution whose filters are no state space: the unstructured variant of the Block-State Transformer.
//!
//! ```text
//! k_c[t] = exp(-α_c t) · Σ_f dense[c, f] pos_f(t)      pos(t) = (t', cos(2π φ t'), sin(2π φ t')...), t' = t / l_max
//! y[t, c] = Σ_{s≤t} k_c[t - s] u[s, c] + bias_c u[t, c]
//! ```
//! As a matrix mixer: every channel is a Toeplitz matrix. There is no step of constant work: the state is all that was
//! seen, and a token costs as much as there is of it.
//!
//! Source: Fathi et al. 2023 (arXiv 2306.09539), appendix; it leaves the embedding open, which here is that of Hyena (Poli
//! et al. 2023: frequencies φ from 1e-4 to the number of bands less one), and the decays, which start log-uniform with
//! time constants from 1 to l_max.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | α | `log_alpha` | (banks d) |
//! | dense | `dense.weight` | (banks d, f) |
//! | skip | `bias` | (banks d) |

mod config;

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor};
pub use config::UnstructuredConfig;
use semisep_core::{Context, Cost, Init, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder};
use semisep_kernels::{LongConv, long_conv, state_dtype};

const KIND: &str = "unstructured";

/// The layer; with several banks its output is (b, l, banks, d).
pub struct Unstructured {
    config: UnstructuredConfig,
    d_model: usize,
    banks: Option<usize>,
    log_alpha: Tensor, // (banks d)
    dense: Tensor,     // (banks d, f)
    bias: Tensor,      // (banks d)
    groups: Vec<ParameterGroup>,
    dtype: DType,
    cache_dtype: DType,
    device: Device,
    /// Filters (banks d, n) of parameters that are not being trained.
    known: Mutex<Option<Tensor>>,
}

impl Unstructured {
    /// With the parameters of `vb`; `banks` of filters over the same input.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(
        d_model: usize,
        banks: Option<usize>,
        config: &UnstructuredConfig,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let wide = banks.unwrap_or(1) * d_model;
        let longest = (config.l_max as f64).ln();
        let decays = Init::Uniform { lo: -longest, hi: 0.0 };
        Ok(Self {
            log_alpha: vb.get_f32(wide, "log_alpha", decays)?,
            dense: vb.pp("dense").get_f32((wide, config.emb_dim), "weight", Init::linear(config.emb_dim))?,
            bias: vb.get_f32(wide, "bias", Init::Normal { std: 1.0 })?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            cache_dtype: vb.activation_dtype(),
            device: vb.device().clone(),
            known: Mutex::new(None),
            config: config.clone(),
            d_model,
            banks,
        })
    }

    /// The filters for `n` tokens, (banks d, n).
    fn filters(&self, n: usize) -> Result<Tensor> {
        let trained = [&self.log_alpha, &self.dense].iter().any(|t| t.track_op());
        if trained {
            return self.generate(n);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|k| k.dims()[1] < n) {
            *known = Some(self.generate(n.next_power_of_two())?);
        }
        match &*known {
            Some(filters) => filters.narrow(1, 0, n),
            None => self.generate(n),
        }
    }

    fn generate(&self, n: usize) -> Result<Tensor> {
        let dtype = self.dense.dtype();
        let bands = (self.config.emb_dim - 1) / 2;
        let mut features = Vec::with_capacity(n * self.config.emb_dim);
        for t in 0..n {
            let time = t as f64 / self.config.l_max as f64;
            let angle = |i: usize| {
                let share = if bands > 1 { i as f64 / (bands - 1) as f64 } else { 0.0 };
                let frequency = 1e-4 + share * (bands as f64 - 1.0 - 1e-4);
                std::f64::consts::TAU * frequency * time
            };
            features.push(time);
            features.extend((0..bands).map(|i| angle(i).cos()));
            features.extend((0..bands).map(|i| angle(i).sin()));
        }
        let features = Tensor::from_vec(features, (n, self.config.emb_dim), &Device::Cpu)?.to_dtype(dtype)?;
        let times: Vec<f64> = (0..n).map(|t| t as f64).collect();
        let times = Tensor::from_vec(times, (1, n), &Device::Cpu)?.to_dtype(dtype)?;
        let decay = self.log_alpha.exp()?.neg()?.unsqueeze(1)?.broadcast_mul(&times)?.exp()?;
        self.dense.matmul(&features.t()?.contiguous()?)? * decay
    }

    /// Every bank's convolution of `x` (b, l, d) and what is before it: (b, l, banks, d), or (b, l, d) without banks.
    fn convolve(&self, x: &Tensor, ctx: &mut Context<'_>, lengths: &[usize]) -> Result<Tensor> {
        let seen = ctx.state.as_ref().map_or_else(|| vec![0; lengths.len()], |s| s.seen().to_vec());
        let longest = lengths.iter().zip(&seen).map(|(l, s)| l + s).max().unwrap_or(0).max(1);
        let filters = self.filters(longest)?;
        let history = ctx.initial("u")?.filter(|h| h.dims()[1] > 0);
        let history = history.map(|h| h.to_dtype(x.dtype())).transpose()?;
        let bank = |i: usize| {
            long_conv(&LongConv {
                bias: Some(&self.bias.narrow(0, i * self.d_model, self.d_model)?),
                history: history.as_ref(),
                history_lengths: history.as_ref().map(|_| seen.as_slice()),
                cu_seqlens: ctx.cu_seqlens,
                ..LongConv::new(x, &filters.narrow(0, i * self.d_model, self.d_model)?)
            })
        };
        match self.banks {
            None => bank(0),
            Some(banks) => Tensor::stack(&(0..banks).map(bank).collect::<Result<Vec<_>>>()?, 2),
        }
    }
}

impl Mixer for Unstructured {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let y = self.convolve(x, ctx, &lengths)?;
        if let Some(state) = ctx.state.as_deref_mut() {
            state.append("u", x, &lengths)?;
        }
        ctx.leave(&[], &lengths)?;
        Ok(y)
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, _) = x.dims2()?;
        ctx.state_mut()?.check(KIND, b)?;
        self.forward(&x.unsqueeze(1)?, ctx)?.squeeze(1)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let kind = StateKind::Cache { limit: None };
        State::new(KIND, batch).with_zeros(
            "u",
            kind,
            (batch, 0, self.d_model),
            self.cache_dtype,
            &self.device,
        )
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let wide = self.log_alpha.elem_count();
        let (rows, size) = (batch * seqlen, self.dtype.size_in_bytes());
        // Filters, and three FFTs of twice the length a channel.
        let transform = 5 * 2 * seqlen as u64 * u64::from((2 * seqlen).max(2).ilog2());
        let filters = 2 * (seqlen * wide * (self.config.emb_dim + 1)) as u64;
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: filters + 3 * batch as u64 * wide as u64 * transform,
            bytes: (rows * (self.d_model + wide) * size) as u64
                + (wide * seqlen * state_dtype(self.dtype).size_in_bytes()) as u64,
            state_bytes: 0,
            kv_bytes: (rows * self.d_model * self.cache_dtype.size_in_bytes()) as u64,
        }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    /// Channels are heads of one feature: (b, d, l, l).
    fn matrix(&self, x: &Tensor) -> Result<Option<Mixing>> {
        if self.banks.is_some() {
            return Ok(None);
        }
        let (b, l, d) = x.dims3()?;
        let output = self.forward(x, &mut Context::default())?;
        let filters = self.generate(l.max(1))?;
        let index: Vec<u32> = (0..l * l).map(|i| (i / l).saturating_sub(i % l) as u32).collect();
        let toeplitz = filters.index_select(&Tensor::new(index, x.device())?, 1)?.reshape((d, l, l))?;
        let lower = semisep_core::lower_triangle(l, toeplitz.dtype(), x.device())?;
        let skip = Tensor::eye(l, toeplitz.dtype(), x.device())?;
        let skip = self.bias.reshape((d, 1, 1))?.broadcast_mul(&skip.unsqueeze(0)?)?;
        let matrix = (toeplitz.broadcast_mul(&lower)? + skip)?.to_dtype(x.dtype())?;
        let per_channel = |t: &Tensor| t.transpose(1, 2)?.contiguous()?.unsqueeze(3); // (b, d, l, 1)
        Ok(Some(Mixing {
            matrix: matrix.unsqueeze(0)?.broadcast_as((b, d, l, l))?.contiguous()?,
            values: per_channel(x)?,
            output: per_channel(&output)?,
        }))
    }
}
