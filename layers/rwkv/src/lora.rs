//! Low-rank maps: `up (act (down x)) + bias`.

use candle_core::{Result, Tensor};
use semisep_core::{Init, Linear, ParameterGroup, VarBuilder};
use semisep_kernels::{Activation, activation};

use crate::Layout;
use crate::init;
use crate::mixes::settled;

/// Between the factors.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Between {
    Nothing,
    Tanh,
    Sigmoid,
}

impl Between {
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Nothing => Ok(x.clone()),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => activation(x, Activation::Sigmoid),
        }
    }
}

/// Names and sizes of a low-rank map.
pub(crate) struct Names<'a> {
    /// `w1` and `w2` for BlinkDL's layout.
    pub(crate) factors: [&'a str; 2],
    /// `w_lora` for fla's: `w_lora.lora.0.weight`, `w_lora.lora.2.weight`.
    pub(crate) fla: &'a str,
    /// What is added, (outputs).
    pub(crate) bias: Option<ParameterGroup>,
}

/// A low-rank map.
pub(crate) struct Lora {
    down: Linear,
    between: Between,
    up: Linear,
}

impl Lora {
    /// From `inputs` over `rank` to `outputs`; the first factor starts at zero.
    pub(crate) fn new(
        (inputs, rank, outputs): (usize, usize, usize),
        names: Names<'_>,
        between: Between,
        layout: Layout,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let fla = |i: usize| format!("{}.lora.{i}.weight", names.fla);
        let (first, second) = match layout {
            Layout::Pth => (names.factors[0].to_owned(), names.factors[1].to_owned()),
            Layout::Fla => (fla(0), fla(2)),
        };
        let down = factor((inputs, rank), &first, Init::ZEROS, layout, vb)?;
        let up = factor((rank, outputs), &second, init::matrix(0.1, outputs), layout, vb)?;
        let bias = names.bias.map(|group| vb.get_group(group)).transpose()?;
        Ok(Self { down: Linear::from_tensors(down, None), between, up: Linear::from_tensors(up, bias) })
    }

    /// (..., inputs) -> (..., outputs)
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.up.forward(&self.between.apply(&self.down.forward(x)?)?)
    }
}

/// A factor as (outputs, inputs), stored the one way or the other; not decayed.
pub(crate) fn factor(
    (inputs, outputs): (usize, usize),
    name: &str,
    init: Init,
    layout: Layout,
    vb: &VarBuilder,
) -> Result<Tensor> {
    let shape = if layout == Layout::Pth { (inputs, outputs) } else { (outputs, inputs) };
    let group = ParameterGroup { weight_decay: false, ..ParameterGroup::weight(name, shape, init) };
    let weight = vb.get_group(group)?;
    if layout == Layout::Pth { turned(&weight) } else { Ok(weight) }
}

/// (inputs, outputs) as (outputs, inputs): turned once and for all where that is possible.
pub(crate) fn turned(weight: &Tensor) -> Result<Tensor> {
    if settled(weight) { weight.t()?.contiguous() } else { weight.t() }
}
