//! Hyena (Poli et al. 2023, arXiv 2302.10866), as in HyenaDNA (Nguyen et al. 2023).
//!
//! ```text
//! [x_0 | x_1 | ... | x_{N-1} | v] = shortconv(in_proj u)                         N = order
//! v ← h_o * (x_{N-1-o} ⊙ v) + bias_o ⊙ (x_{N-1-o} ⊙ v)     for o = 0 .. N-2      (definition 3.1)
//! out = out_proj (x_0 ⊙ v)
//! ```
//! As a matrix mixer, channel by channel: `M = D_{x_0} T_{N-2} D_{x_1} ... T_0 D_{x_{N-1}}`: Toeplitz matrices of the
//! filters between diagonal ones of the gates.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input map | `in_proj.weight`, `in_proj.bias` | ((N+1) d, d) |
//! | short convolution | `short_filter.weight`, `short_filter.bias` | ((N+1) d, 1, 3), oldest tap first |
//! | h | `filter_fn.implicit_filter.K.{weight, bias, freq}`, `.pos_emb.{z, t}`, `.modulation.deltas` | of l_max positions |
//! | bias | `filter_fn.bias` | ((N-1) d) |
//! | output map | `out_proj.weight`, `out_proj.bias` | (d, d) |
//!
//! A convolution's state is all it has seen: a token costs a pass over the history. [`Hyena::distill`] gives constant
//! cost for an approximation.

mod config;
mod filter;
pub(crate) mod matrix;

use crate::pieces::in_pieces;
use candle_core::{D, DType, Device, Result, Tensor, bail};
pub use config::HyenaConfig;
use filter::ImplicitFilter;
use semisep_core::{
    Context, Cost, Distilled, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder,
};
use semisep_kernels::{CausalConv1d, LongConv, causal_conv1d, causal_conv1d_update, long_conv, state_dtype};

const KIND: &str = "hyena";

/// The layer.
pub struct Hyena {
    pub(crate) config: HyenaConfig,
    pub(crate) frame: Frame,
    filter: ImplicitFilter,
    groups: Vec<ParameterGroup>,
}

/// What stands around the long convolutions: maps, short convolution, gates.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) d_model: usize,
    pub(crate) order: usize,
    in_proj: Linear,
    short_weight: Tensor, // ((N+1) d, k)
    short_bias: Tensor,   // ((N+1) d)
    out_proj: Linear,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
}

impl Hyena {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &HyenaConfig, vb: &VarBuilder) -> Result<Self> {
        let (order, k) = (config.order, config.short_filter_order);
        let width = (order + 1) * d_model;
        let short = vb.pp("short_filter");
        let frame = Frame {
            d_model,
            order,
            in_proj: Linear::new(d_model, width, true, &vb.pp("in_proj"))?,
            short_weight: short.get_f32((width, 1, k), "weight", Init::linear(k))?.squeeze(1)?,
            short_bias: short.get_f32(width, "bias", Init::linear(k))?,
            out_proj: Linear::new(d_model, d_model, true, &vb.pp("out_proj"))?,
            dtype: vb.dtype(),
            device: vb.device().clone(),
        };
        let filter = ImplicitFilter::new((order - 1) * d_model, config, &vb.pp("filter_fn"))?;
        Ok(Self { config: config.clone(), frame, filter, groups: vb.groups() })
    }

    /// The long filters, (len, (order - 1) d): tap by tap, the convolutions' channels one after the other, in the order
    /// in which they are applied. Without the bias, which acts on the present input.
    ///
    /// # Errors
    /// If `len` is 0 or more than l_max.
    pub fn taps(&self, len: usize) -> Result<Tensor> {
        self.check_length(len)?;
        self.filter.taps(len)
    }

    /// The factors on the present input, ((order - 1) d).
    pub fn bias(&self) -> &Tensor {
        &self.filter.bias
    }

    fn check_length(&self, len: usize) -> Result<()> {
        let l_max = self.config.l_max;
        if len > l_max {
            bail!(
                "{KIND}: the sequence reaches {len} tokens, and the filter l_max = {l_max}: take shorter sequences, or a \
                 model trained with a longer l_max"
            );
        }
        Ok(())
    }

    /// The filters as far as the longest sequence reaches.
    fn reaching(&self, seen: &[usize], lengths: &[usize]) -> Result<Tensor> {
        let longest = seen.iter().zip(lengths).map(|(s, l)| s + l).max().unwrap_or(0);
        self.check_length(longest)?;
        self.filter.taps(longest.max(1))
    }

    /// Gates and long convolutions of z (b, l, (N+1) d). Gives y (b, l, d), before the output map, and the convolutions'
    /// inputs (b, l, (N-1) d).
    fn operate(
        &self,
        z: &Tensor,
        taps: &Tensor,
        history: Option<&Tensor>,
        seen: &[usize],
        cu_seqlens: Option<&[usize]>,
    ) -> Result<(Tensor, Tensor)> {
        let d = self.frame.d_model;
        self.frame.gated(z, |o, v| {
            let past = history.map(|h| h.narrow(2, o * d, d)).transpose()?;
            long_conv(&LongConv {
                bias: Some(&self.filter.bias.narrow(0, o * d, d)?),
                history: past.as_ref(),
                history_lengths: past.is_some().then_some(seen),
                cu_seqlens,
                ..LongConv::new(v, &taps.narrow(1, o * d, d)?.t()?)
            })
        })
    }
}

impl Frame {
    /// The input map and the short convolution of u (b, l, d), and what it leaves.
    pub(crate) fn project(&self, u: &Tensor, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        in_pieces(u, ctx.initial("conv")?, ctx.cu_seqlens.is_some(), &|u, state| {
            causal_conv1d(CausalConv1d {
                x: &self.in_proj.forward(u)?,
                weight: &self.short_weight,
                bias: Some(&self.short_bias),
                silu: false,
                initial_state: state,
                cu_seqlens: ctx.cu_seqlens,
            })
        })
    }

    /// The same for one token, (b, d) -> (b, 1, (N+1) d).
    pub(crate) fn project_step(&self, u: &Tensor, state: &State) -> Result<Tensor> {
        let z = self.in_proj.forward(u)?;
        causal_conv1d_update(state.get("conv")?, &z, &self.short_weight, Some(&self.short_bias), false)?
            .unsqueeze(1)
    }

    /// The recurrence of gates and convolutions over z (b, l, (N+1) d): `convolve(o, v)` is the o-th of them. Gives
    /// y (b, l, d) and the convolutions' inputs (b, l, (N-1) d).
    pub(crate) fn gated(
        &self,
        z: &Tensor,
        mut convolve: impl FnMut(usize, &Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let (d, order) = (self.d_model, self.order);
        let part = |i: usize| z.narrow(D::Minus1, i * d, d);
        let (mut v, mut inputs) = (part(order)?, Vec::with_capacity(order - 1));
        for o in 0..order - 1 {
            let gated = (v * part(order - 1 - o)?)?;
            v = convolve(o, &gated)?;
            inputs.push(gated);
        }
        Ok(((v * part(0)?)?, Tensor::cat(&inputs, D::Minus1)?))
    }

    pub(crate) fn finish(&self, y: &Tensor) -> Result<Tensor> {
        self.out_proj.forward(y)
    }

    /// A state with the short convolution's window.
    pub(crate) fn new_state(&self, kind: &'static str, batch: usize) -> Result<State> {
        let (width, k) = self.short_weight.dims2()?;
        let dtype = state_dtype(self.dtype);
        State::new(kind, batch).with_zeros(
            "conv",
            StateKind::Recurrent,
            (batch, width, k - 1),
            dtype,
            &self.device,
        )
    }

    /// Cost of maps, short convolution and gates, without parameters.
    pub(crate) fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, d, size) = (batch * seqlen, self.d_model, self.dtype.size_in_bytes());
        let (width, k) = ((self.order + 1) * d, self.short_weight.elem_count() / ((self.order + 1) * d));
        let linears = Cost::linear(rows, d, width, true, size) + Cost::linear(rows, d, d, true, size);
        Cost {
            parameters: 0,
            flops: linears.flops + (rows * (2 * k * width + self.order * d)) as u64,
            bytes: linears.bytes + (2 * rows * width * size) as u64,
            state_bytes: (batch * width * (k - 1) * state_dtype(self.dtype).size_in_bytes()) as u64,
            kv_bytes: 0,
        }
    }
}

impl Mixer for Hyena {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let seen = ctx.state.as_ref().map_or_else(|| vec![0; lengths.len()], |s| s.seen().to_vec());
        // First, as making them takes room, too.
        let taps = self.reaching(&seen, &lengths)?;
        let (z, conv) = self.frame.project(u, ctx)?;
        let history = ctx.initial("v")?.filter(|_| seen.iter().any(|&s| s > 0));
        let (y, inputs) = self.operate(&z, &taps, history.as_ref(), &seen, ctx.cu_seqlens)?;
        drop((z, taps));
        let out = self.frame.finish(&y)?;
        if let Some(state) = ctx.state.as_deref_mut() {
            state.append("v", &inputs, &lengths)?;
        }
        ctx.leave(&[("conv", conv)], &lengths)?;
        Ok(out)
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = u.dims2()?;
        state.check(KIND, b)?;
        let (seen, lengths) = (state.seen().to_vec(), vec![1; b]);
        let taps = self.reaching(&seen, &lengths)?;
        let z = self.frame.project_step(u, state)?;
        let history = seen.iter().any(|&s| s > 0).then(|| state.get("v")).transpose()?;
        let (y, inputs) = self.operate(&z, &taps, history, &seen, None)?;
        let out = self.frame.finish(&y.squeeze(1)?)?;
        state.append("v", &inputs, &lengths)?;
        state.advance(&lengths);
        Ok(out)
    }

    fn distilled(&self, modes: usize) -> Result<Option<Distilled>> {
        let (layer, report) = self.distill(modes)?;
        let worst = report.errors.iter().copied().fold(0.0, f64::max);
        Ok(Some(Distilled { mixer: Box::new(layer), error: report.error, worst }))
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let width = (self.config.order - 1) * self.frame.d_model;
        self.frame.new_state(KIND, batch)?.with_zeros(
            "v",
            StateKind::Cache { limit: None },
            (batch, 0, width),
            self.filter.dtype(),
            &self.frame.device,
        )
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, width) = (batch * seqlen, (self.config.order - 1) * self.frame.d_model);
        let points = 2 * seqlen.next_power_of_two();
        // Three transforms of 2l points (2.5 n log2 n each), of which the filter's is shared by the batch.
        let transform = 5 * points * (points.ilog2() as usize) / 2;
        let long = width * (batch * (2 * transform + 3 * points) + transform);
        let frame = self.frame.cost(batch, seqlen);
        let size = state_dtype(self.frame.dtype).size_in_bytes();
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: frame.flops + (long + 2 * seqlen * self.filter.work()) as u64,
            bytes: frame.bytes + (width * (2 * rows + seqlen) * size) as u64,
            kv_bytes: (rows * width * size) as u64,
            ..frame
        }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, u: &Tensor) -> Result<Option<Mixing>> {
        matrix::mixing(self, u).map(Some)
    }
}
