//! Heads with matrix states: what RWKV-5 and 6 share around their scan, and RWKV-7 in part.

use candle_core::{D, DType, Device, Result, Tensor};
use semisep_core::{Context, Cost, Init, Mixing, ParameterGroup, State, StateKind, VarBuilder};
use semisep_kernels::{
    Activation, DecayScan, DecayStateUpdate, decay_scan, decay_state_update, gated_activation, state_dtype,
};

use crate::cost::cost;
use crate::matrix;
use crate::readout::Readout;

/// Heads of keys (n features) and values (p), and their state before the first token.
pub(crate) struct Heads {
    pub(crate) h: usize,
    pub(crate) n: usize,
    pub(crate) p: usize,
    /// (h, p, n), as in files of tuned states: values first.
    time_state: Option<Tensor>,
}

impl Heads {
    pub(crate) fn new((h, n, p): (usize, usize, usize), time_state: bool, vb: &VarBuilder) -> Result<Self> {
        let learnt = |vb: &VarBuilder| vb.get_f32((h, p, n), "time_state", Init::ZEROS);
        Ok(Self { h, n, p, time_state: time_state.then(|| learnt(vb)).transpose()? })
    }

    /// (..., h n) -> (..., h, n), in the dtype of states.
    pub(crate) fn keys(&self, t: &Tensor) -> Result<Tensor> {
        heads(t, self.h, self.n)
    }

    /// (..., h p) -> (..., h, p), in the dtype of states.
    pub(crate) fn values(&self, t: &Tensor) -> Result<Tensor> {
        heads(t, self.h, self.p)
    }

    /// The state to start from, (sequences, h, n, p): that of the context, else the learnt one.
    pub(crate) fn initial(&self, ctx: &Context<'_>, sequences: usize) -> Result<Option<Tensor>> {
        match (ctx.initial("wkv")?, &self.time_state) {
            (Some(state), _) => Ok(Some(state)),
            (None, Some(learnt)) => self.spread(learnt, sequences).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// (h, p, n) for all sequences: (sequences, h, n, p).
    fn spread(&self, learnt: &Tensor, sequences: usize) -> Result<Tensor> {
        learnt.transpose(1, 2)?.broadcast_as((sequences, self.h, self.n, self.p))?.copy()?.contiguous()
    }

    /// The state before the first token: `shift` (b, d), `wkv` (b, h, n, p).
    pub(crate) fn new_state(
        &self,
        kind: &'static str,
        (batch, d_model): (usize, usize),
        dtype: DType,
        device: &Device,
    ) -> Result<State> {
        let (dtype, shape) = (state_dtype(dtype), (batch, self.h, self.n, self.p));
        let mut state = State::new(kind, batch)
            .with_zeros("shift", StateKind::Recurrent, (batch, d_model), dtype, device)?
            .with_zeros("wkv", StateKind::Recurrent, shape, dtype, device)?;
        if let Some(learnt) = &self.time_state {
            state.set("wkv", self.spread(learnt, batch)?)?;
        }
        Ok(state)
    }

    /// Elements of a sequence's state.
    pub(crate) fn elements(&self, d_model: usize) -> usize {
        d_model + self.h * self.n * self.p
    }
}

fn heads(t: &Tensor, h: usize, width: usize) -> Result<Tensor> {
    let lead = &t.dims()[..t.rank() - 1];
    let shape: Vec<usize> = lead.iter().copied().chain([h, width]).collect();
    t.to_dtype(state_dtype(t.dtype()))?.reshape(shape)
}

/// What a token gives to the scan and to what follows it.
pub(crate) struct Projection {
    /// (b, l, h, n)
    pub(crate) r: Tensor,
    pub(crate) k: Tensor,
    pub(crate) log_decay: Tensor,
    /// (b, l, h, p)
    pub(crate) v: Tensor,
    /// (b, l, h p), before its activation.
    pub(crate) gate: Tensor,
    /// The last token of each sequence, (b, d).
    pub(crate) last: Tensor,
}

/// How a layer projects x (b, l, d), given the token before the first and the boundaries of packed sequences.
pub(crate) type Project<'a> = &'a dyn Fn(&Tensor, Option<&Tensor>, Option<&[usize]>) -> Result<Projection>;

/// Scan, norm of heads, gate and output map of RWKV-5 and 6.
pub(crate) struct Core {
    pub(crate) kind: &'static str,
    pub(crate) d_model: usize,
    pub(crate) heads: Heads,
    /// `time_faaaa`, (h, n)
    pub(crate) bonus: Tensor,
    pub(crate) readout: Readout,
    pub(crate) groups: Vec<ParameterGroup>,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
}

impl Core {
    /// Whether a gradient is asked for.
    pub(crate) fn tracked(&self) -> bool {
        self.bonus.track_op()
    }

    pub(crate) fn forward(&self, x: &Tensor, ctx: &mut Context<'_>, project: Project<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(self.kind, b, l)?;
        let p = project(x, ctx.initial("shift")?.as_ref(), ctx.cu_seqlens)?;
        let (y, wkv) = self.scan(&p, self.heads.initial(ctx, lengths.len())?.as_ref(), ctx.cu_seqlens)?;
        let out = self.finish(&y, &p.gate, x)?;
        ctx.leave(&[("shift", p.last), ("wkv", wkv)], &lengths)?;
        Ok(out)
    }

    fn scan(&self, p: &Projection, state: Option<&Tensor>, cu: Option<&[usize]>) -> Result<(Tensor, Tensor)> {
        decay_scan(&DecayScan {
            bonus: Some(&self.bonus),
            state,
            cu_seqlens: cu,
            ..DecayScan::new(&p.r, &p.k, &p.v, &p.log_decay)
        })
    }

    pub(crate) fn step(&self, x: &Tensor, ctx: &mut Context<'_>, project: Project<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let (b, _) = x.dims2()?;
        state.check(self.kind, b)?;
        let p = project(&x.unsqueeze(1)?, Some(state.get("shift")?), None)?;
        let at = |t: &Tensor| t.squeeze(1);
        let (r, k, v, log_decay) = (at(&p.r)?, at(&p.k)?, at(&p.v)?, at(&p.log_decay)?);
        let args =
            DecayStateUpdate { bonus: Some(&self.bonus), ..DecayStateUpdate::new(&r, &k, &v, &log_decay) };
        let y = decay_state_update(state.get("wkv")?, &args)?; // (b, h, p)
        let out = self.finish(&y, &at(&p.gate)?, x)?;
        state.set("shift", p.last)?;
        state.advance(&vec![1; b]);
        Ok(out)
    }

    /// `output (ln_x (y) silu(gate))`
    fn finish(&self, y: &Tensor, gate: &Tensor, like: &Tensor) -> Result<Tensor> {
        let y = self.readout.norm(y)?;
        let gated = gated_activation(&y, &gate.to_dtype(y.dtype())?, Activation::Silu)?;
        self.readout.output(&gated, like)
    }

    pub(crate) fn new_state(&self, batch: usize) -> Result<State> {
        self.heads.new_state(self.kind, (batch, self.d_model), self.dtype, &self.device)
    }

    /// A token decays, adds to and reads every element of its state: six operations.
    pub(crate) fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let heads = &self.heads;
        let extra = 6 * heads.h * heads.n * heads.p + 10 * self.d_model;
        let state = batch * heads.elements(self.d_model) * state_dtype(self.dtype).size_in_bytes();
        cost(&self.groups, batch * seqlen, extra, self.dtype.size_in_bytes(), state)
    }

    /// See [`semisep_core::Mixer::matrix`]; a learnt initial state is left out.
    pub(crate) fn matrix(&self, x: &Tensor, project: Project<'_>) -> Result<Mixing> {
        let p = project(x, None, None)?;
        let (y, _) = self.scan(&p, None, None)?;
        let matrix = matrix::decayed(&p.r, &p.k, &p.log_decay, &self.bonus)?;
        Ok(Mixing { matrix, values: p.v.transpose(1, 2)?, output: y.transpose(1, 2)? })
    }
}

/// `-exp(decay)` of (..., h, n), in the dtype of states.
pub(crate) fn log_decay(decay: &Tensor) -> Result<Tensor> {
    decay.exp()?.neg()
}

/// (h, n) or (h n) as (h, n) for every token of `like` (b, l, ..).
pub(crate) fn every_token(decay: &Tensor, like: &Tensor) -> Result<Tensor> {
    let (b, l) = (like.dim(0)?, like.dim(1)?);
    let (h, n) = (decay.dim(D::Minus2)?, decay.dim(D::Minus1)?);
    decay.broadcast_as((b, l, h, n))
}
