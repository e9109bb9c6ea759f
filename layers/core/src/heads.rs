//! Heads of linear-attention layers: shared keys and values, and the norm and gate of the outputs.

use candle_core::{D, Result, Tensor};
use semisep_kernels::{gated_activation, gated_rms_norm, rms_norm};

use crate::{Activation, Init, Issue, MAX_WIDTH, VarBuilder, divides};

/// Features a head where all heads together are `expand` times the model's width wide.
pub fn head_width(d_model: usize, expand: f64, heads: usize) -> usize {
    (d_model as f64 * expand).round() as usize / heads.max(1)
}

/// An issue unless `expand` (of this key) times the width is a whole number that `num_heads` divide.
pub fn check_expand(key: &'static str, expand: f64, d_model: usize, num_heads: usize) -> Option<Issue> {
    let width = d_model as f64 * expand;
    let whole = width.round();
    if !(whole >= 1.0 && whole <= MAX_WIDTH as f64 && (width - whole).abs() <= 1e-6 * whole) {
        let message = format!("expected a whole number of features, found {expand} x {d_model}");
        return Some(Issue::new(key, message).help("0.5, 1.0 and 2.0 are usual"));
    }
    divides("num_heads", num_heads, &format!("{key} x d_model"), whole as usize)
}

/// Heads (..., kv, p) as (..., h, p), each serving a block of h / kv.
///
/// # Errors
/// If kv does not divide h.
pub fn repeat_heads(t: &Tensor, h: usize) -> Result<Tensor> {
    let (kv, p) = (t.dim(D::Minus2)?, t.dim(D::Minus1)?);
    if kv == h {
        return Ok(t.clone());
    }
    if kv == 0 || !h.is_multiple_of(kv) {
        candle_core::bail!("{kv} heads of keys and values do not serve {h} heads evenly");
    }
    let lead = &t.dims()[..t.rank() - 2];
    let shape = |tail: &[usize]| [lead, tail].concat();
    t.unsqueeze(D::Minus2)?.broadcast_as(shape(&[kv, h / kv, p]))?.reshape(shape(&[h, p]))
}

/// The RMS norm of each head's output, and the gate on it: `norm(y) ⊙ act(g)`, as in flash-linear-attention.
///
/// The weight (p), shared by all heads, is called `g_norm_swish_gate.weight` where the gate is a SiLU, `g_norm.weight`
/// otherwise.
#[derive(Debug, Clone)]
pub struct HeadNorm {
    weight: Option<Tensor>,
    eps: f64,
    gate: Option<Activation>,
}

impl HeadNorm {
    /// Over heads of `width` features, with a weight or not, with a gate or not.
    ///
    /// # Errors
    /// If the weight is missing or has another shape.
    pub fn new(
        width: usize,
        eps: f64,
        affine: bool,
        gate: Option<Activation>,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let name = if gate == Some(Activation::Silu) { "g_norm_swish_gate" } else { "g_norm" };
        let weight = affine.then(|| vb.pp(name).get_f32(width, "weight", Init::ONES)).transpose()?;
        Ok(Self { weight, eps, gate })
    }

    /// `y` (..., h, p), `gate` (..., h p) -> (..., h p).
    ///
    /// # Errors
    /// If shapes disagree, or the gate is missing.
    pub fn forward(&self, y: &Tensor, gate: Option<&Tensor>) -> Result<Tensor> {
        let (p, weight) = (y.dim(D::Minus1)?, self.weight.as_ref());
        let joined = |t: Tensor| t.flatten(D::Minus2, D::Minus1);
        let Some(act) = self.gate else { return joined(rms_norm(y, weight, self.eps, p)?) };
        let Some(gate) = gate else { candle_core::bail!("the output norm of the heads needs its gate") };
        if act == Activation::Silu {
            return joined(gated_rms_norm(y, &gate.reshape(y.shape())?, weight, self.eps, p, true)?);
        }
        gated_activation(&joined(rms_norm(y, weight, self.eps, p)?)?, gate, act.into())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn heads_are_shared_in_blocks() -> Result<()> {
        let t = Tensor::arange(0f32, 4.0, &Device::Cpu)?.reshape((1, 2, 2))?;
        let wide = repeat_heads(&t, 4)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(wide, [0., 1., 0., 1., 2., 3., 2., 3.]);
        assert!(repeat_heads(&t, 3).is_err());
        Ok(())
    }

    /// Both ways to the gate are one function; the weight's name tells them apart.
    #[test]
    fn gates_follow_the_norm() -> Result<()> {
        let vb = VarBuilder::seeded(1, DType::F64, Device::Cpu);
        let y = Tensor::arange(1f64, 13.0, &Device::Cpu)?.reshape((2, 2, 3))?;
        let gate = Tensor::arange(-3f64, 9.0, &Device::Cpu)?.reshape((2, 6))?;
        let fused = HeadNorm::new(3, 1e-5, true, Some(Activation::Silu), &vb)?.forward(&y, Some(&gate))?;
        let plain = HeadNorm::new(3, 1e-5, true, None, &vb)?.forward(&y, None)?;
        let names: Vec<String> = vb.groups().into_iter().map(|g| g.name).collect();
        assert_eq!(names, ["g_norm_swish_gate.weight", "g_norm.weight"]);
        let error = (fused - gated_activation(&plain, &gate, Activation::Silu.into())?)?;
        assert!(error.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()? < 1e-14);
        assert!(HeadNorm::new(3, 1e-5, false, Some(Activation::Gelu), &vb)?.forward(&y, None).is_err());
        Ok(())
    }
}
