//! From a diagonal system in continuous time to one in steps.

use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use semisep_kernels::Complex;
use serde::{Deserialize, Serialize};

/// How `h' = A h + B u` becomes `h_t = Ā h_{t-1} + B̄ u_t`, by its name in the field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Discretization {
    /// Zero-order hold, exact for inputs that stay constant in a step: `Ā = e^(dt A)`, `B̄ = (Ā - 1) / A · B`.
    #[default]
    Zoh,
    /// Bilinear (Tustin): `Ā = (1 + dt A/2) / (1 - dt A/2)`, `B̄ = dt / (1 - dt A/2) · B`.
    Bilinear,
}

impl Discretization {
    /// `Ā`, and what B is multiplied by. Shapes broadcast.
    ///
    /// # Errors
    /// If they do not.
    pub fn apply(self, a: &Complex, dt: &Tensor) -> Result<(Complex, Complex)> {
        let dta = a.scale(dt)?;
        match self {
            Self::Zoh => {
                let pole = dta.exp()?;
                let gain = pole.affine(1.0, -1.0)?.mul(&a.reciprocal()?)?;
                Ok((pole, gain))
            }
            Self::Bilinear => {
                let inverse = dta.affine(-0.5, 1.0)?.reciprocal()?;
                Ok((dta.affine(0.5, 1.0)?.mul(&inverse)?, inverse.scale(dt)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Both agree with the integral ∫ e^(sA) ds over one step, bilinear up to its third-order error.
    #[test]
    fn both_methods_approach_the_integral() -> Result<()> {
        let scalar = |v: f64| Tensor::new(&[v], &Device::Cpu);
        let a = Complex { re: scalar(-0.5)?, im: scalar(2.0)? };
        let dt = scalar(0.01)?;
        let (zoh, zoh_gain) = Discretization::Zoh.apply(&a, &dt)?;
        let (bilinear, bilinear_gain) = Discretization::Bilinear.apply(&a, &dt)?;
        let value = |t: &Tensor| t.to_vec1::<f64>().map(|v| v[0]);
        assert!((value(&zoh.re)? - (-0.005f64).exp() * 0.02f64.cos()).abs() < 1e-15);
        assert!((value(&zoh_gain.re)? - 0.01).abs() < 1e-4);
        for (a, b) in [(&zoh, &bilinear), (&zoh_gain, &bilinear_gain)] {
            assert!(
                (value(&a.re)? - value(&b.re)?).abs() < 2e-6 && (value(&a.im)? - value(&b.im)?).abs() < 2e-6
            );
        }
        Ok(())
    }
}
