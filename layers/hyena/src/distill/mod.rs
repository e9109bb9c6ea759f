//! Hyena at constant cost a token: its filters as sums of modes (Massaroli et al. 2023, "Laughing Hyena Distillery").
//!
//! Every channel's filter is fitted over all of l_max by a stable method in f64; the error is reported, and is the
//! measured one. The distilled layer is a layer like any other, with the same input and output maps.

mod fit;
mod linalg;

use candle_core::{DType, Device, Result, Tensor, bail};
use fit::Fit;
use semisep_core::{Context, Cost, Init, Mixer, Mixing, ParameterGroup, State};
use semisep_kernels::state_dtype;

use crate::Hyena;
use crate::hyena::Frame;
use crate::hyena::matrix::toeplitz;
use crate::modal::Modal;

const KIND: &str = "hyena-distilled";

/// How near the modes come to the filters they stand for.
#[derive(Debug, Clone, PartialEq)]
pub struct Distillation {
    /// Modes a channel.
    pub modes: usize,
    /// RMS of the difference over RMS of the filter, over l_max taps, for each channel of each convolution.
    pub errors: Vec<f64>,
    /// The same over all channels together.
    pub error: f64,
}

/// A Hyena layer whose filters are sums of modes.
pub struct DistilledHyena {
    frame: Frame,
    modes: usize,
    convolutions: Vec<Modal>,
    groups: Vec<ParameterGroup>,
}

impl Hyena {
    /// The layer with its filters replaced by sums of `modes` modes, for inference, and how near they come.
    ///
    /// # Errors
    /// If `modes` is 0, or memory cannot be had.
    pub fn distill(&self, modes: usize) -> Result<(DistilledHyena, Distillation)> {
        if modes == 0 {
            bail!("hyena: expected at least 1 mode to distill to, found 0");
        }
        let (d, order) = (self.frame.d_model, self.frame.order);
        let taps = self.taps(self.config.l_max)?.detach().t()?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let fits = fit_all(&taps, modes);
        let mut convolutions = Vec::with_capacity(order - 1);
        let dtype = state_dtype(self.frame.dtype);
        for (o, fits) in fits.chunks(d).enumerate() {
            let pairs = |part: fn(&Fit) -> &[linalg::C]| -> Result<Tensor> {
                let values = fits.iter().flat_map(part).flat_map(|c| [c.re, c.im]).collect::<Vec<f64>>();
                Tensor::from_vec(values, (d, modes, 2), &Device::Cpu)?
                    .to_dtype(dtype)?
                    .to_device(&self.frame.device)
            };
            let skip = self.bias().narrow(0, o * d, d)?.detach();
            convolutions.push(Modal::new(&pairs(|f| &f.poles)?, &pairs(|f| &f.residues)?, skip)?);
        }
        let relative = |(error, scale): (f64, f64)| if error == 0.0 { 0.0 } else { (error / scale).sqrt() };
        let total = fits.iter().fold((0.0, 0.0), |sum, f| (sum.0 + f.error.0, sum.1 + f.error.1));
        let errors = fits.iter().map(|f| relative(f.error)).collect();
        let layer = DistilledHyena {
            frame: self.frame.clone(),
            modes,
            convolutions,
            groups: self.distilled_groups(modes),
        };
        Ok((layer, Distillation { modes, errors, error: relative(total) }))
    }

    /// The parameters of the distilled layer.
    fn distilled_groups(&self, modes: usize) -> Vec<ParameterGroup> {
        let kept = |g: &ParameterGroup| !g.name.contains("filter_fn.") || g.name.ends_with("filter_fn.bias");
        let mut groups: Vec<ParameterGroup> = self.parameter_groups().into_iter().filter(kept).collect();
        let width = (self.frame.order - 1) * self.frame.d_model;
        let prefix =
            groups.iter().find_map(|g| g.name.strip_suffix("filter_fn.bias")).unwrap_or("").to_owned();
        for name in ["filter_fn.poles", "filter_fn.residues"] {
            let name = format!("{prefix}{name}");
            groups.push(ParameterGroup::scale(&name, (width, modes, 2), Init::ZEROS));
        }
        groups
    }
}

/// A fit of each filter, on all cores.
fn fit_all(filters: &[Vec<f64>], modes: usize) -> Vec<Fit> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let share = filters.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let fit = |part: &[Vec<f64>]| part.iter().map(|h| fit::fit(h, modes)).collect::<Vec<_>>();
        let work: Vec<_> = filters.chunks(share).map(|part| scope.spawn(move || fit(part))).collect();
        let done =
            work.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        done.flatten().collect()
    })
}

impl DistilledHyena {
    /// The filters, (len, (order - 1) d), as [`Hyena::taps`] gives the original's.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn taps(&self, len: usize) -> Result<Tensor> {
        let taps = self.convolutions.iter().map(|c| c.taps(len.max(1))).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&taps, 0)?.narrow(1, 0, len)?.t()
    }

    /// Each convolution's part of the state.
    fn part(&self, ssm: &Tensor, o: usize) -> Result<Tensor> {
        ssm.narrow(1, o * self.frame.d_model, self.frame.d_model)
    }
}

impl Mixer for DistilledHyena {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let (z, conv) = self.frame.project(u, ctx)?;
        let (ssm, cu_seqlens) = (ctx.initial("ssm")?, ctx.cu_seqlens);
        let mut states = Vec::new();
        let (y, _) = self.frame.gated(&z, |o, v| {
            let state = ssm.as_ref().map(|s| self.part(s, o)).transpose()?;
            if let Some(state) = &state {
                states.push(self.convolutions[o].advance(state, v, cu_seqlens)?);
            }
            self.convolutions[o].forward(v, state.as_ref(), cu_seqlens)
        })?;
        let out = self.frame.finish(&y)?;
        if !states.is_empty() {
            ctx.leave(&[("conv", conv), ("ssm", Tensor::cat(&states, 1)?)], &lengths)?;
        }
        Ok(out)
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = u.dims2()?;
        state.check(KIND, b)?;
        let z = self.frame.project_step(u, state)?;
        let (ssm, mut states) = (state.get("ssm")?, Vec::new());
        let (y, _) = self.frame.gated(&z, |o, v| {
            // The state itself, or a copy where several convolutions' states lie between each other.
            let part = self.part(ssm, o)?.contiguous()?;
            let y = self.convolutions[o].step(&part, &v.squeeze(1)?)?;
            states.push(part);
            y.unsqueeze(1)
        })?;
        let out = self.frame.finish(&y.squeeze(1)?)?;
        state.set("ssm", Tensor::cat(&states, 1)?)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let state = self.frame.new_state(KIND, batch)?;
        match self.convolutions.first() {
            Some(modal) => modal.state(state, "ssm", self.convolutions.len() * self.frame.d_model),
            None => Ok(state),
        }
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, width) = (batch * seqlen, self.convolutions.len() * self.frame.d_model);
        let frame = self.frame.cost(batch, seqlen);
        let size = state_dtype(self.frame.dtype).size_in_bytes();
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: frame.flops + (rows * width * (12 * self.modes + 2)) as u64,
            bytes: frame.bytes + (2 * rows * width * size) as u64,
            state_bytes: frame.state_bytes + (2 * batch * width * self.modes * size) as u64,
            ..frame
        }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    /// As Hyena's, of the distilled filters.
    fn matrix(&self, u: &Tensor) -> Result<Option<Mixing>> {
        let (b, l, d) = u.dims3()?;
        let (z, _) = self.frame.project(u, &Context::default())?;
        let (y, _) = self.frame.gated(&z, |o, v| self.convolutions[o].forward(v, None, None))?;
        let channels = |t: &Tensor| t.transpose(1, 2)?.contiguous()?.unsqueeze(3);
        let order = self.frame.order;
        let part = |i: usize| channels(&z.narrow(2, i * d, d)?);
        let mut matrix = Tensor::eye(l, z.dtype(), z.device())?.broadcast_as((b, d, l, l))?.contiguous()?;
        for (o, modal) in self.convolutions.iter().enumerate() {
            let toeplitz = toeplitz(&modal.taps(l.max(1))?.t()?, modal.skip(), l)?;
            matrix = matrix.broadcast_mul(&part(order - 1 - o)?)?;
            matrix = toeplitz.broadcast_left(b)?.contiguous()?.matmul(&matrix)?;
        }
        let matrix = matrix.broadcast_mul(&part(0)?)?;
        Ok(Some(Mixing { matrix, values: part(order)?, output: channels(&y)? }))
    }
}
