//! Embedding, stack, final norm, head.
//!
//! Parameters are named as in state-spaces checkpoints: `backbone.embedding.weight` (V, d), `backbone.layers.N.*`,
//! `backbone.norm_f.weight`, `lm_head.weight` (V, d) unless tied; V is the padded vocabulary. A norm of the embedding, where
//! there is one, is `backbone.embedding_norm`.

use std::collections::BTreeMap;

use candle_core::{DType, Device, IndexOp, Result, Tensor, bail};
use semisep_core::{Cost, Init, Mixer, Norm, ParameterGroup, State, VarBuilder};

use crate::normal::{Architecture, ModelConfig};
use crate::stack::{Stack, scaled};

/// A language model, ready to run.
pub struct LanguageModel {
    config: ModelConfig,
    embedding: Tensor, // (V, d)
    embedding_norm: Option<Norm>,
    stack: Stack,
    norm: Norm,
    head: Tensor, // (V, d): the embedding where tied
    groups: Vec<ParameterGroup>,
    dtype: DType,
    activation: DType,
    residual: DType,
    device: Device,
}

/// The memory of a whole model: one [`State`] a mixer.
#[derive(Debug, Clone)]
pub struct ModelState {
    states: Vec<State>,
}

impl LanguageModel {
    /// Builds the model with the parameters of `vb`.
    ///
    /// Weights are in `vb`'s dtype. On the CPU, activations are f32 (f64 in an f64 model) whatever the weights are;
    /// elsewhere they are in the weights' dtype, and the residual stream is f32 if the model says so.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape; the error names it.
    pub fn new(architecture: &Architecture, vb: &VarBuilder) -> Result<Self> {
        let config = architecture.model.clone();
        let shape = (config.padded_vocab(), config.d_model);
        let backbone = vb.pp("backbone");
        let embedding = backbone.pp("embedding").get(shape, "weight", Init::Normal { std: 0.02 })?;
        let embedding_norm = config
            .embedding_norm
            .then(|| Norm::new(config.d_model, config.norm, &backbone.pp("embedding_norm")))
            .transpose()?;
        let stack = Stack::new(config.d_model, config.norm, &architecture.layers, &backbone)?;
        let stack = stack.rescaled_every(config.rescale_every);
        let norm = Norm::new(config.d_model, config.norm, &backbone.pp("norm_f"))?;
        let head = if config.tie_embeddings {
            embedding.clone()
        } else {
            vb.pp("lm_head").get(shape, "weight", Init::linear(config.d_model))?
        };
        let activation = vb.activation_dtype();
        let residual =
            if config.residual_in_fp32 && activation != DType::F64 { DType::F32 } else { activation };
        Ok(Self {
            groups: vb.groups(),
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config,
            embedding,
            embedding_norm,
            stack,
            norm,
            head,
            activation,
            residual,
        })
    }

    /// Logits of every position: ids (b, l) u32 -> (b, l, V), f32 (f64 in an f64 model); from `state` on where there is
    /// one.
    ///
    /// # Errors
    /// If an id is outside the vocabulary, or the state belongs to another model or batch size.
    pub fn forward(&self, ids: &Tensor, state: Option<&mut ModelState>) -> Result<Tensor> {
        self.logits(&self.hidden(ids, state, None)?)
    }

    /// Logits of the last position only: ids (b, l) u32, l >= 1 -> (b, V).
    ///
    /// # Errors
    /// As for [`LanguageModel::forward`], or if l is 0.
    pub fn prefill(&self, ids: &Tensor, state: Option<&mut ModelState>) -> Result<Tensor> {
        let l = ids.dim(1)?;
        if l == 0 {
            bail!("prefill: expected at least one token");
        }
        self.logits(&self.hidden(ids, state, None)?.i((.., l - 1))?)
    }

    /// One token a row, the state updated in place: ids (b) -> (b, V).
    ///
    /// # Errors
    /// As for [`LanguageModel::forward`].
    pub fn step(&self, ids: &[u32], state: &mut ModelState) -> Result<Tensor> {
        let ids = Tensor::new(ids, &Device::Cpu)?;
        let x = self.stack.step(self.embed(&ids)?, self.activation, &mut state.states)?;
        self.logits(&self.norm.forward(&x)?)
    }

    /// What the head reads: ids (b, l) u32 -> (b, l, d) after the final norm. With `cu_seqlens`, b is 1 and the state has
    /// one row a sequence.
    ///
    /// # Errors
    /// As for [`LanguageModel::forward`].
    pub fn hidden(
        &self,
        ids: &Tensor,
        state: Option<&mut ModelState>,
        cu_seqlens: Option<&[usize]>,
    ) -> Result<Tensor> {
        let (b, l) = ids.dims2()?;
        let x = self.embed(&ids.flatten_all()?)?.reshape((b, l, self.config.d_model))?;
        let states = state.map(|s| s.states.as_mut_slice());
        if let Some(states) = &states
            && states.len() != self.stack.mixers().count()
        {
            bail!("the state has {} layers: it belongs to another model", states.len());
        }
        let x = self.stack.forward(x, self.activation, states, cu_seqlens)?;
        self.norm.forward(&x)
    }

    /// Shows every mixer with its input, while ids (b, l) u32 run through the model from a zero state: `see` gets the
    /// mixer's place in [`Stack::mixers`], the mixer, and the input (b, l, d). One input exists at a time.
    ///
    /// # Errors
    /// As for [`LanguageModel::forward`], or if `see` fails.
    pub fn visit(
        &self,
        ids: &Tensor,
        see: &mut dyn FnMut(usize, &dyn Mixer, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let (b, l) = ids.dims2()?;
        let x = self.embed(&ids.flatten_all()?)?.reshape((b, l, self.config.d_model))?;
        self.stack.visit(x, self.activation, see).map(|_| ())
    }

    /// The head: (..., d) -> (..., V), f32 (f64 in an f64 model).
    ///
    /// # Errors
    /// If the last dimension is not d.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = hidden.to_dtype(self.activation)?.contiguous()?;
        let logits = semisep_kernels::linear(&hidden, &self.head, None)?;
        let logits = logits.to_dtype(semisep_kernels::state_dtype(self.dtype))?;
        let logits = scaled(logits, self.config.logits_multiplier)?;
        match self.config.logits_soft_cap {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }

    /// ids (n) -> (n, d) in the residual stream's dtype.
    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let rows = self.embedding.dim(0)?;
        let host = ids.to_vec1::<u32>()?;
        if let Some((i, id)) = host.iter().enumerate().find(|&(_, &id)| id as usize >= rows) {
            bail!("token id {id} at position {i} is outside the vocabulary of {rows}: wrong tokenizer?");
        }
        let x = self.embedding.index_select(&ids.to_device(&self.device)?, 0)?.to_dtype(self.residual)?;
        let x = scaled(x, self.config.embedding_multiplier)?;
        self.embedding_norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
    }

    /// The state before the first token of `batch` sequences.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn new_state(&self, batch: usize) -> Result<ModelState> {
        Ok(ModelState { states: self.stack.new_states(batch)? })
    }

    /// What a forward pass costs, embedding, norms and head included.
    pub fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (d, v) = (self.config.d_model, self.config.padded_vocab());
        let head = Cost::linear(batch * seqlen, d, v, false, self.dtype.size_in_bytes());
        let parameters = self.groups.iter().map(|g| g.elements() as u64).sum();
        Cost { parameters, ..self.stack.cost(batch, seqlen) + head }
    }

    /// Every parameter with its training metadata.
    pub fn parameter_groups(&self) -> &[ParameterGroup] {
        &self.groups
    }

    /// The configuration outside the layers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The layers.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the model lives.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl ModelState {
    /// One state a mixer, in order of use.
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// A copy that no later step of this state touches.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn fork(&self) -> Result<Self> {
        Ok(Self { states: self.states.iter().map(State::fork).collect::<Result<_>>()? })
    }

    /// Forgets all but the first `len` tokens; see [`State::truncate`]. All layers or none.
    ///
    /// # Errors
    /// If a layer is recurrent and has seen more.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        let mut cut = self.clone();
        for state in &mut cut.states {
            state.truncate(len)?;
        }
        *self = cut;
        Ok(())
    }

    /// Bytes that this state holds after `seqlen` tokens a sequence.
    pub fn size_bytes(&self, seqlen: usize) -> u64 {
        self.states.iter().map(|s| s.size_bytes(seqlen)).sum()
    }

    /// Every tensor by name, `N.name` for mixer N.
    ///
    /// # Errors
    /// If a copy cannot be made.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (i, state) in self.states.iter().enumerate() {
            all.extend(state.tensors()?.into_iter().map(|(name, t)| (format!("{i}.{name}"), t)));
        }
        Ok(all)
    }

    /// Takes over tensors that [`ModelState::tensors`] gave; unchanged on error.
    ///
    /// # Errors
    /// If a tensor is missing, left over, or of another shape.
    pub fn load(&mut self, tensors: BTreeMap<String, Tensor>) -> Result<()> {
        let mut parts: Vec<BTreeMap<String, Tensor>> = vec![BTreeMap::new(); self.states.len()];
        for (name, tensor) in tensors {
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
        *self = loaded;
        Ok(())
    }
}
