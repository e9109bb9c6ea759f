//! The short causal convolution over each feature that recurrent layers put before their scan.

use candle_core::{DType, Device, Result, Tensor};
use semisep_kernels::{CausalConv1d, causal_conv1d, causal_conv1d_update};

use crate::{Context, Init, State, StateKind, VarBuilder};

/// A depthwise causal convolution: `weight` (width, 1, taps), oldest tap first, and `bias` (width).
#[derive(Debug, Clone)]
pub struct ShortConv {
    weight: Tensor, // (width, taps)
    bias: Option<Tensor>,
    silu: bool,
}

impl ShortConv {
    /// Over `width` features, followed by a SiLU or not.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(width: usize, taps: usize, bias: bool, silu: bool, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get_f32((width, 1, taps), "weight", Init::linear(taps))?.squeeze(1)?;
        let bias = bias.then(|| vb.get_f32(width, "bias", Init::linear(taps))).transpose()?;
        Ok(Self { weight, bias, silu })
    }

    /// x (b, l, width), after the inputs `past` (sequences, width, taps - 1), zeros if absent: the outputs, and the last
    /// inputs.
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(
        &self,
        x: &Tensor,
        past: Option<&Tensor>,
        cu_seqlens: Option<&[usize]>,
    ) -> Result<(Tensor, Tensor)> {
        causal_conv1d(CausalConv1d {
            x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            silu: self.silu,
            initial_state: past,
            cu_seqlens,
        })
    }

    /// One token, x (b, width); `past` advances in place.
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn step(&self, x: &Tensor, past: &Tensor) -> Result<Tensor> {
        causal_conv1d_update(past, x, &self.weight, self.bias.as_ref(), self.silu)
    }

    /// The shape of the past inputs of `batch` sequences.
    ///
    /// # Errors
    /// Never: the weight has two dimensions.
    pub fn past_shape(&self, batch: usize) -> Result<(usize, usize, usize)> {
        let (width, taps) = self.weight.dims2()?;
        Ok((batch, width, taps.saturating_sub(1)))
    }
}

/// The short convolutions of three projections, of a layer that may do without them; each with the name of its state.
/// Names as in flash-linear-attention.
#[derive(Debug, Clone, Default)]
pub struct ShortConvs(Vec<(&'static str, ShortConv)>);

impl ShortConvs {
    /// Of queries, keys and values of these widths, each followed by a SiLU: `q_conv1d`, `k_conv1d`, `v_conv1d` below `vb`.
    /// [`ShortConvs::default`] is a layer without them.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(widths: [usize; 3], taps: usize, bias: bool, vb: &VarBuilder) -> Result<Self> {
        let conv = |name, width| ShortConv::new(width, taps, bias, true, &vb.pp(name));
        Ok(Self(vec![
            ("conv_q", conv("q_conv1d", widths[0])?),
            ("conv_k", conv("k_conv1d", widths[1])?),
            ("conv_v", conv("v_conv1d", widths[2])?),
        ]))
    }

    /// These, each with the name of its state.
    pub fn of(convs: [(&'static str, ShortConv); 3]) -> Self {
        Self(convs.into())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Convolves the projections (b, l, width), from the context's state on. Gives the state's new entries.
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(&self, qkv: &mut [Tensor; 3], ctx: &Context<'_>) -> Result<Vec<(&'static str, Tensor)>> {
        let mut left = Vec::with_capacity(4);
        for (x, (name, conv)) in qkv.iter_mut().zip(&self.0) {
            let (y, past) = conv.forward(x, ctx.initial(name)?.as_ref(), ctx.cu_seqlens)?;
            *x = y;
            left.push((*name, past));
        }
        Ok(left)
    }

    /// One token, each (b, width); the state advances in place.
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn step(&self, qkv: &mut [Tensor; 3], state: &State) -> Result<()> {
        for (x, (name, conv)) in qkv.iter_mut().zip(&self.0) {
            *x = conv.step(x, state.get(name)?)?;
        }
        Ok(())
    }

    /// `state` with the entries of these convolutions.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn with_states(&self, mut state: State, dtype: DType, device: &Device) -> Result<State> {
        for (name, conv) in &self.0 {
            let shape = conv.past_shape(state.batch())?;
            state = state.with_zeros(name, StateKind::Recurrent, shape, dtype, device)?;
        }
        Ok(state)
    }
}
