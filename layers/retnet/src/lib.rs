//! Multi-scale retention, RetNet (Sun et al. 2023, arXiv 2307.08621).
//!
//! ```text
//! q = turn(q_proj x)   k = turn(k_proj x)   v = v_proj x          turn: by the angles of the position
//! S_t = γ S_{t-1} + v_t k_tᵀ               γ_i = 1 - 2^(-5-i) for head i     S: (h, p, n)     (eq. 6)
//! y_t = S_t q_t / √n                       out = o_proj [ norm(y) ⊙ silu(g_proj x) ]           (eq. 8)
//! ```
//! As a matrix mixer, head by head: `M[t,s] = (q_t · k_s) γ^(t-s) / √n`, n-semiseparable: attention without softmax
//! under a decay. The parallel, the chunkwise and the recurrent form of the paper are one kernel here.
//!
//! | symbol | parameter | shape |
//! |---|---|---|
//! | input maps | `q_proj.weight`, `k_proj.weight`, `v_proj.weight`, `g_proj.weight` | (h n, d), (h_kv n, d), (h_kv p, d), (h p, d) |
//! | convolutions | `q_conv1d.weight`, `k_conv1d.weight`, `v_conv1d.weight` | (width, 1, taps), with `use_short_conv` |
//! | head norm | `g_norm_swish_gate.weight`, or `g_norm.weight` without SiLU gate | (p) |
//! | output map | `o_proj.weight` | (d, h p) |
//!
//! Names and defaults as in flash-linear-attention. torchscale's convention is `rotation = "interleaved"`,
//! `decay_norm = true`, `elementwise_affine = false`; its further division of the parallel form's scores by their sum,
//! which has no recurrent form, is left to the head norm.

mod config;
mod matrix;

use candle_core::{DType, Device, Result, Tensor};
pub use config::{RetNetConfig, Rotation};
use semisep_core::{
    Context, Cost, HeadNorm, Init, Linear, Mixer, Mixing, ParameterGroup, ShortConvs, State, StateKind,
    VarBuilder, in_blocks, repeat_heads,
};
use semisep_kernels::{
    RotaryLayout, ScalarDecayScan, ScalarDecayStateUpdate, activation, rotary, scalar_decay_scan,
    scalar_decay_state_update, state_dtype,
};

const KIND: &str = "retnet";
/// Names of the convolutions' states.
/// Gain of the input maps' initial values, as in torchscale and flash-linear-attention.
const GAIN: f64 = 0.176_776_695_296_636_9; // 2^-2.5

/// The layer.
pub struct RetNet {
    config: RetNetConfig,
    d_model: usize,
    /// Features a head of a query and of a value.
    dims: (usize, usize),
    maps: [Linear; 3], // q, k, v
    gate: Option<Linear>,
    convs: ShortConvs,
    angles: Option<(Tensor, RotaryLayout)>, // (n/2)
    log_decay: Tensor,                      // (h)
    norm: HeadNorm,
    o_proj: Linear,
    groups: Vec<ParameterGroup>,
    dtype: DType,
    device: Device,
}

/// Queries, turned and scaled, (b, l, h, n), keys (b, l, h, n), values (b, l, h, p).
type Heads = [Tensor; 3];

impl RetNet {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &RetNetConfig, vb: &VarBuilder) -> Result<Self> {
        let (n, p) = config.head_dims(d_model);
        let (h, kv) = (config.num_heads, config.kv_heads());
        let map = |name, inputs, outputs, gain| {
            Linear::with_init(inputs, outputs, false, Init::xavier(inputs, outputs, gain), &vb.pp(name))
        };
        let maps = [
            map("q_proj", d_model, h * n, GAIN)?,
            map("k_proj", d_model, kv * n, GAIN)?,
            map("v_proj", d_model, kv * p, GAIN)?,
        ];
        let convs = match config.use_short_conv {
            true => ShortConvs::new([h * n, kv * n, kv * p], config.conv_size, config.conv_bias, vb)?,
            false => ShortConvs::default(),
        };
        let gate = config.use_output_gate.then(|| map("g_proj", d_model, h * p, GAIN)).transpose()?;
        let act = config.use_output_gate.then_some(config.gate_fn);
        Ok(Self {
            norm: HeadNorm::new(p, config.norm_eps, config.elementwise_affine, act, vb)?,
            o_proj: map("o_proj", h * p, d_model, 1.0)?,
            groups: vb.groups(),
            angles: angles(config.rotation, n, vb.device())?,
            log_decay: Tensor::new(log_decays(h), vb.device())?.to_dtype(state_dtype(vb.dtype()))?,
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
            dims: (n, p),
            maps,
            gate,
            convs,
        })
    }

    /// Projections (..., width) of (..., d), before their convolutions.
    fn project(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let [q, k, v] = &self.maps;
        Ok([q.forward(x)?, k.forward(x)?, v.forward(x)?])
    }

    /// Projections (b, l, width), convolved, as heads.
    fn heads(&self, [q, k, v]: &[Tensor; 3], positions: &[usize], cu: Option<&[usize]>) -> Result<Heads> {
        let (b, l, _) = q.dims3()?;
        let ((n, p), (h, kv)) = (self.dims, (self.config.num_heads, self.config.kv_heads()));
        let turned = |t: &Tensor, heads: usize| {
            let mut t = t.reshape((b, l, heads, n))?;
            if let Some(act) = self.config.feature_map {
                t = activation(&t, act.into())?;
            }
            match &self.angles {
                Some((angles, layout)) => rotary(&t, angles, positions, *layout, cu),
                None => Ok(t),
            }
        };
        let scale = (n as f64).powf(-0.5);
        Ok([
            (turned(q, h)? * scale)?,
            repeat_heads(&turned(k, kv)?, h)?,
            repeat_heads(&v.reshape((b, l, kv, p))?, h)?,
        ])
    }

    /// 1 / √(Σ_{s≤t} γ^(t-s)) for each token and head, (b, l, h, 1) in y's dtype.
    fn row_scales(&self, y: &Tensor, positions: &[usize], cu: Option<&[usize]>) -> Result<Tensor> {
        let (b, l, h, _) = y.dims4()?;
        let starts: Vec<usize> = match cu {
            Some(cu) => cu.windows(2).zip(positions).flat_map(|(w, &p)| p..p + w[1] - w[0]).collect(),
            None => positions.iter().flat_map(|&p| p..p + l).collect(),
        };
        let log_decays = log_decays(h);
        let scale = |t: usize, g: f64| {
            let sum = if g == 0.0 { (t + 1) as f64 } else { ((t + 1) as f64 * g).exp_m1() / g.exp_m1() };
            sum.sqrt().recip()
        };
        let scales: Vec<f64> =
            starts.iter().flat_map(|&t| log_decays.iter().map(move |&g| scale(t, g))).collect();
        Tensor::from_vec(scales, (b, l, h, 1), y.device())?.to_dtype(y.dtype())
    }

    /// Retention of the heads from `state` on, y (b, l, h, p), and the final state.
    fn retain(
        &self,
        [q, k, v]: &Heads,
        positions: &[usize],
        state: Option<&Tensor>,
        cu_seqlens: Option<&[usize]>,
    ) -> Result<(Tensor, Tensor)> {
        let args = ScalarDecayScan { state, cu_seqlens, ..ScalarDecayScan::new(q, k, v, &self.log_decay) };
        let (y, last) = scalar_decay_scan(&args)?;
        if self.config.decay_norm {
            return Ok((y.broadcast_mul(&self.row_scales(&y, positions, cu_seqlens)?)?, last));
        }
        Ok((y, last))
    }

    /// Norm, gate and output map: y (..., h, p), x (..., d) -> (..., d).
    fn finish(&self, y: &Tensor, x: &Tensor) -> Result<Tensor> {
        let gate = self.gate.as_ref().map(|map| map.forward(x)).transpose()?;
        self.o_proj.forward(&self.norm.forward(y, gate.as_ref())?)
    }

    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let positions = ctx.state.as_ref().map_or_else(|| vec![0; lengths.len()], |s| s.seen().to_vec());
        let mut projections = self.project(x)?;
        let mut entries = self.convs.forward(&mut projections, ctx)?;
        let heads = self.heads(&projections, &positions, ctx.cu_seqlens)?;
        let (y, last) =
            self.retain(&heads, &positions, ctx.initial("retention")?.as_ref(), ctx.cu_seqlens)?;
        let out = self.finish(&y, x)?;
        entries.push(("retention", last));
        ctx.leave(&entries, &lengths)?;
        Ok(out)
    }
}

impl Mixer for RetNet {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, x, ctx, self.o_proj.weight().track_op(), &|x, ctx| self.forward_once(x, ctx))
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = x.dims2()?;
        state.check(KIND, b)?;
        let mut projections = self.project(x)?;
        self.convs.step(&mut projections, state)?;
        for t in &mut projections {
            *t = t.unsqueeze(1)?;
        }
        let [q, k, v] = self.heads(&projections, state.seen(), None)?;
        let [q, k, v] = [q.squeeze(1)?, k.squeeze(1)?, v.squeeze(1)?];
        let args = ScalarDecayStateUpdate::new(&q, &k, &v, &self.log_decay);
        let mut y = scalar_decay_state_update(state.get("retention")?, &args)?; // (b, h, p)
        if self.config.decay_norm {
            let y4 = y.unsqueeze(1)?;
            y = y4.broadcast_mul(&self.row_scales(&y4, state.seen(), None)?)?.squeeze(1)?;
        }
        let out = self.finish(&y, x)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (dtype, (n, p)) = (state_dtype(self.dtype), self.dims);
        let state = self.convs.with_states(State::new(KIND, batch), dtype, &self.device)?;
        let shape = (batch, self.config.num_heads, p, n);
        state.with_zeros("retention", StateKind::Recurrent, shape, dtype, &self.device)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        /// Tokens of the scan's chunks.
        const CHUNK: usize = 64;
        let ((n, p), (h, kv)) = (self.dims, (self.config.num_heads, self.config.kv_heads()));
        let (rows, size, q) = (batch * seqlen, self.dtype.size_in_bytes(), CHUNK.min(seqlen));
        let gate = if self.gate.is_some() { h * p } else { 0 };
        let widths = h * n + kv * (n + p);
        let linears = Cost::linear(rows, self.d_model, widths + gate, false, size)
            + Cost::linear(rows, h * p, self.d_model, false, size);
        let taps = if self.convs.is_empty() { 0 } else { self.config.conv_size };
        // A token: q · k over half a chunk, that times v, state in and out, for each head; turning, norm and gate.
        let scan = h * (q * n + q * p + 4 * p * n) + 2 * taps * widths + 6 * h * n + 8 * h * p;
        let state = batch * (h * p * n + widths * taps.saturating_sub(1));
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            flops: linears.flops + rows as u64 * scan as u64,
            bytes: linears.bytes + (rows * (4 * h * n + 4 * h * p) * size) as u64,
            state_bytes: (state * state_dtype(self.dtype).size_in_bytes()) as u64,
            kv_bytes: 0,
        }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, x: &Tensor) -> Result<Option<Mixing>> {
        matrix::mixing(self, x).map(Some)
    }
}

/// `ln γ` of each head.
fn log_decays(h: usize) -> Vec<f64> {
    (0..h).map(|i| (-(-5.0 - i as f64).exp2()).ln_1p()).collect()
}

/// Radians a position for each pair of features, f64 on the CPU, f32 elsewhere.
fn angles(rotation: Rotation, n: usize, device: &Device) -> Result<Option<(Tensor, RotaryLayout)>> {
    const THETA: f64 = 10_000.0;
    let half = n / 2;
    let (exponent, layout): (fn(usize, usize) -> f64, _) = match rotation {
        Rotation::None => return Ok(None),
        Rotation::Half => (|i, half| i as f64 / half as f64, RotaryLayout::Half),
        Rotation::Interleaved => {
            (|i, half| i as f64 / half.saturating_sub(1).max(1) as f64, RotaryLayout::Interleaved)
        }
    };
    let angles: Vec<f64> = (0..half).map(|i| THETA.powf(-exponent(i, half))).collect();
    let dtype = if device.is_cpu() { DType::F64 } else { DType::F32 };
    let angles = Tensor::from_vec(angles, half, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
    Ok(Some((angles, layout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From 1/32 down by halves: 1 - γ of Sun et al., section 2.1.
    #[test]
    fn decays_are_those_of_the_paper() {
        for (i, g) in log_decays(60).into_iter().enumerate() {
            let want = 2f64.powi(-5 - i as i32);
            assert!((-g.exp_m1() - want).abs() <= 1e-15 * want, "{i}");
        }
    }

    /// flash-linear-attention's angles are those of rotary positions; torchscale's reach 1/10000 exactly.
    #[test]
    fn angles_of_both_conventions() -> Result<()> {
        let values = |rotation| -> Result<Vec<f64>> {
            let Some((angles, _)) = angles(rotation, 8, &Device::Cpu)? else { return Ok(Vec::new()) };
            angles.to_vec1()
        };
        let near = |got: Vec<f64>, want: [f64; 4]| {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12), "{got:?}");
        };
        near(values(Rotation::Half)?, [1.0, 0.1, 0.01, 0.001]);
        near(values(Rotation::Interleaved)?, [1.0, 10f64.powf(-4.0 / 3.0), 10f64.powf(-8.0 / 3.0), 1e-4]);
        assert!(values(Rotation::None)?.is_empty());
        Ok(())
    }
}
