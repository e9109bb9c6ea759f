//! Kolmogorov-Arnold network as a channel mixer (Liu et al. 2024, arXiv 2404.19756, section 2.2).
//!
//! ```text
//! y_o = Σ_i base[o,i] act(x_i) + Σ_i Σ_k spline[o,i,k] scaler[o,i] b_k(x_i)
//! ```
//! in each layer: a learned function of one variable on every edge. The b_k are the B-splines on the stored grid; where x
//! leaves the extended grid only the base term is left. Layers follow one another with nothing between.
//!
//! | symbol | parameter of layer N | shape (o outputs, i inputs, G intervals, p order) |
//! |---|---|---|
//! | base | `layers.N.base_weight` | (o, i) |
//! | spline | `layers.N.spline_weight` | (o, i, G + p) |
//! | scaler | `layers.N.spline_scaler` | (o, i), with `spline_scaler` |
//! | knots | `layers.N.grid` | (i, G + 2p + 1), a constant |
//!
//! Names and equations as in efficient-kan, which most implementations follow.

mod config;
mod edges;

use candle_core::{Result, Tensor};
pub use config::KanConfig;
use semisep_core::{Context, Cost, Mixer, Mixing, ParameterGroup, State, VarBuilder, in_blocks_of};

use crate::edges::Edges;

const KIND: &str = "kan";

/// Tokens at once: each feature has a handful of spline values.
const BLOCK: usize = 256;

/// The layers of one channel mixer.
pub struct Kan {
    layers: Vec<Edges>,
    groups: Vec<ParameterGroup>,
    element: usize,
}

impl Kan {
    /// From d_model over the configuration's hidden widths to d_model, with the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &KanConfig, vb: &VarBuilder) -> Result<Self> {
        let ends = [d_model];
        let widths: Vec<usize> = ends.iter().chain(&config.hidden).chain(&ends).copied().collect();
        Self::with_widths(&widths, config, vb)
    }

    /// Through these widths, whatever the configuration's hidden ones are.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn with_widths(widths: &[usize], config: &KanConfig, vb: &VarBuilder) -> Result<Self> {
        let layers = widths.windows(2).enumerate();
        Ok(Self {
            layers: layers
                .map(|(n, w)| Edges::new(w[0], w[1], config, &vb.pp("layers").pp(n)))
                .collect::<Result<_>>()?,
            groups: vb.groups(),
            element: vb.dtype().size_in_bytes(),
        })
    }

    /// (..., first width) -> (..., last width), each position by itself.
    ///
    /// # Errors
    /// If the width differs, or a grid is not ascending.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x))
    }
}

impl Kan {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let y = self.apply(x)?;
        ctx.leave(&[], &lengths)?;
        Ok(y)
    }
}

impl Mixer for Kan {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks_of(BLOCK, self, x, ctx, self.layers.iter().any(Edges::tracked), &|x, ctx| {
            self.forward_once(x, ctx)
        })
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let b = x.dims2()?.0;
        state.check(KIND, b)?;
        let y = self.apply(x)?;
        state.advance(&vec![1; b]);
        Ok(y)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        Ok(State::new(KIND, batch))
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let layers: Cost = self.layers.iter().map(|e| e.cost(batch * seqlen, self.element)).sum();
        Cost { parameters: self.groups.iter().map(|g| g.elements() as u64).sum(), ..layers }
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, _: &Tensor) -> Result<Option<Mixing>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    /// Coefficients that are all equal make the spline constant, wherever the inner grid reaches.
    #[test]
    fn equal_coefficients_make_a_constant() -> Result<()> {
        let config = KanConfig { spline_scaler: false, grid_range: (-3.0, 3.0), ..Default::default() };
        let vb = VarBuilder::seeded(1, DType::F64, Device::Cpu);
        let mut layer = Edges::new(3, 2, &config, &vb)?;
        layer.set_weights(0.0, 0.25)?;
        let x = Tensor::new(&[[-2.9f64, 0.0, 1.3], [2.9, -1.7, 0.4]], &Device::Cpu)?;
        for y in layer.forward(&x)?.flatten_all()?.to_vec1::<f64>()? {
            assert!((y - 0.75).abs() < 1e-12, "{y}");
        }
        Ok(())
    }
}
