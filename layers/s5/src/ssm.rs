//! The state-space model itself: parameters, discretisation, scan and readout; one bank of outputs or several.

use std::sync::OnceLock;

use candle_core::{D, DType, Device, Result, Tensor, bail};
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder,
};
use semisep_kernels::{
    DiagonalScan, MimoScan, diagonal_scan, diagonal_state_update, linear, mimo_scan, state_dtype,
};

use crate::complex::Complex;
use crate::config::{Discretization, Intervals, S5Config};
use crate::{KIND, init, matrix};

/// Under this name a caller leaves the time before each token, (b, l, 1).
const INTERVALS: &str = "intervals";

/// Tokens that inference takes at a time where the time between them varies: bounds the memory of inputs and states.
const CHUNK: usize = 4096;

/// The core of an S5 layer.
pub(crate) struct Core {
    pub(crate) config: S5Config,
    d_model: usize,
    banks: Option<usize>,
    lambda_re: Tensor, // (P)
    lambda_im: Tensor, // (P)
    log_step: Tensor,  // (P)
    b: Tensor,         // (P, d, 2)
    c: Vec<Tensor>,    // (banks d, P, 2) for each direction
    d: Tensor,         // (d) or (banks, d)
    dt_proj: Option<Linear>,
    discrete: OnceLock<Discrete>,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// What parameters become before they meet tokens.
#[derive(Clone)]
struct Discrete {
    /// Continuous eigenvalues times step sizes, and the eigenvalues.
    rate: Complex,
    lambda: Complex,
    /// Exponentials or their bilinear likeness, (2, P).
    lambda_bar: Tensor,
    /// The input map as a real matrix, (2 P, d): discretised, or not yet where each token has a step size of its own.
    b: Tensor,
    /// The output maps as real matrices, (banks d, 2 P), a direction each.
    c: Vec<Tensor>,
}

impl Core {
    pub(crate) fn new(
        d_model: usize,
        config: &S5Config,
        banks: Option<usize>,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let (p, outputs) = (config.held(), banks.unwrap_or(1) * d_model);
        let dynamics = |name: &str, shape: &[usize], init: Init| {
            vb.get_group(ParameterGroup::scale(name, shape, init).lr_scale(config.ssm_lr_scale))
        };
        let readout = |name: &str, states: usize| {
            let shape: Vec<usize> = banks.into_iter().chain([d_model, states, 2]).collect();
            vb.get(shape, name, init::c(config))?.reshape((outputs, states, 2))
        };
        let halves = |t: &Tensor| -> Result<Vec<Tensor>> { Ok(vec![t.narrow(1, 0, p)?, t.narrow(1, p, p)?]) };
        let apart = config.c_init != crate::CInit::ComplexNormal;
        let d_shape: Vec<usize> = banks.into_iter().chain([d_model]).collect();
        Ok(Self {
            lambda_re: dynamics("Lambda_re", &[p], Init::Const(-0.5))?,
            lambda_im: dynamics("Lambda_im", &[p], init::lambda_im(config))?,
            log_step: dynamics("log_step", &[p, 1], init::log_step(config))?.squeeze(1)?,
            b: dynamics("B", &[p, d_model, 2], init::b(config))?,
            c: match (config.bidirectional, apart) {
                (false, _) => vec![readout("C", p)?],
                (true, true) => vec![readout("C1", p)?, readout("C2", p)?],
                (true, false) => halves(&readout("C", 2 * p)?)?,
            },
            d: vb.get_f32(d_shape, "D", Init::Normal { std: 1.0 })?,
            dt_proj: (config.dt == Intervals::Projected)
                .then(|| -> Result<_> {
                    let vb = vb.pp("dt_proj");
                    let weight = vb.get((1, d_model), "weight", Init::Normal { std: 0.02 })?;
                    // softplus(bias) = 1
                    let bias = vb.get_f32(1, "bias", Init::Const((std::f64::consts::E - 1.0).ln()))?;
                    Ok(Linear::from_tensors(weight, Some(bias)))
                })
                .transpose()?,
            discrete: OnceLock::new(),
            groups: vb.groups(),
            config: config.clone(),
            d_model,
            banks,
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    /// Computed once where nothing is trained.
    fn discrete(&self) -> Result<Discrete> {
        if let Some(discrete) = self.discrete.get() {
            return Ok(discrete.clone());
        }
        let discrete = self.discretize()?;
        let trained = [&self.lambda_re, &self.lambda_im, &self.log_step, &self.b];
        if !trained.into_iter().chain(&self.c).any(Tensor::track_op) {
            let _ = self.discrete.set(discrete.clone());
        }
        Ok(discrete)
    }

    /// Small tensors, in f64: angles of fast modes and differences of slow ones lose digits in f32.
    fn discretize(&self) -> Result<Discrete> {
        let (config, work) = (&self.config, state_dtype(self.dtype));
        let mut re = self.lambda_re.to_dtype(DType::F64)?;
        if config.clip_eigs {
            re = re.minimum(-1e-4)?;
        }
        let lambda = Complex { re, im: self.lambda_im.to_dtype(DType::F64)? };
        let step = (self.log_step.to_dtype(DType::F64)?.exp()? * config.step_rescale)?;
        let rate = lambda.scale(&step)?;
        let (lambda_bar, gain) = self.discrete_pair(&lambda, &rate, &step)?;
        let b = Complex::from_pairs(&self.b)?;
        let b = if config.dt == Intervals::Fixed {
            let gain = gain.to_dtype(work)?;
            Complex { re: gain.re.unsqueeze(1)?, im: gain.im.unsqueeze(1)? }.mul(&b)?
        } else {
            b
        };
        let factor = if config.conj_sym { 2.0 } else { 1.0 };
        let readout = |c: &Tensor| -> Result<Tensor> {
            let c = Complex::from_pairs(&c.to_dtype(work)?)?;
            Tensor::cat(&[(c.re * factor)?, (c.im * -factor)?], 1)?.contiguous()
        };
        Ok(Discrete {
            lambda_bar: lambda_bar.planes()?.to_dtype(work)?,
            b: Tensor::cat(&[&b.re, &b.im], 0)?.contiguous()?,
            c: self.c.iter().map(readout).collect::<Result<_>>()?,
            rate: rate.to_dtype(work)?,
            lambda: lambda.to_dtype(work)?,
        })
    }

    /// `Λ̄` and the factor that makes `B̄` of `B`, from `Λ`, `Λ Δ` and `Δ`.
    fn discrete_pair(&self, lambda: &Complex, rate: &Complex, step: &Tensor) -> Result<(Complex, Complex)> {
        match self.config.discretization {
            Discretization::Zoh => {
                let (bar, less_one) = rate.exp()?;
                let inverse = lambda.recip()?;
                Ok((bar, less_one.mul(&inverse)?))
            }
            Discretization::Bilinear => {
                let inverse = rate.affine(-0.5, 1.0)?.recip()?;
                Ok((inverse.mul(&rate.affine(0.5, 1.0)?)?, inverse.scale(step)?))
            }
        }
    }

    /// The time before each token of u (.., d), as (.., 1), if it is not the same everywhere.
    fn intervals(&self, u: &Tensor, ctx: &Context<'_>) -> Result<Option<Tensor>> {
        match (self.config.dt, &self.dt_proj) {
            (Intervals::Given, _) => {
                let given = ctx.received(INTERVALS)?;
                let mut want = u.dims().to_vec();
                if let Some(last) = want.last_mut() {
                    *last = 1;
                }
                if given.dims() != want {
                    bail!(
                        "{KIND}: `{INTERVALS}` has shape {:?}, expected {want:?}, as the input",
                        given.dims()
                    );
                }
                given.to_dtype(state_dtype(self.dtype)).map(Some)
            }
            (_, Some(dt_proj)) => semisep_core::softplus(&dt_proj.forward(u)?).map(Some),
            _ => Ok(None),
        }
    }

    /// Decays and inputs of the scan for u (.., d): (2, P) or (.., 2, P), and (.., 2, P).
    fn drive(&self, u: &Tensor, intervals: Option<&Tensor>, discrete: &Discrete) -> Result<(Tensor, Tensor)> {
        let p = self.config.held();
        let mut shape = u.dims().to_vec();
        shape.pop();
        shape.extend([2, p]);
        let bu = linear(u, &discrete.b, None)?.reshape(shape)?; // (.., 2, P)
        let Some(intervals) = intervals else { return Ok((discrete.lambda_bar.clone(), bu)) };
        let rate = discrete.rate.scale(intervals)?; // (.., P)
        let step = (self.log_step.to_dtype(rate.re.dtype())?.exp()? * self.config.step_rescale)?;
        let (bar, gain) = self.discrete_pair(&discrete.lambda, &rate, &intervals.broadcast_mul(&step)?)?;
        let plane = |k| bu.narrow(D::Minus2, k, 1)?.squeeze(D::Minus2);
        let x = gain.mul(&Complex { re: plane(0)?, im: plane(1)? })?;
        Ok((bar.planes()?, x.planes()?))
    }

    /// `Λ̄` (P, 2) and `B̄` (P, d, 2), real and imaginary parts along the last axis.
    pub(crate) fn discretized(&self) -> Result<(Tensor, Tensor)> {
        let (discrete, p) = (self.discrete()?, self.config.held());
        let b = Tensor::stack(&[discrete.b.narrow(0, 0, p)?, discrete.b.narrow(0, p, p)?], 2)?;
        Ok((discrete.lambda_bar.t()?, b))
    }

    /// Inputs of the scan as the layer gives them to its kernel, for one input and no state.
    pub(crate) fn scan_inputs(&self, u: &Tensor, ctx: &Context<'_>) -> Result<(Tensor, Tensor)> {
        let u = u.to_dtype(state_dtype(self.dtype))?;
        self.drive(&u, self.intervals(&u, ctx)?.as_ref(), &self.discrete()?)
    }

    /// u (b, l, d) -> y (b, l, banks d), `D u` included, and the final state; the same time between all tokens.
    fn run(
        &self,
        u: &Tensor,
        initial: Option<&Tensor>,
        cu_seqlens: Option<&[usize]>,
        discrete: &Discrete,
    ) -> Result<(Tensor, Tensor)> {
        let d = self.d.flatten_all()?;
        let forth = MimoScan {
            skip: Some(&d),
            initial_state: initial,
            cu_seqlens,
            ..MimoScan::new(u, &discrete.lambda_bar, &discrete.b, &discrete.c[0])
        };
        let (mut y, last) = mimo_scan(&forth)?;
        self.check_finite(&last)?;
        if let Some(c) = discrete.c.get(1) {
            let back = MimoScan { output: c, skip: None, reverse: true, initial_state: None, ..forth };
            let (other, last) = mimo_scan(&back)?;
            self.check_finite(&last)?;
            y = (y + other)?;
        }
        Ok((y, last))
    }

    /// [`Core::run`] where the time between tokens varies, without `D u`.
    fn run_irregular(
        &self,
        u: &Tensor,
        intervals: &Tensor,
        initial: Option<&Tensor>,
        cu_seqlens: Option<&[usize]>,
        discrete: &Discrete,
    ) -> Result<(Tensor, Tensor)> {
        let (a, x) = self.drive(u, Some(intervals), discrete)?;
        let scan = DiagonalScan { initial_state: initial, cu_seqlens, ..DiagonalScan::new(&a, &x) };
        let (h, last) = diagonal_scan(&scan)?;
        self.check_finite(&last)?;
        let mut y = linear(&h.flatten_from(2)?, &discrete.c[0], None)?;
        if let Some(c) = discrete.c.get(1) {
            let (h, last) = diagonal_scan(&DiagonalScan { reverse: true, initial_state: None, ..scan })?;
            self.check_finite(&last)?;
            y = (y + linear(&h.flatten_from(2)?, c, None)?)?;
        }
        Ok((y, last))
    }

    /// [`Core::run_irregular`], piece by piece where nothing is trained.
    fn run_in_chunks(
        &self,
        u: &Tensor,
        intervals: &Tensor,
        initial: Option<&Tensor>,
        cu_seqlens: Option<&[usize]>,
        discrete: &Discrete,
    ) -> Result<(Tensor, Tensor)> {
        let l = u.dim(1)?;
        let (mut state, mut outputs) = (initial.cloned(), Vec::new());
        for start in (0..l).step_by(CHUNK) {
            let len = CHUNK.min(l - start);
            let (piece, intervals) = (u.narrow(1, start, len)?, intervals.narrow(1, start, len)?);
            // Of packed sequences, what lies within the piece: the others keep their states.
            let within = |cu: &[usize]| cu.iter().map(|c| c.clamp(&start, &(start + len)) - start).collect();
            let cu: Option<Vec<usize>> = cu_seqlens.map(within);
            let (y, last) =
                self.run_irregular(&piece, &intervals, state.as_ref(), cu.as_deref(), discrete)?;
            outputs.push(y);
            state = Some(last);
        }
        match state {
            Some(state) => Ok((Tensor::cat(&outputs, 1)?, state)),
            None => self.run_irregular(u, intervals, initial, cu_seqlens, discrete),
        }
    }

    /// `y + D u`, banks side by side as in y.
    fn add_skip(&self, y: &Tensor, u: &Tensor) -> Result<Tensor> {
        let banks = Tensor::cat(&vec![u; self.banks.unwrap_or(1)], D::Minus1)?;
        y + banks.broadcast_mul(&self.d.flatten_all()?)?
    }

    /// y (.., banks d), banks apart where there are banks, in this dtype.
    fn finish(&self, y: &Tensor, dtype: DType) -> Result<Tensor> {
        let y = match self.banks {
            None => y.clone(),
            Some(banks) => {
                let mut shape = y.dims().to_vec();
                shape.pop();
                shape.extend([banks, self.d_model]);
                y.reshape(shape)?
            }
        };
        y.to_dtype(dtype)
    }

    /// An eigenvalue with a positive real part grows without bounds: says so instead of handing infinities on.
    fn check_finite(&self, state: &Tensor) -> Result<()> {
        let values = state.detach().abs()?.flatten_all()?;
        if values.elem_count() == 0 || values.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?.is_finite() {
            // A NaN may hide behind the largest number: sums do not hide it.
            if values.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?.is_finite() {
                return Ok(());
            }
        }
        let re = self.lambda_re.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let im = self.lambda_im.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        for (i, (re, im)) in re.iter().zip(&im).enumerate() {
            let stable = *re < 0.0 && im.is_finite();
            let allowed = stable || (self.config.clip_eigs && re.is_finite());
            if !allowed {
                bail!(
                    "{KIND}: the state is not finite: Lambda_re[{i}] is {re}, expected a negative number, as the \
                     state grows by its exponential: set `clip_eigs = true`, or train with a lower rate"
                );
            }
        }
        Ok(())
    }

    fn causal_only(&self, what: &str) -> Result<()> {
        if self.config.bidirectional {
            bail!("{KIND}: a bidirectional layer sees the whole sequence and has no {what}");
        }
        Ok(())
    }
}

impl Mixer for Core {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        if ctx.state.is_some() {
            self.causal_only("state to go on from")?;
        }
        let lengths = ctx.check(KIND, b, l)?;
        let (dtype, discrete) = (u.dtype(), self.discrete()?);
        let u = u.to_dtype(state_dtype(self.dtype))?;
        let intervals = self.intervals(&u, ctx)?;
        let initial = ctx.initial("ssm")?;
        let (y, last) = match &intervals {
            None => self.run(&u, initial.as_ref(), ctx.cu_seqlens, &discrete)?,
            Some(intervals) => {
                let tracked =
                    [Some(&u), Some(intervals), initial.as_ref(), Some(&discrete.b), discrete.c.first()]
                        .into_iter()
                        .flatten()
                        .any(Tensor::track_op);
                let whole = tracked || l <= CHUNK || self.config.bidirectional;
                let (y, last) = if whole {
                    self.run_irregular(&u, intervals, initial.as_ref(), ctx.cu_seqlens, &discrete)?
                } else {
                    self.run_in_chunks(&u, intervals, initial.as_ref(), ctx.cu_seqlens, &discrete)?
                };
                (self.add_skip(&y, &u)?, last)
            }
        };
        let y = self.finish(&y, dtype)?;
        ctx.leave(&[("ssm", last)], &lengths)?;
        Ok(y)
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        self.causal_only("steps")?;
        let (b, _) = u.dims2()?;
        ctx.state_mut()?.check(KIND, b)?;
        let (dtype, discrete) = (u.dtype(), self.discrete()?);
        let u = u.to_dtype(state_dtype(self.dtype))?;
        let (a, x) = self.drive(&u, self.intervals(&u, ctx)?.as_ref(), &discrete)?;
        let state = ctx.state_mut()?;
        let h = diagonal_state_update(state.get("ssm")?, &a, &x)?;
        self.check_finite(&h)?;
        let y = linear(&h.flatten_from(1)?, &discrete.c[0], None)?;
        let y = self.finish(&self.add_skip(&y, &u)?, dtype)?;
        state.advance(&vec![1; b]);
        Ok(y)
    }

    fn causal(&self) -> bool {
        !self.config.bidirectional
    }

    fn receives(&self) -> Vec<(&'static str, usize)> {
        if self.config.dt == Intervals::Given { vec![(INTERVALS, 1)] } else { Vec::new() }
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let state = State::new(KIND, batch);
        if self.config.bidirectional {
            return Ok(state);
        }
        let (shape, dtype) = ((batch, 2, self.config.held()), state_dtype(self.dtype));
        state.with_zeros("ssm", StateKind::Recurrent, shape, dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, d, p) = (batch * seqlen, self.d_model, self.config.held());
        let (outputs, directions) = (self.banks.unwrap_or(1) * d, self.c.len());
        // Input map, complex multiply-adds, readout, skip; the projected step size beside them.
        let token = 4 * p * d
            + directions * (8 * p + 4 * p * outputs)
            + 2 * outputs
            + if self.dt_proj.is_some() { 2 * d + 20 * p } else { 0 };
        let size = state_dtype(self.dtype).size_in_bytes();
        let parameters: u64 = self.groups.iter().map(|g| g.elements() as u64).sum();
        Cost {
            parameters,
            flops: rows as u64 * token as u64,
            bytes: parameters * self.dtype.size_in_bytes() as u64
                + (rows * (d + outputs + (1 + 2 * directions) * 2 * p) * size) as u64,
            state_bytes: if self.config.bidirectional { 0 } else { (batch * 2 * p * size) as u64 },
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
