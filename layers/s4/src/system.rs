//! The parameters of the state space, and the discrete system that they stand for, all in f64.

use candle_core::{D, DType, Result, Tensor, bail};
use semisep_core::{Complex, Init, ParameterGroup, VarBuilder, softplus};
use semisep_kernels::{DplrKernel, ModalSystem, dplr_kernel};

use crate::config::{Format, Options, Start, Transform};
use crate::{dplr, start};

/// Parameters as they are kept.
pub(crate) struct Parameters {
    options: Options,
    d_model: usize,
    dt: Tensor,               // (d, 1) or (d, n)
    a_real: Tensor,           // (s, n)
    a_imag: Tensor,           // (s, n)
    b: Option<Tensor>,        // (s, n, 2)
    c: Tensor,                // (c, d, n, 2)
    low_rank: Option<Tensor>, // (r, s, n, 2)
    skip: Tensor,             // (c, d), of one direction
}

/// The system in continuous time, for every channel.
pub(crate) struct Continuous {
    /// (d, 1) or (d, n)
    pub(crate) dt: Tensor,
    /// (d, n)
    pub(crate) a: Complex,
    /// (d, n)
    pub(crate) b: Complex,
    /// (r, d, n)
    pub(crate) p: Option<Complex>,
}

/// The system in steps.
pub(crate) struct Discrete {
    pub(crate) poles: Tensor,                      // (d, n, 2)
    pub(crate) input: Tensor,                      // (d, n, 2)
    pub(crate) output: Tensor,                     // (c, d, n, 2)
    pub(crate) low_rank: Option<(Tensor, Tensor)>, // (r, d, n, 2)
    pub(crate) skip: Tensor,                       // (c, d)
}

impl Discrete {
    pub(crate) fn view(&self) -> ModalSystem<'_> {
        ModalSystem {
            poles: &self.poles,
            input: &self.input,
            output: &self.output,
            low_rank: self.low_rank.as_ref().map(|(p, q)| (p, q)),
            skip: Some(&self.skip),
        }
    }
}

impl Parameters {
    pub(crate) fn new(d_model: usize, options: Options, vb: &VarBuilder) -> Result<Self> {
        let (n, d, c, s) = (options.modes(), d_model, options.readouts(), options.systems(d_model));
        let (start, minimal) = (options.start, options.format != Format::Block);
        let own = |vb: &VarBuilder, name: &str, shape: &[usize], init: Init| {
            vb.get_group(ParameterGroup::scale(name, shape, init).lr_scale(options.lr_scale))
        };
        // C learns as the weights of the model do.
        let readout = |vb: &VarBuilder, shape: &[usize]| {
            let group =
                ParameterGroup { weight_decay: true, ..ParameterGroup::scale("C", shape, start::c()) };
            vb.get_group(group)?.reshape((c, d, n, 2))
        };
        let outputs = options.outputs();
        let normal = Init::Normal { std: 1.0 };
        if minimal {
            let kernel = vb.pp("kernel");
            let banks = |shape: &[usize], count: usize| match count {
                1 => shape.to_vec(),
                _ => [&[count], shape].concat(),
            };
            let with_b = options.format == Format::MinimalB;
            return Ok(Self {
                dt: own(&kernel, "log_dt", &[d], start::dt(&options))?.unsqueeze(1)?,
                a_real: own(&kernel, "log_A_real", &[d, n], start::a_real(&options))?,
                a_imag: own(&kernel, "A_imag", &[d, n], start::a_imag(start, false))?,
                b: with_b.then(|| own(&kernel, "B", &[d, n, 2], start::b(start))).transpose()?,
                c: readout(&kernel, &banks(&[d, n, 2], c))?,
                low_rank: None,
                skip: vb.get_f32(banks(&[d], outputs), "D", normal)?.reshape((outputs, d))?,
                options,
                d_model,
            });
        }
        let (layer, kernel) = (vb.pp("layer"), vb.pp("layer").pp("kernel"));
        let low_rank = match start {
            Start::Diagonal(_) => None,
            Start::LowRank { hippo, rank } => Some(own(&kernel, "P", &[rank, s, n, 2], start::p(hippo))?),
        };
        Ok(Self {
            dt: own(&kernel, "inv_dt", &[d, if options.dt_tie { 1 } else { n }], start::dt(&options))?,
            a_real: own(&kernel, "A_real", &[s, n], start::a_real(&options))?,
            a_imag: own(&kernel, "A_imag", &[s, n], start::a_imag(start, true))?,
            b: Some(own(&kernel, "B", &[1, s, n, 2], start::b(start))?.squeeze(0)?),
            c: readout(&kernel, &[c, d, n, 2])?,
            low_rank,
            skip: layer.get_f32((outputs, d), "D", normal)?,
            options,
            d_model,
        })
    }

    /// Whether any of them is a variable, so that nothing made from them can be kept.
    pub(crate) fn tracked(&self) -> bool {
        let all = [&self.dt, &self.a_real, &self.a_imag, &self.c, &self.skip];
        all.into_iter().chain(&self.b).chain(&self.low_rank).any(Tensor::track_op)
    }

    /// Rank of the correction to the diagonal.
    pub(crate) fn rank(&self) -> usize {
        self.low_rank.as_ref().map_or(0, |p| p.dims()[0])
    }

    /// D, (c, d).
    pub(crate) fn skip(&self) -> &Tensor {
        &self.skip
    }

    /// Systems (.., s, n) as those of the channels, (.., d, n): channel i has system i mod s.
    fn spread(&self, t: &Tensor) -> Result<Tensor> {
        let (dims, d) = (t.dims(), self.d_model);
        let (lead, &[s, n]) = dims.split_at(dims.len() - 2) else { return Ok(t.clone()) };
        let with = |middle: &[usize]| lead.iter().chain(middle).copied().collect::<Vec<_>>();
        t.unsqueeze(D::Minus(3))?.broadcast_as(with(&[d / s.max(1), s, n]))?.reshape(with(&[d, n]))
    }

    pub(crate) fn continuous(&self) -> Result<Continuous> {
        let (o, wide) = (&self.options, |t: &Tensor| t.to_dtype(DType::F64));
        let dt = positive(&wide(&self.dt)?, o.dt_transform, o.kind, "dt")?.affine(o.rate, 0.0)?;
        let re = positive(&wide(&self.a_real)?, o.real_transform, o.kind, "-Re A")?.neg()?;
        let im = match o.format {
            Format::Block => wide(&self.a_imag)?.neg()?,
            Format::Minimal | Format::MinimalB => wide(&self.a_imag)?,
        };
        let a = Complex { re, im }.map(|t| self.spread(t))?;
        let pairs = |t: &Tensor| Complex::from_pairs(t, DType::F64)?.map(|t| self.spread(t));
        let b = match &self.b {
            Some(b) => pairs(b)?,
            None => Complex { re: a.re.ones_like()?, im: a.im.zeros_like()? },
        };
        Ok(Continuous { dt, a, b, p: self.low_rank.as_ref().map(pairs).transpose()? })
    }

    pub(crate) fn discrete(&self) -> Result<Discrete> {
        let system = self.continuous()?;
        let skip = self.skip.to_dtype(DType::F64)?;
        // A two-sided filter has two readouts an output; the skip belongs to the first.
        let skip = match self.options.bidirectional {
            true => Tensor::cat(&[&skip, &skip.zeros_like()?], 0)?,
            false => skip,
        };
        let output = self.c.to_dtype(DType::F64)?;
        let Some(p) = &system.p else {
            let (pole, gain) = self.options.disc.apply(&system.a, &system.dt)?;
            let input = gain.mul(&system.b)?.to_pairs()?;
            return Ok(Discrete { poles: pole.to_pairs()?, input, output, low_rank: None, skip });
        };
        let steps = dplr::Steps::new(&system, p)?;
        let output = match self.period() {
            0 => output,
            period => dplr::untransform(&output, &steps, period)?,
        };
        Ok(Discrete {
            poles: steps.poles.to_pairs()?,
            input: steps.input.to_pairs()?,
            output,
            low_rank: Some((steps.left.to_pairs()?, steps.right.to_pairs()?)),
            skip,
        })
    }

    /// For how many steps C is kept transformed; 0 if it is not.
    pub(crate) fn period(&self) -> usize {
        (self.options.l_kernel as f64 / self.options.rate).round() as usize
    }

    /// The first `length` taps of every filter without the skips, (c, d, length), by the generating function; at most
    /// [`Parameters::period`].
    pub(crate) fn generated(&self, length: usize) -> Result<Tensor> {
        let system = self.continuous()?;
        let c = Complex::from_pairs(&self.c, DType::F64)?;
        let (left, right) = match &system.p {
            Some(p) => (join(&system.b, Some(p))?, join_all(&c, &p.conj()?)?),
            None => (join(&system.b, None)?, c),
        };
        dplr_kernel(&DplrKernel {
            poles: &system.a.scale(&system.dt)?.to_pairs()?,
            left: &left.scale(&system.dt)?.to_pairs()?,
            right: &right.to_pairs()?,
            period: self.period(),
            length,
        })
    }

    /// C as it is after the transform for `length`, (c, d, n, 2).
    pub(crate) fn transformed(&self, length: usize) -> Result<Tensor> {
        let system = self.continuous()?;
        match &system.p {
            Some(p) => dplr::transform(&self.c.to_dtype(DType::F64)?, &dplr::Steps::new(&system, p)?, length),
            None => bail!("{}: only a low-rank correction has its C transformed", self.options.kind),
        }
    }
}

/// One system's row, then the rows of the correction: (1 + r, d, n).
fn join(b: &Complex, p: Option<&Complex>) -> Result<Complex> {
    let b = b.map(|t| t.unsqueeze(0))?;
    p.map_or_else(|| Ok(b.clone()), |p| join_all(&b, p))
}

fn join_all(a: &Complex, b: &Complex) -> Result<Complex> {
    Ok(Complex { re: Tensor::cat(&[&a.re, &b.re], 0)?, im: Tensor::cat(&[&a.im, &b.im], 0)? })
}

/// A positive number from its parameter.
fn positive(t: &Tensor, transform: Transform, kind: &str, name: &str) -> Result<Tensor> {
    match transform {
        Transform::Exp => t.exp(),
        Transform::Softplus => softplus(t),
        Transform::Relu => t.relu()? + 1e-4,
        Transform::Sigmoid => (t.neg()?.exp()? + 1.0)?.recip(),
        Transform::None => {
            let smallest = t.flatten_all()?.min(0)?.to_scalar::<f64>()?;
            if smallest.is_nan() || smallest <= 0.0 {
                bail!(
                    "{kind}: {name} is {smallest}, expected a positive number: the state would grow without bound; \
                     keep it under a transform (\"exp\")"
                );
            }
            Ok(t.clone())
        }
    }
}
