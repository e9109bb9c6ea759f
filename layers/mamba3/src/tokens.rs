//! From a layer's input to what the scan reads.

use candle_core::{Result, Tensor};
use semisep_core::{Context, softplus};
use semisep_kernels::{
    Activation, RotaryLayout, activation, phase_scan, rms_norm, state_dtype, turn_by_phase,
};

use crate::{Mamba3, part};

/// What one pass reads of each token, in the state dtype.
pub(crate) struct Tokens {
    /// Gate, (b, l, h p).
    pub(crate) z: Tensor,
    /// Values before they are spread over ranks, (b, l, h, p).
    pub(crate) x: Tensor,
    /// Values, (b, l, R, h, p).
    pub(crate) v: Tensor,
    /// Keys B, biased and turned, (b, l, R, h, n).
    pub(crate) k: Tensor,
    /// Queries C, biased and turned, (b, l, R, h, n).
    pub(crate) q: Tensor,
    /// ln α = A dt, (b, l, h).
    pub(crate) log_decay: Tensor,
    /// β = (1-λ) dt, the weight of the input before, (b, l, h).
    pub(crate) beta: Tensor,
    /// γ = λ dt, the weight of the input, (b, l, h).
    pub(crate) gamma: Tensor,
}

impl Mamba3 {
    /// u (b, l, d), and the angles after the last token, (sequences, h, s).
    pub(crate) fn tokens(&self, u: &Tensor, ctx: &Context<'_>) -> Result<(Tokens, Tensor)> {
        let (b, l, _) = u.dims3()?;
        let config = &self.config;
        let (h, p, n, r, g) = (self.heads(), config.headdim, config.d_state, config.rank(), config.ngroups);
        let all = self.in_proj.forward(u)?;
        let all = all.to_dtype(state_dtype(all.dtype()))?;
        let mut at = 0;
        let z = part(&all, &mut at, h * p)?;
        let x = part(&all, &mut at, h * p)?.reshape((b, l, h, p))?;
        let key = part(&all, &mut at, r * g * n)?.reshape((b, l, r, g, n))?;
        let query = part(&all, &mut at, r * g * n)?.reshape((b, l, r, g, n))?;
        let (dt, a) = (part(&all, &mut at, h)?, part(&all, &mut at, h)?);
        let (trap, angle) = (part(&all, &mut at, h)?, part(&all, &mut at, config.num_rope_angles())?);

        let dt = softplus(&dt.broadcast_add(&self.dt_bias.to_dtype(dt.dtype())?)?)?;
        let gamma = (activation(&trap, Activation::Sigmoid)? * &dt)?;
        let turning = (angle.tanh()? * std::f64::consts::PI)?.unsqueeze(2)?;
        let turning = turning.broadcast_mul(&dt.unsqueeze(3)?)?; // (b, l, h, s)
        let (phase, last) = phase_scan(&turning, ctx.initial("angle")?.as_ref(), ctx.cu_seqlens)?;
        let layout = if config.is_mimo { RotaryLayout::Half } else { RotaryLayout::Interleaved };
        let turned = |t: &Tensor, norm: &Tensor, bias: &Tensor| {
            let normed = rms_norm(t, Some(norm), config.norm_eps, n)?;
            turn_by_phase(&normed, Some(bias), &phase, layout)
        };
        let tokens = Tokens {
            v: self.spread(&x)?,
            k: turned(&key, &self.key_norm, &self.key_bias)?,
            q: turned(&query, &self.query_norm, &self.query_bias)?,
            log_decay: (decay(&a, config.a_floor)? * &dt)?,
            beta: (dt - &gamma)?,
            gamma,
            z,
            x,
        };
        Ok((tokens, last))
    }

    /// Values for each rank: (..., h, p) -> (..., R, h, p).
    pub(crate) fn spread(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.unsqueeze(x.rank() - 2)?;
        match &self.mimo {
            Some(mimo) => x.broadcast_mul(&mimo.x.to_dtype(x.dtype())?.transpose(0, 1)?),
            None => Ok(x),
        }
    }
}

/// `min(-(max(a, 0) + 1 / (1 - min(a, 0))), -floor)`: the decay rate, negative.
fn decay(a: &Tensor, floor: f64) -> Result<Tensor> {
    let below = (a.neg()?.relu()? + 1.0)?.recip()?;
    (a.relu()? + below)?.neg()?.minimum(-floor)
}
