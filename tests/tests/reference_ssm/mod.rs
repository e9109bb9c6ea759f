//! S4D and S5 by their recurrence, token by token: several outputs of one state.
#![allow(clippy::unwrap_used, reason = "tests")]

use candle_core::{DType, Device, Result, Tensor, bail};
use semisep_core::{
    Context, Cost, Init, Issue, Mixer, MixerConfig, Mixing, ParameterGroup, State, StateKind, VarBuilder,
};

/// Which of the two, and how many modes.
#[derive(Debug, Clone)]
pub(crate) struct ReferenceSsm {
    s5: bool,
    modes: usize,
}

impl ReferenceSsm {
    /// As a record says.
    pub(crate) fn new(config: &serde_json::Value) -> Self {
        assert_eq!(config["discretization"], "zoh");
        let s5 = match config["ssm"].as_str() {
            Some("s4d") => false,
            Some("s5") => true,
            other => panic!("ssm {other:?}"),
        };
        Self { s5, modes: config["d_state"].as_u64().unwrap() as usize }
    }
}

impl MixerConfig for ReferenceSsm {
    fn kind(&self) -> &'static str {
        "reference"
    }
    fn check(&self, _: usize) -> Vec<Issue> {
        vec![]
    }
    fn build(&self, _: usize, _: VarBuilder) -> Result<Box<dyn Mixer>> {
        bail!("only banks are recorded")
    }
    fn build_banks(&self, d: usize, banks: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        let n = self.modes;
        let get = |shape: &[usize], name| vb.get_f32(shape, name, Init::ZEROS);
        let (a, dt) = match self.s5 {
            true => ((get(&[n], "Lambda_re")?, get(&[n], "Lambda_im")?), get(&[n], "log_step")?.exp()?),
            false => {
                let re = get(&[d, n], "log_A_real")?.exp()?.neg()?;
                ((re, get(&[d, n], "A_imag")?), get(&[d], "log_dt")?.exp()?.unsqueeze(1)?)
            }
        };
        let b = get(&if self.s5 { [n, d, 2] } else { [d, n, 2] }, "B")?;
        let c = get(&[banks, d, n, 2], "C")?;
        let skip = get(&[banks, d], "D")?;
        Ok(Box::new(Recurrence {
            s5: self.s5,
            a,
            dt,
            b: split(&b)?,
            c: split(&c)?,
            skip,
            d,
            n,
            dtype: vb.dtype(),
        }))
    }
    fn to_json(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

type Complex = (Tensor, Tensor);

fn split(t: &Tensor) -> Result<Complex> {
    let last = t.rank() - 1;
    Ok((t.narrow(last, 0, 1)?.squeeze(last)?, t.narrow(last, 1, 1)?.squeeze(last)?))
}

fn times(a: &Complex, b: &Complex) -> Result<Complex> {
    let re = (a.0.broadcast_mul(&b.0)? - a.1.broadcast_mul(&b.1)?)?;
    Ok((re, (a.0.broadcast_mul(&b.1)? + a.1.broadcast_mul(&b.0)?)?))
}

struct Recurrence {
    s5: bool,
    a: Complex, // (d, n) or (n)
    dt: Tensor, // (d, 1) or (n)
    b: Complex, // (d, n) or (n, d)
    c: Complex, // (banks, d, n)
    skip: Tensor,
    d: usize,
    n: usize,
    dtype: DType,
}

impl Recurrence {
    /// Zero-order hold: the decay, and the factor of the input.
    fn discrete(&self) -> Result<(Complex, Complex)> {
        let size = self.a.0.broadcast_mul(&self.dt)?.exp()?;
        let angle = self.a.1.broadcast_mul(&self.dt)?;
        let decay = ((&size * angle.cos()?)?, (&size * angle.sin()?)?);
        let norm = (self.a.0.sqr()? + self.a.1.sqr()?)?;
        let inverse = ((&self.a.0 / &norm)?, (self.a.1.neg()? / &norm)?);
        let gain = times(&((&decay.0 - 1.0)?, decay.1.clone()), &inverse)?;
        let gain = if self.s5 { (gain.0.unsqueeze(1)?, gain.1.unsqueeze(1)?) } else { gain };
        Ok((decay, times(&gain, &self.b)?))
    }

    /// One token u (b, d): the new state (b, d, n) or (b, n), and (b, banks, d).
    fn token(
        &self,
        u: &Tensor,
        h: &Complex,
        (decay, gain): &(Complex, Complex),
    ) -> Result<(Complex, Tensor)> {
        let input = match self.s5 {
            true => (u.matmul(&gain.0.t()?)?, u.matmul(&gain.1.t()?)?),
            false => {
                let u = u.unsqueeze(2)?;
                (u.broadcast_mul(&gain.0)?, u.broadcast_mul(&gain.1)?)
            }
        };
        let h = times(h, decay)?;
        let h = ((h.0 + input.0)?, (h.1 + input.1)?);
        let wide = |t: &Tensor| if self.s5 { t.unsqueeze(1)?.unsqueeze(1) } else { t.unsqueeze(1) };
        let y = times(&(wide(&h.0)?, wide(&h.1)?), &self.c)?.0.sum(3)?;
        Ok((h, ((y * 2.0)? + u.unsqueeze(1)?.broadcast_mul(&self.skip)?)?))
    }
}

impl Mixer for Recurrence {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check("reference", b, l)?;
        let h = ctx.initial("h")?.map_or_else(|| self.new_state(b)?.get("h").cloned(), Ok)?;
        let (mut h, discrete) = (split(&h)?, self.discrete()?);
        let mut outputs = Vec::new();
        for t in 0..l {
            let (next, y) = self.token(&x.narrow(1, t, 1)?.squeeze(1)?, &h, &discrete)?;
            h = next;
            outputs.push(y);
        }
        ctx.leave(&[("h", Tensor::stack(&[&h.0, &h.1], h.0.rank())?)], &lengths)?;
        Tensor::stack(&outputs, 1)
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        self.forward(&x.unsqueeze(1)?, ctx)?.squeeze(1)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let shape = if self.s5 { vec![batch, self.n, 2] } else { vec![batch, self.d, self.n, 2] };
        State::new("reference", batch).with_zeros("h", StateKind::Recurrent, shape, self.dtype, &Device::Cpu)
    }

    fn cost(&self, _: usize, _: usize) -> Cost {
        Cost::default()
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        vec![]
    }

    fn matrix(&self, _: &Tensor) -> Result<Option<Mixing>> {
        Ok(None)
    }
}
