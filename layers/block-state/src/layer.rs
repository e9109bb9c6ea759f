//! The layer: projections, self- and cross-attention, output and feed-forward part.

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, ParameterGroup, RelativeBias, State, StateKind, VarBuilder,
    WindowMode, in_blocks_of,
};
use semisep_kernels::{Attention, WindowMode as OpWindow, attention, rms_norm};

use crate::config::{BlockStateConfig, Variant};
use crate::contexts::{Contexts, unit};
use crate::windows::Windows;
use crate::{KIND, cost, matrix};

/// Tokens at once: there is an output of each of the SSM's banks.
const BLOCK: usize = 256;

/// The layer.
pub struct BlockState {
    pub(crate) config: BlockStateConfig,
    pub(crate) d_model: usize,
    pub(crate) head_dim: usize,
    pub(crate) ssm: Box<dyn Mixer>,
    token_norm: Tensor, // (d)
    q_self: Linear,
    q_cross: Linear,
    k: Linear,
    v: Linear,
    pub(crate) contexts: Contexts,
    scale_self: Tensor,  // (h)
    scale_cross: Tensor, // (h)
    rel_bias: Option<RelativeBias>,
    out: Linear,
    ffn: Option<FeedForward>,
    pub(crate) groups: Vec<ParameterGroup>,
    pub(crate) dtype: DType,
    pub(crate) cache_dtype: DType,
    device: Device,
}

struct FeedForward {
    norm: Tensor, // (d)
    wide: Linear,
    narrow: Linear,
}

/// Queries with their heads' scales, keys, values: (b, l, h, e).
pub(crate) struct Heads {
    pub(crate) q_self: Tensor,
    pub(crate) q_cross: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

impl BlockState {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape, or the SSM was never looked up.
    pub fn new(d_model: usize, config: &BlockStateConfig, vb: &VarBuilder) -> Result<Self> {
        let (h, e, f) = (config.n_heads, config.head_dim(d_model), config.d_intermediate(d_model));
        let scale = |name| vb.pp(name).get_f32(d_model, "scale", Init::ONES);
        let map = |name| Linear::new(d_model, h * e, false, &vb.pp(name));
        let ffn = (f > 0)
            .then(|| -> Result<_> {
                Ok(FeedForward {
                    norm: scale("ffn_norm")?,
                    wide: Linear::new(d_model, f, config.ffn_bias, &vb.pp("ffn_in"))?,
                    narrow: Linear::new(f, d_model, config.ffn_bias, &vb.pp("ffn_out"))?,
                })
            })
            .transpose()?;
        // meliad starts its relative embeddings at standard deviation 1; d_model^-1/2 is T5's, at these scales the tamer.
        let std = (d_model as f64).powf(-0.5);
        let bias = |c| RelativeBias::new(c, h, std, &vb.pp("rel_bias"));
        Ok(Self {
            ssm: config.ssm.get()?.build_banks(d_model, config.banks(), vb.pp("ssm"))?,
            token_norm: scale("token_norm")?,
            q_self: map("q_self")?,
            q_cross: map("q_cross")?,
            k: map("k")?,
            v: map("v")?,
            contexts: Contexts::new(d_model, config, vb)?,
            scale_self: vb.get_f32(h, "scale_self", Init::ONES)?,
            scale_cross: vb.get_f32(h, "scale_cross", Init::ONES)?,
            rel_bias: config.rel_bias.as_ref().map(bias).transpose()?,
            out: Linear::new(2 * h * e, d_model, config.out_bias, &vb.pp("out"))?,
            ffn,
            groups: vb.groups(),
            dtype: vb.dtype(),
            cache_dtype: vb.activation_dtype(),
            device: vb.device().clone(),
            config: config.clone(),
            d_model,
            head_dim: e,
        })
    }

    /// u (b, l, d) -> queries, keys, values of the tokens.
    pub(crate) fn project(&self, u: &Tensor) -> Result<Heads> {
        let (b, l, _) = u.dims3()?;
        let x = rms_norm(u, Some(&self.token_norm), self.config.norm_eps, self.d_model)?;
        let heads = |map: &Linear| map.forward(&x)?.reshape((b, l, self.config.n_heads, self.head_dim));
        let normed = |map| unit(&heads(map)?, self.config.qk_eps);
        let scaled = |q: Tensor, scale: &Tensor| q.broadcast_mul(&scale.to_dtype(q.dtype())?.unsqueeze(1)?);
        Ok(Heads {
            q_self: scaled(normed(&self.q_self)?, &self.scale_self)?,
            q_cross: scaled(normed(&self.q_cross)?, &self.scale_cross)?,
            k: normed(&self.k)?,
            v: heads(&self.v)?,
        })
    }

    /// Options of the self-attention; queries and keys are √e times their normalised selves.
    pub(crate) fn self_options<'a>(
        &self,
        [q, k, v]: [&'a Tensor; 3],
        bias: Option<&'a Tensor>,
    ) -> Attention<'a> {
        let w = self.config.window;
        let hidden = !self.config.include_self;
        // A sliding window shows `window` tokens, the own position among them only where it is visible.
        let window =
            if hidden && self.config.window_mode == WindowMode::Sliding { w.saturating_add(1) } else { w };
        Attention {
            window: Some(window),
            window_mode: self.config.window_mode.into(),
            exclude_self: hidden,
            bias,
            scale: Some(1.0 / self.head_dim as f64),
            ..Attention::new(q, k, v)
        }
    }

    /// Options of the cross-attention of SH and MH.
    pub(crate) fn cross_options<'a>(&self, [q, k, v]: [&'a Tensor; 3]) -> Attention<'a> {
        Attention {
            window: Some(self.config.window),
            window_mode: OpWindow::Block,
            scale: Some(1.0 / self.head_dim as f64),
            ..Attention::new(q, k, v)
        }
    }

    /// The bias by distance, scaled as the scores are: (h, distances).
    pub(crate) fn bias(&self) -> Result<Option<Tensor>> {
        let Some(bias) = &self.rel_bias else { return Ok(None) };
        bias.table()?.broadcast_mul(&self.scale_self.unsqueeze(1)?).map(Some)
    }

    /// MF: every token to all contexts of its window, (b, l, h, e).
    fn to_windows(
        &self,
        heads: &Heads,
        y: &Tensor,
        ctx: &mut Context<'_>,
        lengths: &[usize],
    ) -> Result<Tensor> {
        let (b, l, h, e) = heads.q_cross.dims4()?;
        let (banks, d) = (self.config.contexts, self.d_model);
        let seen = ctx.state.as_ref().map_or_else(|| vec![0; lengths.len()], |s| s.seen().to_vec());
        let windows = Windows::new(lengths, &seen, self.config.window);
        if b * l == 0 {
            return heads.q_cross.zeros_like();
        }
        let y = y.reshape((b * l, banks, d))?;
        let (of, kept) = self.contexts.of_windows(&y, &windows, ctx.state.as_deref())?;
        let q = heads.q_cross.reshape((1, b * l, h, e))?.to_dtype(of.k.dtype())?;
        let kv_lens = vec![banks; windows.pieces.len()];
        let o = attention(&Attention {
            causal: false,
            scale: Some(1.0 / e as f64),
            cu_seqlens: Some(&windows.cu_seqlens),
            kv_lens: Some(&kv_lens),
            ..Attention::new(&q, &of.k, &of.v.to_dtype(of.k.dtype())?)
        })?;
        if let (Some(state), Some(kept)) = (ctx.state.as_deref_mut(), kept) {
            state.set("context_k", kept.k.to_dtype(self.cache_dtype)?)?;
            state.set("context_v", kept.v.to_dtype(self.cache_dtype)?)?;
        }
        o.reshape((b, l, h, e))?.to_dtype(heads.q_cross.dtype())
    }

    /// The branch of the residual: u (b, l, d) -> y - u. `ssm` runs the SSM.
    fn run(
        &self,
        u: &Tensor,
        ctx: &mut Context<'_>,
        ssm: impl FnOnce(&dyn Mixer, &mut Context<'_>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (b, l, _) = u.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let heads = self.project(u)?;
        let y = {
            let state = ctx.state.as_deref_mut().map(|s| s.child_mut("ssm")).transpose()?;
            let (cu_seqlens, shared) = (ctx.cu_seqlens, ctx.shared.as_deref_mut());
            ssm(&*self.ssm, &mut Context { state, cu_seqlens, shared })?
        };
        let bias = self.bias()?;
        let own = self.self_options([&heads.q_self, &heads.k, &heads.v], bias.as_ref());
        let own = cached(own, ["k", "v"], ctx, &lengths)?;
        let cross = match self.config.variant {
            Variant::Mf => self.to_windows(&heads, &y, ctx, &lengths)?,
            Variant::Sh | Variant::Mh => {
                let of = self.token_contexts(&y)?;
                let options = self.cross_options([&heads.q_cross, &of[0], &of[1]]);
                cached(options, ["context_k", "context_v"], ctx, &lengths)?
            }
        };
        let branch = self.output(u, &own, &cross)?;
        ctx.leave(&[], &lengths)?;
        Ok(branch)
    }

    /// SH and MH: keys and values (b, l, h, e) of the contexts of every token, from the SSM's output (b, l, banks, d).
    pub(crate) fn token_contexts(&self, y: &Tensor) -> Result<[Tensor; 2]> {
        let (b, l, banks, d) = y.dims4()?;
        let lifted = self.contexts.lifted(&y.reshape((b * l, banks, d))?)?;
        let keyed = self.contexts.keyed(&lifted)?;
        let split = |t: Tensor| t.reshape((b, l, self.config.n_heads, self.head_dim));
        Ok([split(keyed.k)?, split(keyed.v)?])
    }

    /// Head outputs (b, l, h, e) of both attentions -> y - u.
    fn output(&self, u: &Tensor, own: &Tensor, cross: &Tensor) -> Result<Tensor> {
        let attended = self.out.forward(&Tensor::cat(&[own, cross], 2)?.flatten_from(2)?)?;
        let Some(FeedForward { norm, wide, narrow }) = &self.ffn else { return Ok(attended) };
        let r = rms_norm(&(u + &attended)?, Some(norm), self.config.norm_eps, self.d_model)?;
        attended + narrow.forward(&wide.forward(&r)?.relu()?)?
    }
}

/// Attention to what the state holds under these names and to the tokens at hand, which are appended.
fn cached(
    op: Attention,
    names: [&'static str; 2],
    ctx: &mut Context<'_>,
    lengths: &[usize],
) -> Result<Tensor> {
    let cu_seqlens = ctx.cu_seqlens;
    let Some(state) = ctx.state.as_deref_mut() else { return attention(&Attention { cu_seqlens, ..op }) };
    state.append(names[0], op.k, lengths)?;
    state.append(names[1], op.v, lengths)?;
    let kv_lens: Vec<usize> = state.held(names[0])?.iter().zip(lengths).map(|(s, l)| s + l).collect();
    let (k, v) = (state.get(names[0])?, state.get(names[1])?);
    let q = op.q.to_dtype(k.dtype())?;
    attention(&Attention { q: &q, k, v, cu_seqlens, kv_lens: Some(&kv_lens), ..op })?.to_dtype(op.q.dtype())
}

impl BlockState {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        self.run(u, ctx, |ssm, ctx| ssm.forward(u, ctx))
    }
}

impl Mixer for BlockState {
    fn forward(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks_of(BLOCK, self, u, ctx, !self.causal() || self.out.weight().track_op(), &|u, ctx| {
            self.forward_once(u, ctx)
        })
    }

    fn step(&self, u: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, _) = u.dims2()?;
        ctx.state_mut()?.check(KIND, b)?;
        self.run(&u.unsqueeze(1)?, ctx, |ssm, ctx| ssm.step(u, ctx)?.unsqueeze(1))?.squeeze(1)
    }

    fn causal(&self) -> bool {
        self.ssm.causal()
    }

    fn receives(&self) -> Vec<(&'static str, usize)> {
        self.ssm.receives()
    }

    fn hands_on(&self) -> Vec<(&'static str, usize)> {
        self.ssm.hands_on()
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let (h, e, dtype, w) = (self.config.n_heads, self.head_dim, self.cache_dtype, self.config.window);
        let cache = StateKind::Cache { limit: Some(w) };
        let (kind, slots) = match self.config.variant {
            Variant::Mf => (StateKind::Recurrent, self.config.contexts),
            Variant::Sh | Variant::Mh => (cache, 0),
        };
        let state = State::new(KIND, batch)
            .with_zeros("k", cache, (batch, 0, h, e), dtype, &self.device)?
            .with_zeros("v", cache, (batch, 0, h, e), dtype, &self.device)?
            .with_zeros("context_k", kind, (batch, slots, h, e), dtype, &self.device)?
            .with_zeros("context_v", kind, (batch, slots, h, e), dtype, &self.device)?;
        Ok(state.with_child("ssm", self.ssm.new_state(batch)?))
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        cost::cost(self, batch, seqlen)
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, u: &Tensor) -> Result<Option<Mixing>> {
        matrix::mixing(self, u).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use semisep_core::{Nested, Rng};

    use super::*;
    use crate::UnstructuredConfig;
    use crate::windows::Source;

    fn layer(variant: Variant) -> Result<BlockState> {
        let ssm = Nested::new(UnstructuredConfig { emb_dim: 5, l_max: 16 });
        let config = BlockStateConfig { contexts: 3, ..BlockStateConfig::new(variant, ssm, 2, 4) };
        BlockState::new(8, &config, &VarBuilder::seeded(5, DType::F64, Device::Cpu))
    }

    fn tokens(l: usize) -> Result<Tensor> {
        let mut rng = Rng::new(1);
        let values: Vec<f64> = (0..l * 8).map(|_| rng.normal()).collect();
        Tensor::from_vec(values, (1, l, 8), &Device::Cpu)
    }

    /// u with another token at `t`.
    fn changed(u: &Tensor, t: usize) -> Result<Tensor> {
        let l = u.dim(1)?;
        let new = (u.narrow(1, t, 1)? + 1.0)?;
        Tensor::cat(&[u.narrow(1, 0, t)?, new, u.narrow(1, t + 1, l - t - 1)?], 1)
    }

    fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
        (a - b)?.abs()?.sum_all()?.to_scalar()
    }

    /// MF: the contexts of window k come from what lies before it.
    #[test]
    fn mf_a_token_of_window_k_alters_the_contexts_from_k_plus_1_on() -> Result<()> {
        let (layer, u) = (layer(Variant::Mf)?, tokens(18)?);
        let keys = |u: &Tensor| -> Result<Tensor> {
            let y = layer.ssm.forward(u, &mut Context::default())?.squeeze(0)?;
            Ok(layer.contexts.of_windows(&y, &Windows::new(&[18], &[0], 4), None)?.0.k)
        };
        let before = keys(&u)?;
        assert_eq!(before.dims(), [5, 3, 2, 4]);
        for t in 0..18 {
            let after = keys(&changed(&u, t)?)?;
            for window in 0..5 {
                let moved = distance(&before.narrow(0, window, 1)?, &after.narrow(0, window, 1)?)? > 1e-12;
                assert_eq!(moved, window > t / 4, "token {t}, window {window}");
            }
        }
        Ok(())
    }

    /// SH and MH: a context is that of its own token and of what came before.
    #[test]
    fn sh_and_mh_contexts_are_causal() -> Result<()> {
        for variant in [Variant::Sh, Variant::Mh] {
            let (layer, u) = (layer(variant)?, tokens(9)?);
            let keys = |u: &Tensor| -> Result<Tensor> {
                let y = layer.ssm.forward(u, &mut Context::default())?;
                Ok(layer.token_contexts(&y)?[0].clone())
            };
            let (before, after) = (keys(&u)?, keys(&changed(&u, 5)?)?);
            assert_eq!(distance(&before.narrow(1, 0, 5)?, &after.narrow(1, 0, 5)?)?, 0.0);
            assert!(distance(&before.narrow(1, 5, 1)?, &after.narrow(1, 5, 1)?)? > 1e-6);
        }
        Ok(())
    }

    /// No output before a changed token moves, at any place of a window, in any variant.
    #[test]
    fn every_variant_is_causal() -> Result<()> {
        for variant in [Variant::Sh, Variant::Mh, Variant::Mf] {
            let (layer, u) = (layer(variant)?, tokens(10)?);
            let before = layer.forward(&u, &mut Context::default())?;
            for t in 0..10 {
                let after = layer.forward(&changed(&u, t)?, &mut Context::default())?;
                assert_eq!(
                    distance(&before.narrow(1, 0, t)?, &after.narrow(1, 0, t)?)?,
                    0.0,
                    "{variant:?} {t}"
                );
            }
        }
        Ok(())
    }

    /// In the first window MF reads learned contexts, and nothing of the SSM.
    #[test]
    fn the_first_window_of_mf_has_learned_contexts() -> Result<()> {
        let layer = layer(Variant::Mf)?;
        assert_eq!(Windows::new(&[4], &[0], 4).pieces, [Source::Learned]);
        let y = Tensor::full(f64::NAN, (4, 3, 8), &Device::Cpu)?;
        let (of, _) = layer.contexts.of_windows(&y, &Windows::new(&[4], &[0], 4), None)?;
        assert!(of.k.flatten_all()?.to_vec1::<f64>()?.iter().all(|v| v.is_finite()));
        Ok(())
    }
}
