//! One layer: a function of one variable on each edge from inputs to outputs.

use std::sync::OnceLock;

use candle_core::{D, Result, Tensor};
use semisep_core::{Cost, Init, ParameterGroup, VarBuilder};
use semisep_kernels::{Activation, activation, bspline_basis, linear, state_dtype};

use crate::KanConfig;

pub(crate) struct Edges {
    base_weight: Tensor,           // (o, i)
    spline_weight: Tensor,         // (o, i, k)
    spline_scaler: Option<Tensor>, // (o, i)
    grid: Tensor,                  // (i, m)
    /// The spline map of a model that is not trained, made when it is first needed.
    map: OnceLock<Tensor>,
    order: usize,
    activation: Activation,
}

impl Edges {
    /// Whether a gradient is asked for.
    pub(crate) fn tracked(&self) -> bool {
        self.base_weight.track_op() || self.spline_weight.track_op()
    }

    pub(crate) fn new(inputs: usize, outputs: usize, config: &KanConfig, vb: &VarBuilder) -> Result<Self> {
        let square = (outputs, inputs);
        let spline = (outputs, inputs, config.functions());
        // Small, so that the base term leads at first; efficient-kan fits splines to noise of this size.
        let bound = 0.05 / config.grid_size as f64;
        let noise = Init::Uniform { lo: -bound, hi: bound };
        Ok(Self {
            base_weight: vb.get(square, "base_weight", Init::linear(inputs))?,
            spline_weight: vb.get(spline, "spline_weight", noise)?,
            spline_scaler: config
                .spline_scaler
                .then(|| vb.get(square, "spline_scaler", Init::linear(inputs)))
                .transpose()?,
            grid: vb.get_group(ParameterGroup::buffer("grid", (inputs, config.knots()), config.grid()))?,
            map: OnceLock::new(),
            order: config.spline_order,
            activation: config.base_activation.into(),
        })
    }

    /// (..., i) -> (..., o).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let work = x.to_dtype(state_dtype(x.dtype()))?;
        let base = linear(&activation(&work, self.activation)?, &self.base_weight, None)?;
        let bases = bspline_basis(&work, &self.grid, self.order)?; // (..., k, i)
        let spline = linear(&bases.flatten_from(D::Minus2)?, &self.map()?, None)?;
        (base + spline)?.to_dtype(x.dtype())
    }

    /// Spline weights times scalers as the map of a linear layer, (o, k i).
    fn map(&self) -> Result<Tensor> {
        if let Some(map) = self.map.get() {
            return Ok(map.clone());
        }
        let dtype = state_dtype(self.spline_weight.dtype());
        let mut weight = self.spline_weight.to_dtype(dtype)?;
        if let Some(scaler) = &self.spline_scaler {
            weight = weight.broadcast_mul(&scaler.to_dtype(dtype)?.unsqueeze(2)?)?;
        }
        let map = weight.transpose(1, 2)?.flatten_from(1)?;
        if map.track_op() { Ok(map) } else { Ok(self.map.get_or_init(|| map).clone()) }
    }

    pub(crate) fn cost(&self, rows: usize, size: usize) -> Cost {
        let (o, ki) =
            (self.base_weight.dims()[0], self.spline_weight.dims()[1] * self.spline_weight.dims()[2]);
        let i = self.base_weight.dims()[1];
        let linears = Cost::linear(rows, i, o, false, size) + Cost::linear(rows, ki, o, false, size);
        // Scalers fold into the spline weights once a pass; a basis function takes 6 operations for each degree.
        let scaling = 2 * self.spline_scaler.as_ref().map_or(0, |_| rows * o * i);
        let basis = rows * self.grid.elem_count() * 6 * self.order.max(1);
        Cost { flops: linears.flops + (basis + scaling) as u64, ..linears }
    }

    #[cfg(test)]
    pub(crate) fn set_weights(&mut self, base: f64, spline: f64) -> Result<()> {
        self.base_weight = self.base_weight.affine(0.0, base)?;
        self.spline_weight = self.spline_weight.affine(0.0, spline)?;
        Ok(())
    }
}
