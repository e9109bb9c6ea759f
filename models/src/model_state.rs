//! What a whole model remembers between calls.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, bail};
use semisep_core::{State, StateKind};

/// Kind of the state of Abacus positions, and the prefix of its tensors.
const ABACUS: &str = "abacus";

/// The memory of a whole model: one [`State`] a mixer, and the run of digits where the model has Abacus positions.
#[derive(Debug, Clone)]
pub struct ModelState {
    states: Vec<State>,
    digits: Option<State>,
}

impl ModelState {
    /// `states` of the mixers and, where the model counts digits, as many runs of none as there are sequences.
    pub(crate) fn new(states: Vec<State>, batch: usize, abacus: bool) -> Result<Self> {
        let run = || {
            State::new(ABACUS, batch).with_zeros("run", StateKind::Recurrent, batch, DType::U32, &Device::Cpu)
        };
        Ok(Self { states, digits: abacus.then(run).transpose()? })
    }

    /// The digits that came right before, a sequence; none where the model does not count them.
    pub(crate) fn runs(&self) -> Result<Vec<u32>> {
        self.digits.as_ref().map_or(Ok(Vec::new()), |state| state.get("run")?.to_vec1())
    }

    /// Leaves what [`ModelState::runs`] is to be after `lengths` further tokens.
    pub(crate) fn leave_runs(&mut self, runs: Vec<u32>, lengths: &[usize]) -> Result<()> {
        if let Some(state) = &mut self.digits {
            state.set("run", Tensor::new(runs, &Device::Cpu)?)?;
            state.advance(lengths);
        }
        Ok(())
    }

    /// The states of the mixers, to be gone on from.
    pub(crate) fn states_mut(&mut self) -> &mut [State] {
        &mut self.states
    }

    /// One state a mixer, in order of use.
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// A copy that no later step of this state touches.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn fork(&self) -> Result<Self> {
        Ok(Self {
            states: self.states.iter().map(State::fork).collect::<Result<_>>()?,
            digits: self.digits.as_ref().map(State::fork).transpose()?,
        })
    }

    /// Forgets all but the first `len` tokens; see [`State::truncate`]. All layers or none.
    ///
    /// # Errors
    /// If a layer is recurrent and has seen more.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        let mut cut = self.clone();
        for state in cut.states.iter_mut().chain(&mut cut.digits) {
            state.truncate(len)?;
        }
        *self = cut;
        Ok(())
    }

    /// Bytes that this state holds after `seqlen` tokens a sequence.
    pub fn size_bytes(&self, seqlen: usize) -> u64 {
        self.states.iter().chain(&self.digits).map(|s| s.size_bytes(seqlen)).sum()
    }

    /// Every tensor by name, `N.name` for mixer N, `abacus.name` for the run of digits.
    ///
    /// # Errors
    /// If a copy cannot be made.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (i, state) in self.states.iter().enumerate() {
            all.extend(state.tensors()?.into_iter().map(|(name, t)| (format!("{i}.{name}"), t)));
        }
        if let Some(digits) = &self.digits {
            all.extend(digits.tensors()?.into_iter().map(|(name, t)| (format!("{ABACUS}.{name}"), t)));
        }
        Ok(all)
    }

    /// Takes over tensors that [`ModelState::tensors`] gave; unchanged on error.
    ///
    /// # Errors
    /// If a tensor is missing, left over, or of another shape.
    pub fn load(&mut self, tensors: BTreeMap<String, Tensor>) -> Result<()> {
        let mut parts: Vec<BTreeMap<String, Tensor>> = vec![BTreeMap::new(); self.states.len()];
        let mut digits = BTreeMap::new();
        for (name, tensor) in tensors {
            if let (Some(name), Some(_)) = (name.strip_prefix("abacus."), &self.digits) {
                digits.insert(name.to_owned(), tensor);
                continue;
            }
            let place = name.split_once('.').and_then(|(i, rest)| Some((i.parse::<usize>().ok()?, rest)));
            match place.and_then(|(i, rest)| Some((parts.get_mut(i)?, rest))) {
                Some((part, rest)) => part.insert(rest.into(), tensor),
                None => bail!("unexpected tensor {name}: the state belongs to another model"),
            };
        }
        let mut loaded = self.clone();
        for (state, part) in loaded.states.iter_mut().zip(parts) {
            state.load(part)?;
        }
        if let Some(state) = &mut loaded.digits {
            state.load(digits)?;
        }
        *self = loaded;
        Ok(())
    }
}
