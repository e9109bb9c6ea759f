//! Embedding, stack, final norm, head.
//!
//! Parameters are named as in state-spaces checkpoints: `backbone.embedding.weight` (V, d), `backbone.layers.N.*`,
//! `backbone.norm_f.weight`, `lm_head.weight` (V, d) unless tied; V is the padded vocabulary. A norm of the embedding, where
//! there is one, is `backbone.embedding_norm`; that of Abacus positions `backbone.abacus.weight` (places + 1, d).

use std::collections::BTreeSet;

use candle_core::{DType, Device, IndexOp, Result, Tensor, bail};
use semisep_core::{
    AbacusEmbedding, Context, Cost, Init, Matrix, Mixer, Norm, NormConfig, ParameterGroup, Rng, VarBuilder,
};

use crate::model_state::ModelState;
use crate::normal::{Architecture, ModelConfig, Output, Stage};
use crate::stack::{DistilledLayer, Stack, scaled};

/// A language model, ready to run.
pub struct LanguageModel {
    config: ModelConfig,
    embedding: Matrix, // (V, d)
    abacus: Option<AbacusEmbedding>,
    embedding_norm: Option<Norm>,
    stack: Stack,
    norm: Norm,
    head: Matrix, // (V, d): the embedding where tied
    groups: Vec<ParameterGroup>,
    dtype: DType,
    activation: DType,
    residual: DType,
    device: Device,
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
        let embedding = backbone.pp("embedding").matrix(shape, "weight", Init::Normal { std: 0.02 })?;
        let abacus = |c| AbacusEmbedding::new(c, config.d_model, &backbone.pp("abacus"));
        let abacus = config.abacus.as_ref().map(abacus).transpose()?;
        let embedding_norm = config
            .embedding_norm
            .then(|| Norm::new(config.d_model, config.norm, &backbone.pp("embedding_norm")))
            .transpose()?;
        let layers = backbone.scale_outputs(output_scale(architecture));
        let stack = Stack::new(config.d_model, config.norm, &architecture.layers, &layers)?;
        let stack = stack.rescaled_every(config.rescale_every);
        let last = NormConfig { eps: config.final_norm_eps.unwrap_or(config.norm.eps), ..config.norm };
        let norm = Norm::new(config.d_model, last, &backbone.pp("norm_f"))?;
        let head = if config.tie_embeddings {
            embedding.clone()
        } else {
            vb.pp("lm_head").matrix(shape, "weight", Init::linear(config.d_model))?
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
            abacus,
            embedding_norm,
            stack,
            norm,
            head,
            activation,
            residual,
        })
    }

    /// The same model, for inference, with every layer whose step goes over all that it has seen replaced by a form of
    /// constant work and state a token, by `modes` modes a channel: Hyena's filters become sums of modes (Massaroli et al.
    /// 2023). Also gives how near each layer's filters are met. States of the one are none of the other.
    ///
    /// # Errors
    /// If no layer has such a form, there are no modes, or memory cannot be had.
    pub fn distilled(self, modes: usize) -> Result<(Self, Vec<DistilledLayer>)> {
        let (stack, report) = self.stack.distilled(modes)?;
        if report.is_empty() {
            bail!(
                "no layer of this model can be distilled: only Hyena's convolutions have a form of constant cost"
            );
        }
        let names = |stack: &Stack| -> BTreeSet<String> {
            stack.mixers().flat_map(|m| m.parameter_groups()).map(|g| g.name).collect()
        };
        let (old, mut met) = (names(&self.stack), BTreeSet::new());
        let mut groups: Vec<ParameterGroup> =
            self.groups.iter().filter(|g| !old.contains(&g.name)).cloned().collect();
        let new = stack.mixers().flat_map(|m| m.parameter_groups());
        groups.extend(new.filter(|g| met.insert(g.name.clone())));
        Ok((Self { stack, groups, ..self }, report))
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
        let (mut runs, lengths) = (state.runs()?, vec![1; ids.len()]);
        let x = self.embed(&Tensor::new(ids, &Device::Cpu)?, &lengths, 0, &mut runs)?;
        let x = self.stack.step(x, self.activation, state.states_mut())?;
        state.leave_runs(runs, &lengths)?;
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
        self.shifted(ids, state, cu_seqlens, 0)
    }

    /// [`LanguageModel::hidden`] from zero for a batch of training: digits' places are shifted by a number that `rng` draws
    /// once for all of it, where the model has Abacus positions with a `max_shift`. Nothing else differs.
    ///
    /// # Errors
    /// As for [`LanguageModel::hidden`].
    pub fn hidden_in_training(
        &self,
        ids: &Tensor,
        cu_seqlens: Option<&[usize]>,
        rng: &mut Rng,
    ) -> Result<Tensor> {
        let shift = self.config.abacus.as_ref().map_or(0, |abacus| abacus.draw_shift(rng));
        self.shifted(ids, None, cu_seqlens, shift)
    }

    fn shifted(
        &self,
        ids: &Tensor,
        mut state: Option<&mut ModelState>,
        cu_seqlens: Option<&[usize]>,
        shift: u32,
    ) -> Result<Tensor> {
        let (b, l) = ids.dims2()?;
        let lengths = Context { cu_seqlens, ..Context::default() }.lengths(b, l);
        let mut runs = match &state {
            Some(state) => state.runs()?,
            None => vec![0; lengths.len()],
        };
        let x = self.embed(&ids.flatten_all()?, &lengths, shift, &mut runs)?;
        let x = x.reshape((b, l, self.config.d_model))?;
        let states = state.as_deref_mut().map(ModelState::states_mut);
        if let Some(states) = &states
            && states.len() != self.stack.mixers().count()
        {
            bail!("the state has {} layers: it belongs to another model", states.len());
        }
        let x = self.stack.forward(x, self.activation, states, cu_seqlens)?;
        if let Some(state) = state {
            state.leave_runs(runs, &lengths)?;
        }
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
        let x = self.embed(&ids.flatten_all()?, &vec![l; b], 0, &mut vec![0; b])?;
        let x = x.reshape((b, l, self.config.d_model))?;
        self.stack.visit(x, self.activation, see).map(|_| ())
    }

    /// The head: (..., d) -> (..., V), f32 (f64 in an f64 model).
    ///
    /// # Errors
    /// If the last dimension is not d.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = hidden.to_dtype(self.activation)?.contiguous()?;
        let logits = self.head.apply(&hidden, None)?;
        let logits = logits.to_dtype(semisep_kernels::state_dtype(self.dtype))?;
        let logits = scaled(logits, self.config.logits_multiplier)?;
        match self.config.logits_soft_cap {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }

    /// ids (n) of sequences of these lengths -> (n, d) in the residual stream's dtype. `runs` are the digits right before
    /// each sequence, and are left as they are after it.
    fn embed(&self, ids: &Tensor, lengths: &[usize], shift: u32, runs: &mut [u32]) -> Result<Tensor> {
        let rows = self.embedding.dim(0)?;
        let host = ids.to_vec1::<u32>()?;
        if let Some((i, id)) = host.iter().enumerate().find(|&(_, &id)| id as usize >= rows) {
            bail!("token id {id} at position {i} is outside the vocabulary of {rows}: wrong tokenizer?");
        }
        let x = self.embedding.gather(&ids.to_device(&self.device)?)?.to_dtype(self.residual)?;
        let x = match &self.abacus {
            Some(abacus) => (x + abacus.of_sequences(ids, lengths, shift, runs)?.to_dtype(self.residual)?)?,
            None => x,
        };
        let x = scaled(x, self.config.embedding_multiplier)?;
        self.embedding_norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
    }

    /// The state before the first token of `batch` sequences.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn new_state(&self, batch: usize) -> Result<ModelState> {
        ModelState::new(self.stack.new_states(batch)?, batch, self.abacus.is_some())
    }

    /// What a forward pass costs, embedding, norms and head included.
    pub fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (d, v) = (self.config.d_model, self.config.padded_vocab());
        let head = Cost::linear(batch * seqlen, d, v, false, self.dtype.size_in_bytes());
        let parameters = self.groups.iter().map(|g| g.elements() as u64).sum();
        let cost = self.stack.cost(batch, seqlen) + head;
        let runs = if self.abacus.is_some() { batch * size_of::<u32>() } else { 0 };
        Cost { parameters, state_bytes: cost.state_bytes + runs as u64, ..cost }
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

/// The factor on the initial values of output projections: `1 / √n` for n residual additions.
fn output_scale(architecture: &Architecture) -> f64 {
    let adds = |stage: &&Stage| stage.branches.iter().any(|b| b.output == Output::Stream);
    let residuals = architecture.layers.iter().flat_map(|layer| &layer.stages).filter(adds).count();
    if architecture.model.rescale_prenorm_residual { 1.0 / (residuals.max(1) as f64).sqrt() } else { 1.0 }
}
