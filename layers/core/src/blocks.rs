//! A long input in blocks of tokens: the same result with intermediates that stay small and near.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use crate::{Context, Mixer, Shared};

/// Tokens, counted over all rows, that a layer takes at once.
const BLOCK: usize = 1024;

/// The parallel form of `mixer` over `x` (b, l, d), given by `once`, applied to one block of tokens after another with
/// the state carried along.
///
/// Wide intermediates (a Mamba-2 layer makes ten numbers of each of its input's) then exist for one block alone. Nothing
/// is divided where a gradient may be asked for, as the intermediates are kept then (`tracked`: one of the layer's
/// parameters is), nor where the input is short.
///
/// # Errors
/// As for [`Mixer::forward`]. A failure after the first block (for want of memory) leaves a state between blocks.
pub fn in_blocks(
    mixer: &dyn Mixer,
    x: &Tensor,
    ctx: &mut Context<'_>,
    tracked: bool,
    once: &dyn Fn(&Tensor, &mut Context<'_>) -> Result<Tensor>,
) -> Result<Tensor> {
    in_blocks_of(BLOCK, mixer, x, ctx, tracked, once)
}

/// [`in_blocks`] with so many tokens a block, for layers with wider intermediates still.
///
/// # Errors
/// As for [`in_blocks`].
pub fn in_blocks_of(
    tokens: usize,
    mixer: &dyn Mixer,
    x: &Tensor,
    ctx: &mut Context<'_>,
    tracked: bool,
    once: &dyn Fn(&Tensor, &mut Context<'_>) -> Result<Tensor>,
) -> Result<Tensor> {
    let (b, l, _) = x.dims3()?;
    let block = (tokens / b.max(1)).max(tokens.div_ceil(16));
    if l < 2 * BLOCK / b.max(1) || l < 2 * block || tracked || x.track_op() {
        return once(x, ctx);
    }
    let mut own = match ctx.state {
        Some(_) => None,
        None => {
            let mut own = mixer.new_state(ctx.lengths(b, l).len())?;
            own.reserve(ctx.lengths(b, l).into_iter().max().unwrap_or(0))?;
            Some(own)
        }
    };
    let mut y = Joined::default();
    let mut left: BTreeMap<&'static str, Vec<Tensor>> = BTreeMap::new();
    for start in (0..l).step_by(block) {
        let len = block.min(l - start);
        let cu: Option<Vec<usize>> =
            ctx.cu_seqlens.map(|cu| cu.iter().map(|c| c.clamp(&start, &(start + len)) - start).collect());
        let mut shared = received(mixer, ctx, start, len)?;
        let state = ctx.state.as_deref_mut().or(own.as_mut());
        let mut part = Context { state, cu_seqlens: cu.as_deref(), shared: Some(&mut shared) };
        let out = once(&x.narrow(1, start, len)?, &mut part)?;
        y.add(out, start, l)?;
        let received: Vec<&str> = mixer.receives().into_iter().map(|(name, _)| name).collect();
        for (name, tensor) in shared.into_entries().filter(|(name, _)| !received.contains(name)) {
            left.entry(name).or_default().push(tensor);
        }
    }
    for (name, tensors) in left {
        ctx.hand_on(name, &Tensor::cat(&tensors, 1)?);
    }
    y.finish()
}

/// Outputs of blocks, put together.
#[derive(Default)]
struct Joined {
    whole: Option<Tensor>,
    /// Those of a layer that is tracked after all: writing into a tensor would lose their gradients.
    tracked: Vec<Tensor>,
}

impl Joined {
    fn add(&mut self, out: Tensor, start: usize, l: usize) -> Result<()> {
        if out.track_op() {
            self.tracked.push(out);
            return Ok(());
        }
        let (b, _, d) = out.dims3()?;
        let whole = match &mut self.whole {
            Some(whole) => whole,
            None => self.whole.insert(Tensor::zeros((b, l, d), out.dtype(), out.device())?),
        };
        whole.slice_set(&out.contiguous()?, 1, start)
    }

    fn finish(self) -> Result<Tensor> {
        match self.whole {
            Some(whole) => Ok(whole),
            None => Tensor::cat(&self.tracked, 1),
        }
    }
}

/// What `mixer` needs of earlier layers, for one block.
fn received(mixer: &dyn Mixer, ctx: &Context<'_>, start: usize, len: usize) -> Result<Shared> {
    let mut shared = Shared::default();
    for (name, _) in mixer.receives() {
        shared.set(name, ctx.received(name)?.narrow(1, start, len)?);
    }
    Ok(shared)
}
