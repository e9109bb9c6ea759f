//! The input maps and short convolutions, in both layouts.

use candle_core::{D, Result, Tensor};
use semisep_core::{Init, Linear, VarBuilder};
use semisep_kernels::{Activation, activation};

use crate::QkActivation;
use crate::plan::Plan;

/// The maps, in the layout of the checkpoint.
#[expect(clippy::large_enum_variant, reason = "there is one a layer")]
pub(crate) enum Projections {
    /// A map each.
    Separate {
        maps: [Linear; 3],
        convs: Option<[Conv; 3]>,
        gate: Option<Linear>,
        b: Option<Linear>,
        a: Option<Linear>,
    },
    /// Qwen3-Next's.
    Fused { qkvz: Linear, ba: Linear, conv: Conv },
}

/// A short convolution.
pub(crate) struct Conv {
    /// Its entry in the layer's state.
    pub(crate) state: &'static str,
    pub(crate) weight: Tensor, // (width, taps)
    pub(crate) bias: Option<Tensor>,
    pub(crate) silu: bool,
}

/// Everything that is read off the input, before the convolutions; each (.., width).
pub(crate) struct Projection {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    /// The gate's logits.
    pub(crate) z: Option<Tensor>,
    /// β's logits.
    pub(crate) b: Option<Tensor>,
    /// The decay's, before bias and softplus.
    pub(crate) a: Option<Tensor>,
}

impl Projections {
    pub(crate) fn new(d_model: usize, plan: &Plan, vb: &VarBuilder) -> Result<Self> {
        let (keys, values, h) = (plan.keys(), plan.values(), plan.value_heads);
        let map = |name: &str, width: usize| Linear::new(d_model, width, false, &vb.pp(name));
        let conv = |name: &'static str, width: usize, silu: bool| {
            let (vb, conv) =
                (vb.pp(name), plan.conv.unwrap_or(crate::plan::ConvPlan { taps: 1, bias: false }));
            let weight = vb.get_f32((width, 1, conv.taps), "weight", Init::linear(conv.taps))?.squeeze(1)?;
            let bias = conv.bias.then(|| vb.get_f32(width, "bias", Init::linear(conv.taps))).transpose()?;
            Ok::<_, candle_core::Error>(Conv { state: name, weight, bias, silu })
        };
        if plan.fused {
            return Ok(Self::Fused {
                qkvz: map("in_proj_qkvz", 2 * keys + 2 * values)?,
                ba: map("in_proj_ba", 2 * h)?,
                conv: conv("conv1d", 2 * keys + values, true)?,
            });
        }
        let maps = [map("q_proj", keys)?, map("k_proj", keys)?, map("v_proj", values)?];
        let silu = plan.activation == QkActivation::Silu;
        let convs = match plan.conv {
            Some(_) => Some([
                conv("q_conv1d", keys, silu)?,
                conv("k_conv1d", keys, silu)?,
                conv("v_conv1d", values, true)?,
            ]),
            None => None,
        };
        Ok(Self::Separate {
            maps,
            convs,
            b: plan.use_beta.then(|| map("b_proj", h)).transpose()?,
            a: plan.decay.is_some().then(|| map("a_proj", h)).transpose()?,
            gate: plan.gate.then(|| map("g_proj", values)).transpose()?,
        })
    }

    pub(crate) fn convs(&self) -> &[Conv] {
        match self {
            Self::Separate { convs: Some(convs), .. } => convs,
            Self::Separate { convs: None, .. } => &[],
            Self::Fused { conv, .. } => std::slice::from_ref(conv),
        }
    }

    /// u (.., d) through the maps.
    pub(crate) fn forward(&self, plan: &Plan, u: &Tensor) -> Result<Projection> {
        match self {
            Self::Separate { maps: [q, k, v], gate, b, a, .. } => {
                let optional = |map: &Option<Linear>| map.as_ref().map(|map| map.forward(u)).transpose();
                Ok(Projection {
                    q: q.forward(u)?,
                    k: k.forward(u)?,
                    v: v.forward(u)?,
                    z: optional(gate)?,
                    b: optional(b)?,
                    a: optional(a)?,
                })
            }
            Self::Fused { qkvz, ba, .. } => split(plan, &qkvz.forward(u)?, &ba.forward(u)?),
        }
    }

    /// q, k and v after their convolutions, or after the silu that stands in for them.
    pub(crate) fn convolved(
        &self,
        plan: &Plan,
        projection: &Projection,
        mut convolve: impl FnMut(&Conv, &Tensor) -> Result<Tensor>,
    ) -> Result<[Tensor; 3]> {
        let Projection { q, k, v, .. } = projection;
        match self {
            Self::Fused { conv, .. } => {
                let (keys, values) = (plan.keys(), plan.values());
                let y = convolve(conv, &Tensor::cat(&[q, k, v], D::Minus1)?)?;
                let part = |start: usize, width: usize| y.narrow(D::Minus1, start, width);
                Ok([part(0, keys)?, part(keys, keys)?, part(2 * keys, values)?])
            }
            Self::Separate { convs: Some([cq, ck, cv]), .. } => {
                Ok([convolve(cq, q)?, convolve(ck, k)?, convolve(cv, v)?])
            }
            Self::Separate { convs: None, .. } => {
                let silu = |x: &Tensor| activation(x, Activation::Silu);
                match plan.activation {
                    QkActivation::Silu => Ok([silu(q)?, silu(k)?, silu(v)?]),
                    _ => Ok([q.clone(), k.clone(), silu(v)?]),
                }
            }
        }
    }
}

/// Takes Qwen3-Next's interleaved maps apart: of each key head [q | k | v of its value heads | z of them], [b | a].
fn split(plan: &Plan, qkvz: &Tensor, ba: &Tensor) -> Result<Projection> {
    let (heads, n) = (plan.key_heads, plan.n);
    let (share, values) = (plan.value_heads / heads, plan.p * plan.value_heads / heads);
    let by_head = |t: &Tensor| {
        let (lead, width) = t.dims().split_at(t.rank() - 1);
        t.reshape([lead, &[heads, width[0] / heads]].concat())
    };
    let part = |t: &Tensor, start: usize, width: usize| {
        t.narrow(D::Minus1, start, width)?.flatten_from(t.rank() - 2)
    };
    let (qkvz, ba) = (by_head(qkvz)?, by_head(ba)?);
    Ok(Projection {
        q: part(&qkvz, 0, n)?,
        k: part(&qkvz, n, n)?,
        v: part(&qkvz, 2 * n, values)?,
        z: Some(part(&qkvz, 2 * n + values, values)?),
        b: Some(part(&ba, 0, share)?),
        a: Some(part(&ba, share, share)?),
    })
}
