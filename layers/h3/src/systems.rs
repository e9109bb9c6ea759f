//! The two state spaces: the shift system of the keys, and the diagonal system of each head.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use candle_core::{D, DType, Result, Tensor};
use semisep_core::{Complex, Discretization, Init, ParameterGroup, VarBuilder};
use semisep_kernels::{LongConv, ModalSystem, long_conv};

use crate::{H3Config, H3Init};

/// Parameters as they are kept.
pub(crate) struct Parameters {
    shift_b: Tensor, // (d, N)
    shift_c: Tensor, // (d, N)
    shift_d: Tensor, // (d)
    dt: Tensor,      // (h, 1)
    a_real: Tensor,  // (t, n)
    a_imag: Tensor,  // (t, n)
    b: Tensor,       // (t, n, 2)
    c: Tensor,       // (1, h, n, 2)
    d: Tensor,       // (h)
    disc: Discretization,
}

/// What they stand for.
pub(crate) struct Systems {
    /// The shift system as a convolution, oldest tap first, (d, N).
    pub(crate) shift: Tensor,
    poles: Tensor,  // (h, n, 2) f64
    input: Tensor,  // (h, n, 2) f64
    output: Tensor, // (1, h, n, 2)
    skip: Tensor,   // (1, h)
}

impl Systems {
    pub(crate) fn diagonal(&self) -> ModalSystem<'_> {
        ModalSystem {
            poles: &self.poles,
            input: &self.input,
            output: &self.output,
            low_rank: None,
            skip: Some(&self.skip),
        }
    }
}

impl Parameters {
    pub(crate) fn new(d_model: usize, config: &H3Config, vb: &VarBuilder) -> Result<Self> {
        let (d, h, states) = (d_model, config.n_heads(d_model), config.d_state);
        let (n, systems) = (states / 2, config.n_ssm.unwrap_or(h));
        let own = |vb: &VarBuilder, name: &str, shape: &[usize], init: Init| {
            vb.get_group(ParameterGroup::scale(name, shape, init).lr_scale(config.lr_scale))
        };
        let readout = |vb: &VarBuilder, shape: &[usize], init: Init| {
            vb.get_group(ParameterGroup { weight_decay: true, ..ParameterGroup::scale("C", shape, init) })
        };
        let (shift, diagonal) = (vb.pp("ssm_k_kernel").pp("kernel"), vb.pp("kernel").pp("kernel"));
        let first = |shape: &[usize], width: usize| -> Vec<f32> {
            (0..shape.iter().product()).map(|i| if i % width == 0 { 1.0 } else { 0.0 }).collect()
        };
        let (lo, hi) = (config.dt_min.ln(), config.dt_max.ln());
        Ok(Self {
            shift_b: own(&shift, "B", &[d, states], Init::custom(move |shape, _| first(shape, states)))?,
            shift_c: readout(&shift, &[1, d, states], Init::linear(states))?.squeeze(0)?,
            shift_d: vb.get_f32(d, "ssm_k_D", Init::Normal { std: 1.0 })?,
            dt: own(&diagonal, "log_dt", &[h], Init::Uniform { lo, hi })?.unsqueeze(1)?,
            a_real: own(&diagonal, "inv_A_real", &[systems, n], Init::Const(0.5f64.ln()))?,
            a_imag: own(&diagonal, "A_imag", &[systems, n], frequencies(config.init))?,
            b: own(&diagonal, "B", &[systems, n, 2], Init::custom(move |shape, _| first(shape, 2)))?,
            c: readout(&diagonal, &[1, h, n, 2], Init::Normal { std: FRAC_1_SQRT_2 })?,
            d: vb.get_f32(h, "D", Init::Normal { std: 1.0 })?,
            disc: config.disc,
        })
    }

    /// Whether any of them is a variable, so that nothing made from them can be kept.
    pub(crate) fn tracked(&self) -> bool {
        let shift = [&self.shift_b, &self.shift_c, &self.shift_d];
        let diagonal = [&self.dt, &self.a_real, &self.a_imag, &self.b, &self.c, &self.d];
        shift.into_iter().chain(diagonal).any(Tensor::track_op)
    }

    pub(crate) fn systems(&self) -> Result<Systems> {
        let wide = |t: &Tensor| t.to_dtype(DType::F64);
        let (h, n) = (self.dt.dim(0)?, self.a_real.dim(1)?);
        // Head i has system i mod t.
        let spread = |t: &Tensor| {
            let systems = t.dim(0)?;
            t.unsqueeze(0)?.broadcast_as((h / systems.max(1), systems, n))?.reshape((h, n))
        };
        let a = Complex { re: wide(&self.a_real)?.exp()?.neg()?, im: wide(&self.a_imag)? }.map(spread)?;
        let (pole, gain) = self.disc.apply(&a, &wide(&self.dt)?.exp()?)?;
        let b = Complex::from_pairs(&self.b, DType::F64)?.map(spread)?;
        Ok(Systems {
            shift: self.shift()?,
            poles: pole.to_pairs()?,
            input: gain.mul(&b)?.to_pairs()?,
            output: wide(&self.c)?,
            skip: wide(&self.d)?.unsqueeze(0)?,
        })
    }

    /// The filter of the shift system, `K[j] = Σ_n B_n C_{n+j}` and D on the present token, oldest tap first.
    fn shift(&self) -> Result<Tensor> {
        let states = self.shift_b.dim(1)?;
        let turned = Tensor::new((0..states as u32).rev().collect::<Vec<_>>(), self.shift_b.device())?;
        let turn = |t: &Tensor| t.contiguous()?.index_select(&turned, 1);
        let (c, b) = (self.shift_c.t()?.unsqueeze(0)?, turn(&self.shift_b)?);
        let taps = long_conv(&LongConv { ahead: states - 1, ..LongConv::new(&c, &b) })?; // (1, N, d)
        let taps = turn(&taps.squeeze(0)?.t()?)?; // (d, N), oldest first
        let present = taps.narrow(1, states - 1, 1)?.add(&self.shift_d.unsqueeze(1)?)?;
        Tensor::cat(&[&taps.narrow(1, 0, states - 1)?, &present], D::Minus1)
    }
}

/// First imaginary parts of A, (t, n).
fn frequencies(init: H3Init) -> Init {
    Init::custom(move |shape, _| {
        let n = shape[1];
        let states = 2.0 * n as f64;
        let value = |i: usize| match init {
            H3Init::DiagLin => PI * i as f64,
            H3Init::DiagInv => states / PI * (states / (2.0 * i as f64 + 1.0) - 1.0),
        };
        (0..shape[0] * n).map(|i| value(i % n) as f32).collect()
    })
}
