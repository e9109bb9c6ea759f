//! Sources that need no file: random values, bare shapes, trainable variables.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{DType, Device, Result, Tensor, Var};
use semisep_kernels::{BlockFormat, Matrix};

use crate::Rng;
use crate::parameters::{ParameterGroup, Source, lock};

/// Random values by name and seed.
#[derive(Debug, Clone, Copy)]
pub struct Seeded {
    /// The seed of every tensor.
    pub seed: u64,
}

impl Source for Seeded {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor> {
        let values = p.init.values(&p.shape, &mut Rng::named(self.seed, &p.name));
        Tensor::from_vec(values, p.shape.as_slice(), device)?.to_dtype(dtype)
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}

/// Tensors of the right shape with one element of memory (strides 0).
#[derive(Debug, Clone, Copy)]
pub struct Shapes;

impl Source for Shapes {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor> {
        Tensor::zeros(vec![1; p.shape.len()], dtype, device)?.broadcast_as(p.shape.as_slice())
    }

    fn matrix(
        &self,
        p: &ParameterGroup,
        dtype: DType,
        _: Option<BlockFormat>,
        device: &Device,
    ) -> Result<Matrix> {
        Ok(self.get(p, dtype, device)?.into())
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}

/// Trainable variables, created on first use with seeded values.
#[derive(Debug, Default)]
pub struct Variables {
    seed: u64,
    vars: Mutex<BTreeMap<String, Var>>,
}

impl Variables {
    /// No variables yet.
    pub fn new(seed: u64) -> Self {
        Self { seed, vars: Mutex::default() }
    }

    /// All variables by path, sorted.
    pub fn all(&self) -> BTreeMap<String, Var> {
        lock(&self.vars).clone()
    }
}

impl Source for Variables {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor> {
        if p.buffer {
            return Seeded { seed: self.seed }.get(p, dtype, device);
        }
        let mut vars = lock(&self.vars);
        if let Some(var) = vars.get(&p.name) {
            return Ok(var.as_tensor().clone());
        }
        let var = Var::from_tensor(&Seeded { seed: self.seed }.get(p, dtype, device)?)?;
        let tensor = var.as_tensor().clone();
        vars.insert(p.name.clone(), var);
        Ok(tensor)
    }

    fn matrix(
        &self,
        p: &ParameterGroup,
        dtype: DType,
        _: Option<BlockFormat>,
        device: &Device,
    ) -> Result<Matrix> {
        Ok(self.get(p, dtype, device)?.into())
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Init, VarBuilder};

    #[test]
    fn variables_are_made_once() -> Result<()> {
        let vars = Arc::new(Variables::new(1));
        let vb = VarBuilder::new(vars.clone(), DType::F32, Device::Cpu);
        let a = vb.get((2, 3), "w", Init::linear(3))?;
        let b = vb.get((2, 3), "w", Init::linear(3))?;
        assert_eq!(a.id(), b.id());
        assert_eq!(vars.all().len(), 1);
        assert!(vb.get((3, 3), "w", Init::linear(3)).is_err());
        Ok(())
    }

    #[test]
    fn a_buffer_is_no_variable() -> Result<()> {
        let vars = Arc::new(Variables::new(1));
        let vb = VarBuilder::new(vars.clone(), DType::F32, Device::Cpu);
        let grid = vb.get_group(ParameterGroup::buffer("grid", 4, Init::ONES))?;
        assert_eq!(grid.to_vec1::<f32>()?, [1.0; 4]);
        assert!(!grid.track_op() && vars.all().is_empty() && vb.groups().is_empty());
        Ok(())
    }
}
