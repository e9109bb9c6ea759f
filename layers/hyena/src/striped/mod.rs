//! The convolution layer of StripedHyena (Poli et al. 2023; togethercomputer/stripedhyena).
//!
//! ```text
//! [x2 | x1 | v] = shortconv(projections u)
//! y = x2 ⊙ (h * (x1 ⊙ v) + D ⊙ (x1 ⊙ v))         h[t] = Re Σ_n R_n p_n^t          out = out_filter_dense y
//! ```
//! The filter is the impulse response of a diagonal state space: prefill convolves, a token updates n numbers a channel,
//! exactly. As a matrix mixer, channel by channel: `M = D_{x2} T_h D_{x1}`, 2n-semiseparable.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input map | `projections.weight`, `projections.bias` | (3 d, d) |
//! | short convolution | `filter.short_filter_weight`, `filter.short_filter_bias` | (3 d, 1, k), oldest tap first |
//! | p, R | `filter.poles`, `filter.residues` | (d / groups, n, 1, 2): real and imaginary part; f32 |
//! | D | `filter.D` | (d) |
//! | output map | `out_filter_dense.weight`, `out_filter_dense.bias` | (d, d) |
//!
//! The reference leaves the initial poles open; here their time constants are log-uniform in [2, 1000] tokens and their
//! angles normal, so that the filters reach as far as those of a diagonal state space do.

mod config;

use crate::pieces::in_pieces;
use candle_core::{D, DType, Device, Result, Tensor};
pub use config::StripedHyenaConfig;
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, Rng, State, StateKind, VarBuilder,
};
use semisep_kernels::{CausalConv1d, causal_conv1d, causal_conv1d_update, state_dtype};

use crate::hyena::matrix::toeplitz;
use crate::modal::Modal;

const KIND: &str = "stripedhyena";

/// The layer.
pub struct StripedHyena {
    config: StripedHyenaConfig,
    d_model: usize,
    projections: Linear,
    short_weight: Tensor, // (3 d, k)
    short_bias: Option<Tensor>,
    modal: Modal,
    out: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

impl StripedHyena {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &StripedHyenaConfig, vb: &VarBuilder) -> Result<Self> {
        let (n, k, filter) = (config.state_size, config.short_filter_length, vb.pp("filter"));
        let systems = d_model / config.hyena_filter_groups;
        let projections = Linear::new(d_model, 3 * d_model, true, &vb.pp("projections"))?;
        let short = filter.get_f32((3 * d_model, 1, k), "short_filter_weight", Init::linear(k))?;
        let short_bias = config
            .short_filter_bias
            .then(|| filter.get_f32(3 * d_model, "short_filter_bias", Init::linear(k)))
            .transpose()?;
        let skip = filter.get_f32(d_model, "D", Init::ONES)?;
        let poles = filter.get_f32((systems, n, 1, 2), "poles", Init::custom(poles))?;
        let residues = Init::Normal { std: 0.1 / (n as f64).sqrt() };
        let residues = filter.get_f32((systems, n, 1, 2), "residues", residues)?;
        Ok(Self {
            config: config.clone(),
            d_model,
            projections,
            short_weight: short.squeeze(1)?,
            short_bias,
            modal: Modal::new(&poles.squeeze(2)?, &residues.squeeze(2)?, skip)?,
            out: Linear::new(d_model, d_model, true, &vb.pp("out_filter_dense"))?,
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    /// z (..., 3 d) -> x2, x1, v, each (..., d)
    fn split(&self, z: &Tensor) -> Result<[Tensor; 3]> {
        let d = self.d_model;
        if !self.config.column_split_hyena {
            let part = |i: usize| z.narrow(D::Minus1, i * d, d);
            return Ok([part(0)?, part(1)?, part(2)?]);
        }
        let (lead, heads) = (&z.dims()[..z.rank() - 1], self.config.num_attention_heads);
        let wide: Vec<usize> = lead.iter().copied().chain([heads, 3, d / heads]).collect();
        let flat: Vec<usize> = lead.iter().copied().chain([d]).collect();
        let z = z.reshape(wide)?;
        let part = |i: usize| z.narrow(z.rank() - 2, i, 1)?.reshape(flat.as_slice());
        Ok([part(0)?, part(1)?, part(2)?])
    }

    fn convolve(&self, u: &Tensor, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        in_pieces(u, ctx.initial("conv")?, ctx.cu_seqlens.is_some(), &|u, state| {
            causal_conv1d(CausalConv1d {
                x: &self.projections.forward(u)?,
                weight: &self.short_weight,
                bias: self.short_bias.as_ref(),
                silu: false,
                initial_state: state,
                cu_seqlens: ctx.cu_seqlens,
            })
        })
    }
}

/// Initial poles as pairs.
fn poles(shape: &[usize], rng: &mut Rng) -> Vec<f32> {
    let pairs = shape.iter().product::<usize>() / 2;
    let pole = |rng: &mut Rng| {
        let tau = rng.uniform(2f64.ln(), 1000f64.ln()).exp();
        let (radius, angle) = ((-1.0 / tau).exp(), 2.0 * rng.normal() / tau);
        [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
    };
    (0..pairs).flat_map(|_| pole(rng)).collect()
}

impl Mixer for StripedHyena {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let (z, conv) = self.convolve(u, ctx)?;
        let [x2, x1, v] = self.split(&z)?;
        let (x, ssm) = ((x1 * v)?, ctx.initial("ssm")?);
        // A state of zeros gives nothing, but its gradient may be asked for.
        let fresh =
            |s: &&Tensor| s.track_op() || ctx.state.as_ref().is_some_and(|s| s.seen().iter().any(|&n| n > 0));
        let y = self.modal.forward(&x, ssm.as_ref().filter(fresh), ctx.cu_seqlens)?;
        let ssm = ssm.map(|ssm| self.modal.advance(&ssm, &x, ctx.cu_seqlens)).transpose()?;
        drop((x, z)); // wide, and not needed any more
        let y = (y * x2)?;
        let out = self.out.forward(&y)?;
        if let Some(ssm) = ssm {
            ctx.leave(&[("conv", conv), ("ssm", ssm)], &lengths)?;
        }
        Ok(out)
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = u.dims2()?;
        state.check(KIND, b)?;
        let z = self.projections.forward(u)?;
        let bias = self.short_bias.as_ref();
        let z = causal_conv1d_update(state.get("conv")?, &z, &self.short_weight, bias, false)?;
        let [x2, x1, v] = self.split(&z)?;
        let y = self.modal.step(state.get("ssm")?, &(x1 * v)?)?;
        let out = self.out.forward(&(y * x2)?)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let shape = (batch, 3 * self.d_model, self.config.short_filter_length - 1);
        let dtype = state_dtype(self.dtype);
        let state =
            State::new(KIND, batch).with_zeros("conv", StateKind::Recurrent, shape, dtype, &self.device)?;
        self.modal.state(state, "ssm", self.d_model)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, d, size) = (batch * seqlen, self.d_model, self.dtype.size_in_bytes());
        let StripedHyenaConfig { state_size: n, short_filter_length: k, .. } = self.config;
        let linears = Cost::linear(rows, d, 3 * d, true, size) + Cost::linear(rows, d, d, true, size);
        let points = 2 * seqlen.next_power_of_two();
        let transform = 5 * points * (points.ilog2() as usize) / 2;
        let long = d * (batch * (2 * transform + 3 * points) + transform) + 4 * d * n * seqlen;
        let state = batch * (3 * d * (k - 1) + 2 * d * n) * state_dtype(self.dtype).size_in_bytes();
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: linears.flops + (long + rows * (6 * k * d + 3 * d)) as u64,
            bytes: linears.bytes + (9 * rows * d * size) as u64,
            state_bytes: state as u64,
            kv_bytes: 0,
        }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    /// `M = D_{x2} T_h D_{x1}`, (b, d, l, l).
    fn matrix(&self, u: &Tensor) -> Result<Option<Mixing>> {
        let l = u.dims3()?.1;
        let (z, _) = self.convolve(u, &Context::default())?;
        let [x2, x1, v] = self.split(&z)?;
        let y = (self.modal.forward(&(&x1 * &v)?, None, None)? * &x2)?;
        let toeplitz = toeplitz(&self.modal.taps(l.max(1))?.t()?, self.modal.skip(), l)?;
        let channels = |t: &Tensor| t.transpose(1, 2)?.contiguous();
        let matrix = toeplitz
            .unsqueeze(0)?
            .broadcast_mul(&channels(&x2)?.unsqueeze(3)?)?
            .broadcast_mul(&channels(&x1)?.unsqueeze(2)?)?;
        let column = |t: &Tensor| channels(t)?.unsqueeze(3);
        Ok(Some(Mixing { matrix, values: column(&v)?, output: column(&y)? }))
    }
}
