//! The implicit filter: a network of sines over the position, under a decaying window.
//!
//! ```text
//! h(t) = (MLP z_t) ⊙ (exp(-t |δ|) + shift)         t = position / (l_max - 1), in [0, 1]
//! MLP = W_last ∘ sin(freq ⊙ (W_i · + b_i)) ∘ ... ∘ sin(freq ⊙ (W_0 · + b_0))
//! z_t = [t, cos(f w), -sin(f w)]                   w = 2π position / l_max, f = linspace(1e-4, bands - 1)
//! ```
//! All sines share one frequency. Positions, features and decays are stored with the weights and read from there: the
//! filter of a shorter sequence is the beginning of that of l_max, whatever the input's length. All of it is kept in f32.

use std::f64::consts::TAU;

use candle_core::{DType, Result, Tensor};
use semisep_core::{Init, Linear, ParameterGroup, VarBuilder};

use super::HyenaConfig;
use crate::cache::FilterCache;

/// Parameters below `filter_fn`.
pub(super) struct ImplicitFilter {
    l_max: usize,
    z: Tensor, // (l_max, emb_dim)
    layers: Vec<Linear>,
    freq: Tensor, // (1, filter_order)
    /// t (l_max, 1) and δ (1, width), if the filter decays.
    window: Option<(Tensor, Tensor)>,
    shift: f64,
    /// (width)
    pub(super) bias: Tensor,
    cache: Option<FilterCache>,
}

impl ImplicitFilter {
    /// For `width` channels.
    pub(super) fn new(width: usize, config: &HyenaConfig, vb: &VarBuilder) -> Result<Self> {
        let HyenaConfig { l_max, emb_dim, filter_order, num_inner_mlps, .. } = *config;
        let bias = vb.get_f32(width, "bias", Init::Normal { std: 1.0 })?;
        let positions = vb.pp("pos_emb");
        let z = ParameterGroup::scale("z", (1, l_max, emb_dim), features()).lr_scale(config.pos_emb_lr_scale);
        let z = positions.get_group(z)?.squeeze(0)?;

        let mlp = vb.pp("implicit_filter");
        let mut layers = Vec::with_capacity(num_inner_mlps + 2);
        for i in 0..=num_inner_mlps {
            let inputs = if i == 0 { emb_dim } else { filter_order };
            layers.push(linear(inputs, filter_order, true, &mlp.pp(2 * i))?);
        }
        layers.push(linear(filter_order, width, false, &mlp.pp(2 * (num_inner_mlps + 1)))?);
        let freq = if config.train_freq {
            mlp.pp(1).get_f32((1, filter_order), "freq", Init::Const(config.w))?
        } else {
            (z.narrow(0, 0, 1)?.narrow(1, 0, 1)?.zeros_like()? + config.w)?.broadcast_as((1, filter_order))?
        };
        let window = config.modulate.then(|| window(width, config, vb)).transpose()?;
        let trained = layers[0].weight().track_op() || [&bias, &z, &freq].iter().any(|t| t.track_op());
        Ok(Self {
            l_max,
            z,
            layers,
            freq,
            window,
            shift: config.shift,
            bias,
            cache: (!trained).then(FilterCache::default),
        })
    }

    /// The first `len` taps of all channels, (len, width), len <= l_max.
    pub(super) fn taps(&self, len: usize) -> Result<Tensor> {
        match &self.cache {
            Some(cache) => cache.get((0, len, self.l_max), |len| self.compute(len)),
            None => self.compute(len),
        }
    }

    fn compute(&self, len: usize) -> Result<Tensor> {
        let mut h = self.z.narrow(0, 0, len)?;
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                h = h.broadcast_mul(&self.freq)?.sin()?;
            }
            h = layer.forward(&h)?;
        }
        let Some((t, deltas)) = &self.window else { return Ok(h) };
        let window = t.narrow(0, 0, len)?.neg()?.broadcast_mul(&deltas.abs()?)?.exp()?;
        h * (window + self.shift)?
    }

    /// Multiplications a position.
    pub(super) fn work(&self) -> usize {
        self.layers.iter().map(|l| l.weight().elem_count()).sum()
    }

    /// The dtype of the taps.
    pub(super) fn dtype(&self) -> DType {
        self.z.dtype()
    }
}

/// Positions (l_max, 1) and decays (1, width) of the window, which no training moves.
fn window(width: usize, config: &HyenaConfig, vb: &VarBuilder) -> Result<(Tensor, Tensor)> {
    let t = ParameterGroup::scale("t", (1, config.l_max, 1), linspace(0.0, 1.0)).lr_scale(0.0);
    let decay = |part: f64| config.target.ln() / part;
    let deltas = linspace(decay(config.slow_decay_pct), decay(config.fast_decay_pct));
    let deltas = ParameterGroup::scale("deltas", (1, 1, width), deltas).lr_scale(0.0);
    let t = vb.pp("pos_emb").get_group(t)?.squeeze(0)?;
    Ok((t, vb.pp("modulation").get_group(deltas)?.squeeze(0)?))
}

/// A map in full precision and without weight decay, as all of the filter.
fn linear(inputs: usize, outputs: usize, bias: bool, vb: &VarBuilder) -> Result<Linear> {
    let weight = vb.get_f32((outputs, inputs), "weight", Init::linear(inputs))?;
    let bias = bias.then(|| vb.get_f32(outputs, "bias", Init::linear(inputs))).transpose()?;
    Ok(Linear::from_tensors(weight, bias))
}

/// Evenly spaced from `first` to `last`, along the tensor.
fn linspace(first: f64, last: f64) -> Init {
    Init::custom(move |shape, _| {
        let n: usize = shape.iter().product();
        let step = (last - first) / (n.max(2) - 1) as f64;
        (0..n).map(|i| (first + step * i as f64) as f32).collect()
    })
}

/// `[t, cos, -sin]` at each position, (1, l_max, 1 + 2 bands).
fn features() -> Init {
    Init::custom(|shape, _| {
        let (l, bands) = (shape[1], (shape[2] - 1) / 2);
        let step = ((bands as f64 - 1.0) - 1e-4) / (bands.max(2) - 1) as f64;
        let angle = |i: usize, band: usize| (1e-4 + step * band as f64) * TAU * i as f64 / l as f64;
        (0..l)
            .flat_map(|i| {
                let t = i as f64 / (l.max(2) - 1) as f64;
                let cosines = (0..bands).map(move |band| angle(i, band).cos());
                let sines = (0..bands).map(move |band| -angle(i, band).sin());
                std::iter::once(t).chain(cosines).chain(sines).map(|v| v as f32).collect::<Vec<_>>()
            })
            .collect()
    })
}
