//! Minimal recurrent layers: gates that do not read the state, so that the whole sequence is one diagonal scan (Feng et
//! al. 2024, "Were RNNs all we needed?", arXiv 2410.01201).
//!
//! ```text
//! minGRU    z = σ(linear_z u)                      h_t = (1 - z) ⊙ h_{t-1} + z ⊙ h̃            h̃ = linear_h u, or g of it
//! minLSTM   f = σ(linear_f u), i = σ(linear_i u)   h_t = f/(f+i) ⊙ h_{t-1} + i/(f+i) ⊙ h̃
//! ```
//! As a matrix mixer, channel by channel: `M[t,s] = Π_{s<j≤t} a_j · (1 - a_s)` with the decay a: 1-semiseparable. The
//! paper scans logarithms; here decays are sigmoids and stay in [0, 1], and `f/(f+i) = σ(softplus(-i') -
//! softplus(-f'))` of the gates before their sigmoids neither divides nor overflows.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | gates | `linear_z`, or `linear_f` and `linear_i`: `.{weight,bias}` | (e, d), (e) |
//! | candidate | `linear_h.{weight,bias}` | (e, d), (e) |
//! | output map | `out_proj.weight` | (d, e), where e is not d |

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{
    Context, Cost, Linear, Mixer, Mixing, ParameterGroup, State, StateKind, VarBuilder, in_blocks,
    lower_triangle, softplus,
};
use semisep_kernels::{
    Activation, DiagonalScan, activation, diagonal_scan, diagonal_state_update, state_dtype,
};

use crate::minimal_config::{Candidate, MinGruConfig, MinLstmConfig, Sizes};

/// A minGRU or minLSTM.
pub struct MinimalRnn {
    sizes: Sizes,
    d_model: usize,
    width: usize,
    /// z, or f and i.
    gates: Vec<Linear>,
    candidate: Linear,
    out_proj: Option<Linear>,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

impl MinimalRnn {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn gru(d_model: usize, config: &MinGruConfig, vb: &VarBuilder) -> Result<Self> {
        Self::new(d_model, config.into(), vb)
    }

    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn lstm(d_model: usize, config: &MinLstmConfig, vb: &VarBuilder) -> Result<Self> {
        Self::new(d_model, config.into(), vb)
    }

    fn new(d_model: usize, sizes: Sizes, vb: &VarBuilder) -> Result<Self> {
        let width = sizes.hidden.unwrap_or(d_model);
        let map = |name: &str| Linear::new(d_model, width, sizes.bias, &vb.pp(name));
        Ok(Self {
            gates: sizes.gates.iter().map(|name| map(name)).collect::<Result<_>>()?,
            candidate: map("linear_h")?,
            out_proj: (width != d_model)
                .then(|| Linear::new(width, d_model, false, &vb.pp("out_proj")))
                .transpose()?,
            groups: vb.groups(),
            sizes,
            d_model,
            width,
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    /// Decays `a` and inputs `(1 - a) h̃`, and `h̃` itself, for u (.., d): (.., e) each, in the state's dtype.
    fn drive(&self, u: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let u = u.to_dtype(state_dtype(self.dtype))?;
        let candidate = self.candidate.forward(&u)?;
        let candidate = match self.sizes.candidate {
            Candidate::Linear => candidate,
            // g(x) = x + ½ above zero, σ(x) below.
            Candidate::Positive => {
                let below = candidate.relu()?.sub(&candidate)?.neg()?;
                (candidate.relu()? + activation(&below, Activation::Sigmoid)?)?
            }
        };
        let raw = self.gates.iter().map(|g| g.forward(&u)).collect::<Result<Vec<_>>>()?;
        let keep = match &raw[..] {
            [f, i] => (softplus(&i.neg()?)? - softplus(&f.neg()?)?)?,
            _ => raw[0].neg()?,
        };
        let a = activation(&keep, Activation::Sigmoid)?;
        // 1 - a of a sigmoid, without cancellation.
        let x = (activation(&keep.neg()?, Activation::Sigmoid)? * &candidate)?;
        Ok((a, x, candidate))
    }

    fn finish(&self, h: &Tensor, dtype: DType) -> Result<Tensor> {
        let h = h.to_dtype(dtype)?;
        self.out_proj.as_ref().map_or(Ok(h.clone()), |map| map.forward(&h))
    }
}

impl MinimalRnn {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(self.sizes.kind, b, l)?;
        let (a, x, _) = self.drive(u)?;
        let (h, last) = diagonal_scan(&DiagonalScan {
            initial_state: ctx.initial("h")?.as_ref(),
            cu_seqlens: ctx.cu_seqlens,
            ..DiagonalScan::new(&a, &x)
        })?;
        let out = self.finish(&h, u.dtype())?;
        ctx.leave(&[("h", last)], &lengths)?;
        Ok(out)
    }
}

impl Mixer for MinimalRnn {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, u, ctx, self.candidate.weight().track_op(), &|u, ctx| self.forward_once(u, ctx))
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = u.dims2()?;
        state.check(self.sizes.kind, b)?;
        let (a, x, _) = self.drive(u)?;
        let h = diagonal_state_update(state.get("h")?, &a, &x)?;
        let out = self.finish(&h, u.dtype())?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (shape, dtype) = ((batch, self.width), state_dtype(self.dtype));
        State::new(self.sizes.kind, batch).with_zeros("h", StateKind::Recurrent, shape, dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, e, size) = (batch * seqlen, self.width, self.dtype.size_in_bytes());
        let maps = Cost::linear(rows, self.d_model, (1 + self.gates.len()) * e, self.sizes.bias, size);
        let out = self.out_proj.as_ref().map(|_| Cost::linear(rows, e, self.d_model, false, size));
        let linears = maps + out.unwrap_or_default();
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: linears.flops + (rows * 16 * e) as u64,
            bytes: linears.bytes + (rows * 3 * e * size) as u64,
            state_bytes: (batch * e * state_dtype(self.dtype).size_in_bytes()) as u64,
            kv_bytes: 0,
        }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    /// Every channel is a head. Products of decays are multiplied up, not taken from logarithms: a closed gate is 0.
    fn matrix(&self, u: &Tensor) -> Result<Option<Mixing>> {
        let (a, x, candidate) = self.drive(u)?;
        let (h, _) = diagonal_scan(&DiagonalScan::new(&a, &x))?;
        let columns = |t: &Tensor| t.transpose(1, 2)?.contiguous(); // (b, e, l)
        let (a, l) = (columns(&a)?, u.dim(1)?);
        let (keep, mut rows) = (a.affine(-1.0, 1.0)?, Vec::with_capacity(l));
        for t in 0..l {
            let own = Tensor::eye(l, a.dtype(), a.device())?.narrow(0, t, 1)?; // (1, l)
            let own = keep.broadcast_mul(&own)?;
            let row = match rows.last() {
                Some(before) => (a.narrow(2, t, 1)?.broadcast_mul(before)? + own)?,
                None => own,
            };
            rows.push(row);
        }
        let matrix = if rows.is_empty() {
            lower_triangle(0, a.dtype(), a.device())?.broadcast_as((u.dim(0)?, self.width, 0, 0))?
        } else {
            Tensor::stack(&rows, 2)?
        };
        let heads = |t: &Tensor| columns(t)?.unsqueeze(3);
        Ok(Some(Mixing { matrix, values: heads(&candidate)?, output: heads(&h)? }))
    }
}
